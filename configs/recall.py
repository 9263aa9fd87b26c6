"""How far a model looks back: Python's own source in long windows, and keys whose values must be looked up.

Command:  python train.py --config=configs/recall.py --workdir=runs/recall
          python benchmarks/long_range.py --config configs/recall.py            every kind of attention
Hardware: one core of a shared AMD EPYC (JAX 0.10.2)
Time:     see docs/look_ahead.md
Result:   see docs/look_ahead.md

Evaluations report bits per byte, and those of `repeats` alone: bytes whose 8-byte context last occurred more than
`data.repeat_distance` bytes back, which is more than local layers see.

Presets: `bytes_4k` (the default), `bytes_8k`, `bytes_16k`: the standard library's source in windows of so many bytes.
`pairs`: associative recall, 1,024 tokens; what it is, and its sources, stand in reformer/data/recall.py. `tiny`: the
same with 128 tokens, a minute on a laptop CPU.
"""

from ml_collections import ConfigDict

from reformer.configs import base

_WINDOWS = {"bytes_4k": 4096, "bytes_8k": 8192, "bytes_16k": 16_384}


def get_config(preset: str = "") -> ConfigDict:
    """Returns the experiment; `preset` is '' (as 'bytes_4k') or one of those named above."""
    base.check_preset(preset, [*_WINDOWS, "pairs", "tiny"])
    config = base.get_config()
    config.model.update(
        attention_pattern=("local", "lsh"),
        num_layers=4,
        embed_dim=128,
        mlp_dim=256,
        num_heads=2,
        head_dim=64,
        num_hashes=4,
        position_embedding="sinusoidal",
    )
    config.optimizer.update(name="adamw", schedule="cosine", learning_rate=0.003, warmup_steps=50, clip_norm=1.0)
    if preset in ("pairs", "tiny"):
        _pairs(config)
    else:
        _bytes(config, _WINDOWS[preset or "bytes_4k"])
    if preset == "tiny":
        config.data.num_symbols = 64
        config.model.update(vocab_size=129, max_length=128, lsh_chunk_length=16, local_chunk_length=8)
        config.training.update(num_steps=300, batch_size=16)
        config.evaluation.every_steps = 150
    return config


def _bytes(config: ConfigDict, length: int) -> None:
    config.data.update(name="stdlib", valid_fraction=0.02, test_fraction=0.02, repeat_distance=128)
    config.model.max_length = length
    config.training.update(num_steps=1000, batch_size=1, log_every_steps=20)
    config.evaluation.update(every_steps=500, batch_size=1, num_hash_seeds=3)
    config.checkpoint.every_steps = 500


def _pairs(config: ConfigDict) -> None:
    config.data.update(name="recall", num_symbols=256)
    config.model.update(vocab_size=513, max_length=1024, num_layers=2, lsh_chunk_length=32, local_chunk_length=16)
    config.training.update(num_steps=1000, batch_size=4, log_every_steps=20)
    config.evaluation.update(every_steps=250, batch_size=20, num_hash_seeds=3)
    config.checkpoint.every_steps = 250
