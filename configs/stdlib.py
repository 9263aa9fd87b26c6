"""A byte-level Reformer on the Python standard library's own source files: the default, no download.

Command:  python train.py --config=configs/stdlib.py --workdir=runs/stdlib
Hardware: two cores of a shared AMD EPYC (JAX 0.10.2)
Time:     2 min 55 s from a fresh clone, the environment included
Result:   1.63 bits per byte on the held-out files of Python 3.11.7 (order-2 counts 2.57, gzip -9 2.13), seed 0

Presets: `tiny` is a smaller model that trains in about a minute.
"""

from ml_collections import ConfigDict

from reformer.configs import base


def get_config(preset: str = "") -> ConfigDict:
    """Returns the experiment; `preset` is '' or 'tiny'."""
    base.check_preset(preset, ["tiny"])
    config = base.get_config()
    config.data.update(name="stdlib", valid_fraction=0.02, test_fraction=0.02)
    config.model.update(
        attention_pattern=("local", "lsh"),
        max_length=1024,
        num_layers=4,
        embed_dim=128,
        mlp_dim=512,
        num_heads=2,
        head_dim=64,
        num_hashes=1,
        local_chunk_length=16,
        lsh_chunk_length=32,
        position_embedding="sinusoidal",
    )
    config.optimizer.update(name="adamw", schedule="cosine", learning_rate=0.003, warmup_steps=50, clip_norm=1.0)
    config.training.update(num_steps=2000, batch_size=2, log_every_steps=20)
    config.evaluation.update(every_steps=500, batch_size=8, num_hash_seeds=3)
    config.checkpoint.every_steps = 500
    if preset == "tiny":
        config.model.update(max_length=256, num_layers=2, mlp_dim=256)
        config.training.update(num_steps=200, batch_size=4)
        config.optimizer.warmup_steps = 20
        config.evaluation.every_steps = 100
        config.checkpoint.every_steps = 100
    return config
