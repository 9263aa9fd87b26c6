"""Byte-level Reformers on enwik8: 90, 5 and 5 million bytes of Wikipedia.

Command:  python train.py --config=configs/enwik8.py:small --workdir=runs/enwik8
          (add --config.data.path=FILE for a local copy of enwik8 or enwik8.zip; it is downloaded otherwise)
Hardware: not measured yet
Time:     not measured yet
Result:   not measured yet

Presets:
  paper           12 layers, 65,536 tokens, the settings of the original code (trax, reformer_enwik8.gin): Adam with
                  rsqrt decay, dropout 0.2, one sequence per device on eight devices. The default.
  small           6 layers, 65,536 tokens, bfloat16: one GPU.
  tiny            2 layers, 512 tokens: minutes on a laptop CPU.
  full_attention  the Transformer to compare `small` with: full attention, 4,096 tokens.
"""

from ml_collections import ConfigDict

from reformer.configs import base


def get_config(preset: str = "") -> ConfigDict:
    """Returns the experiment; `preset` is '' (as 'paper'), 'paper', 'small', 'tiny' or 'full_attention'."""
    presets = {"paper": _paper, "small": _small, "tiny": _tiny, "full_attention": _full_attention}
    base.check_preset(preset, presets)
    config = base.get_config()
    config.data.name = "enwik8"
    config.optimizer.update(name="adamw", b1=0.9, b2=0.98, epsilon=1e-9, schedule="rsqrt", learning_rate=0.03125)
    config.optimizer.warmup_steps = 2000
    presets[preset or "paper"](config)
    return config


def _paper(config: ConfigDict) -> None:
    config.model.update(
        attention_pattern=("local", "local", "lsh", "local"),
        look_ahead=False,
        max_length=65_536,
        num_layers=12,
        embed_dim=1024,
        mlp_dim=4096,
        num_heads=8,
        head_dim=128,
        activation="relu",
        dropout_rate=0.2,
        num_hashes=2,
        num_buckets=512,
        lsh_chunk_length=256,
        local_chunk_length=128,
        axial_shape=(128, 512),
        axial_dims=(256, 768),
    )
    config.training.update(num_steps=100_000, batch_size=8)
    config.evaluation.update(every_steps=1000, batch_size=8)
    config.checkpoint.every_steps = 500


def _small(config: ConfigDict) -> None:
    config.model.update(
        attention_pattern=("local", "lsh"),
        max_length=65_536,
        num_layers=6,
        embed_dim=512,
        mlp_dim=2048,
        num_heads=8,
        head_dim=64,
        dropout_rate=0.1,
        num_hashes=2,
        lsh_chunk_length=128,
        local_chunk_length=128,
        axial_shape=(128, 512),
        axial_dims=(128, 384),
        dtype="bfloat16",
    )
    config.training.update(num_steps=20_000, batch_size=1)
    config.evaluation.update(every_steps=1000, batch_size=1)
    config.checkpoint.every_steps = 500


def _tiny(config: ConfigDict) -> None:
    config.model.update(max_length=512, num_layers=2, embed_dim=128, mlp_dim=256, num_heads=2, num_hashes=2)
    config.optimizer.update(schedule="cosine", learning_rate=2e-3, warmup_steps=20)
    config.training.update(num_steps=200, batch_size=8)
    config.evaluation.update(every_steps=200, batch_size=32, num_hash_seeds=1)
    config.checkpoint.every_steps = 50


def _full_attention(config: ConfigDict) -> None:
    _small(config)
    config.model.update(attention_pattern=("full",), look_ahead=False)
    config.model.update(max_length=4096, axial_shape=(64, 64))
    config.training.batch_size = 16
    config.evaluation.batch_size = 16
