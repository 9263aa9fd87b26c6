"""Replaced-token detection (ELECTRA) on the bytes of the Python standard library's own source files.

Command:  python train.py --config=configs/electra.py --workdir=runs/electra
Hardware: not measured yet
Time:     not measured yet
Result:   not measured yet

The model of configs/masked.py as discriminator, and a generator of a quarter of its widths. Of use afterwards is the
discriminator: --config.training.init_from=runs/electra:discriminator. What is reported is explained in docs/electra.md.
Other text: --config.data.name=text --config.data.path=FILE_OR_FOLDER.
Presets: `tiny` is a smaller model that trains in a few minutes.
"""

from ml_collections import ConfigDict

from configs import base, masked


def get_config(preset: str = "") -> ConfigDict:
    """Returns the experiment; `preset` is '' or 'tiny'."""
    base.check_preset(preset, ["tiny"])
    config = masked.get_config(preset)
    config.task.update(name="electra", mask_rate=0.15, generator_scale=0.25, share="embeddings")
    if preset == "tiny":
        config.task.generator_scale = 0.5  # a generator of width 16 would never fool anybody
    return config
