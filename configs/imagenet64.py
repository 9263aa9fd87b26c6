"""Images of 64x64 as sequences of 12,288 values: downsampled ImageNet, or your own.

Command:  python train.py --config=configs/imagenet64.py:small --workdir=runs/imagenet64 --config.data.path=FOLDER
          (FOLDER holds train_64x64.tar and valid_64x64.tar, which can no longer be downloaded from their first server)
          python train.py --config=configs/imagenet64.py:tiny --workdir=runs/images --config.data.path=PATH
          (PATH is a folder of 64x64 images, or an .npz; add --config.data.name=images for the other presets)
Hardware: `tiny`: two busy cores of a shared AMD EPYC (JAX 0.10.2); the others are not measured yet
Time:     44 min for 1,000 images
Result:   6.25 bits per dim on 40 validation images of a set of 8,000 photographs (each value given its left neighbour,
          by counts: 6.36), seed 0

Local layers have chunks of 192 values, a row, so that every value sees its own row and the one above.

Presets:
  paper  6 LSH layers, the settings of the original code (trax, reformer_imagenet64.gin): Adam with rsqrt decay, one
         image per device on eight devices. The default.
  small  6 layers local-lsh, bfloat16: one GPU.
  tiny   2 layers local-lsh: a laptop CPU.
"""

from ml_collections import ConfigDict

from reformer.configs import base


def get_config(preset: str = "") -> ConfigDict:
    """Returns the experiment; `preset` is '' (as 'paper'), 'paper', 'small' or 'tiny'."""
    presets = {"paper": _paper, "small": _small, "tiny": _tiny}
    base.check_preset(preset, presets)
    config = base.get_config()
    config.data.name = "imagenet64"
    config.model.update(vocab_size=257, max_length=12_288, axial_shape=(64, 64, 3))  # rows, columns, channels
    config.model.look_ahead = False  # the paper's rule; look-ahead was not tried on images
    config.optimizer.update(name="adamw", b1=0.9, b2=0.98, epsilon=1e-9, schedule="rsqrt", learning_rate=0.03125)
    presets[preset or "paper"](config)
    return config


def _paper(config: ConfigDict) -> None:
    config.model.update(
        attention_pattern=("lsh",),
        num_layers=6,
        embed_dim=1024,
        mlp_dim=4096,
        num_heads=8,
        head_dim=64,
        activation="gelu_tanh",
        num_hashes=2,
        num_buckets=192,
        lsh_chunk_length=128,
        axial_dims=(384, 384, 256),
    )
    config.optimizer.warmup_steps = 8000
    config.training.update(num_steps=500_000, batch_size=8)
    config.evaluation.update(every_steps=5000, batch_size=8)
    config.checkpoint.every_steps = 1000


def _small(config: ConfigDict) -> None:
    config.model.update(
        attention_pattern=("local", "lsh"),
        num_layers=6,
        embed_dim=512,
        mlp_dim=2048,
        num_heads=8,
        head_dim=64,
        num_hashes=2,
        lsh_chunk_length=128,
        local_chunk_length=192,
        axial_dims=(192, 192, 128),
        dtype="bfloat16",
    )
    config.optimizer.warmup_steps = 2000
    config.training.update(num_steps=10_000, batch_size=8)
    config.evaluation.update(every_steps=1000, batch_size=8, max_examples=800, num_hash_seeds=1)
    config.checkpoint.every_steps = 500


def _tiny(config: ConfigDict) -> None:
    config.data.name = "images"
    config.model.update(
        attention_pattern=("local", "lsh"),
        num_layers=2,
        embed_dim=128,
        mlp_dim=256,
        num_heads=2,
        head_dim=64,
        num_hashes=1,
        lsh_chunk_length=64,
        local_chunk_length=192,
        axial_dims=(48, 48, 32),
    )
    config.optimizer.update(schedule="cosine", learning_rate=0.002, warmup_steps=50, clip_norm=1.0)
    config.training.update(num_steps=1000, batch_size=1, log_every_steps=20)
    config.evaluation.update(every_steps=250, batch_size=1, max_examples=40, num_hash_seeds=1)
    config.checkpoint.every_steps = 250
