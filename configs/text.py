"""A byte-level Reformer on any file or folder of text.

Command:  python train.py --config=configs/text.py:tiny --config.data.path=FILE_OR_FOLDER --workdir=runs/text
Hardware: two cores of a shared AMD EPYC (JAX 0.10.2)
Time:     3 to 4 minutes for 1 MB, compilation and evaluation included, beside other work
Result:   2.29 bits per byte on "Crime and Punishment" (1.1 MB; order-2 counts 2.76, gzip -9 3.21), 2.42 on the first
          1 MB of enwik8 (order-2 counts 3.09, gzip -9 2.77), seed 0

Presets: `small` (the default; one GPU or a patient CPU; not measured yet) and `tiny` (minutes on a laptop CPU). An
evaluation of `tiny` reads 256 windows at most, spread over the split; up to about 2.6 MB of text that is all of them.
All of any text: --config.evaluation.max_examples=None.

Files are read as bytes. Only the byte order mark of UTF-8 at the beginning of a file is left out; whatever ends the
lines is a part of the text. Files in UTF-16 or UTF-32 with such a mark are refused.

Of JSON lines, a file or a folder with .jsonl files, --config.data.text_field=text reads the field `text` of every line
as a document. --config.data.tokens=subwords reads subwords, and data.pack_documents packs short documents; see
docs/text.md.
"""

from ml_collections import ConfigDict

from reformer.configs import base


def get_config(preset: str = "") -> ConfigDict:
    """Returns the experiment; `preset` is '' (as 'small'), 'small' or 'tiny'."""
    presets = {"small": _small, "tiny": _tiny}
    base.check_preset(preset, presets)
    config = base.get_config()
    config.data.name = "text"
    presets[preset or "small"](config)
    return config


def _small(config: ConfigDict) -> None:
    config.optimizer.update(schedule="cosine", learning_rate=0.02, warmup_steps=100, clip_norm=1.0)
    config.model.update(max_length=4096, num_layers=6, embed_dim=512, mlp_dim=2048, num_heads=8, dropout_rate=0.1)
    config.training.update(num_steps=10_000, batch_size=8)
    config.evaluation.update(every_steps=500, batch_size=8)
    config.checkpoint.every_steps = 250


def _tiny(config: ConfigDict) -> None:
    """The model of configs/stdlib.py on windows half as long: 1 MB of text is seen twice."""
    config.model.update(attention_pattern=("local", "lsh"), max_length=512, num_layers=4, embed_dim=128, mlp_dim=512)
    config.model.update(num_heads=2, head_dim=64, num_hashes=1, local_chunk_length=16, lsh_chunk_length=32)
    config.model.position_embedding = "sinusoidal"
    config.optimizer.update(name="adamw", schedule="cosine", learning_rate=0.003, warmup_steps=50, clip_norm=1.0)
    config.training.update(num_steps=1000, batch_size=4)
    config.evaluation.update(every_steps=250, batch_size=16, max_examples=256)
    config.checkpoint.every_steps = 250
