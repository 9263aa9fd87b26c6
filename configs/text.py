"""A byte-level Reformer on any file or folder of text.

Command:  python train.py --config=configs/text.py --config.data.path=FILE_OR_FOLDER --workdir=runs/text
Hardware: not measured yet
Time:     not measured yet
Result:   not measured yet

Presets: `small` (the default; one GPU or a patient CPU) and `tiny` (minutes on a laptop CPU).
"""

from ml_collections import ConfigDict

from reformer.configs import base


def get_config(preset: str = "") -> ConfigDict:
    """Returns the experiment; `preset` is '' (as 'small'), 'small' or 'tiny'."""
    presets = {"small": _small, "tiny": _tiny}
    base.check_preset(preset, presets)
    config = base.get_config()
    config.data.name = "text"
    config.optimizer.update(schedule="cosine", learning_rate=0.02, warmup_steps=100, clip_norm=1.0)
    presets[preset or "small"](config)
    return config


def _small(config: ConfigDict) -> None:
    config.model.update(max_length=4096, num_layers=6, embed_dim=512, mlp_dim=2048, num_heads=8, dropout_rate=0.1)
    config.model.update(mlp_chunk_length=1024, loss_chunk_length=1024)
    config.training.update(num_steps=10_000, batch_size=8)
    config.evaluation.update(every_steps=500, batch_size=8)
    config.checkpoint.every_steps = 250


def _tiny(config: ConfigDict) -> None:
    config.model.update(max_length=256, num_layers=2, embed_dim=128, mlp_dim=256, num_heads=2)
    config.optimizer.warmup_steps = 20
    config.training.update(num_steps=200, batch_size=4)
    config.evaluation.update(every_steps=100, batch_size=16)
    config.checkpoint.every_steps = 50
