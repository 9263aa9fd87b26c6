"""A byte-level Reformer on the Python standard library's own source files: the default, no download.

Command:  python train.py --config=configs/stdlib.py --workdir=runs/stdlib
Hardware: any; made for two CPU cores
Time:     not measured yet
Result:   not measured yet

Presets: `tiny` is a smaller model that trains in about a minute.
"""

from ml_collections import ConfigDict

from configs import base


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
        num_heads=4,
        head_dim=32,
        num_hashes=2,
        loss_chunk_length=512,
    )
    config.optimizer.update(schedule="cosine", learning_rate=0.02, warmup_steps=100, clip_norm=1.0)
    config.training.update(num_steps=600, batch_size=8)
    config.evaluation.update(every_steps=200, batch_size=16, num_hash_seeds=2)
    config.checkpoint.every_steps = 200
    if preset == "tiny":
        config.model.update(max_length=256, num_layers=2, mlp_dim=256, loss_chunk_length=None)
        config.training.update(num_steps=200, batch_size=4)
        config.optimizer.warmup_steps = 20
        config.evaluation.every_steps = 100
        config.checkpoint.every_steps = 100
    return config
