"""Which of the 20 largest packages of the Python standard library 256 bytes of source come from, by few examples.

Command:  python train.py --config=configs/classify.py --workdir=runs/classify
          python train.py --config=configs/classify.py --config.training.init_from=runs/masked --workdir=runs/tuned
Hardware: 2 cores of an AMD EPYC, three runs at once
Time:     `tiny`, 600 steps: about 2 minutes; the default was not run
Result:   `tiny` gets 20.4 % of the test windows right, 24.5 % after masked pre-training; see docs/electra.md

There are 50 labelled windows of each package; the second command begins with what configs/masked.py has learned without
labels, from the same files: those that are held out are held out in both. The model is that of configs/masked.py.
Other labels: --config.data.path=FOLDER, which holds one folder of text for each, and --config.task.num_labels.
Presets: `tiny` is a smaller model, on windows of 128 bytes.
"""

from ml_collections import ConfigDict

from reformer.configs import base, masked


def get_config(preset: str = "") -> ConfigDict:
    """Returns the experiment; `preset` is '' or 'tiny'."""
    base.check_preset(preset, ["tiny"])
    config = masked.get_config(preset)
    config.task.update(name="classification", num_labels=20, pooling="mean")
    config.data.update(name="packages", examples_per_label=50)
    config.model.dropout_rate = 0.1
    config.optimizer.update(learning_rate=0.0005, warmup_steps=50)
    config.training.update(num_steps=600, batch_size=32, log_every_steps=20)
    config.evaluation.update(every_steps=100, batch_size=32, max_examples=None)
    config.checkpoint.every_steps = 100
    return config
