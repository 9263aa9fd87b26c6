"""WMT14 English-German: the paper's reversible encoder-decoder (section 5, Table 4).

Command:  python train.py --config=configs/wmt_ende.py:base --config.data.path=FOLDER --workdir=runs/wmt
          python translate.py --workdir=runs/wmt --split=test      BLEU on newstest2014, beam 4, penalty 0.6
          FOLDER holds the five original archives, which have to be placed by hand: see docs/translation.md.
Hardware: not measured yet: made for several accelerators
Time:     not measured yet
Result:   not measured yet. The paper's, on newstest2014 (BLEU / sacreBLEU uncased / cased): base with 100,000 steps
          27.6 / 27.4 / 26.9; base with 500,000 and no weight sharing 28.0 / 27.9 / 27.4; big with 300,000 and no
          weight sharing 29.1 / 28.9 / 28.4

Presets: `base` (the default; 500,000 steps), `big` (300,000), and `tiny`, which trains on a laptop CPU (it needs the
archives too; without them try configs/translate.py:tiny).

Where this differs from trax: the corpus is that of WMT14 (trax took News Commentary v13), subwords are sentencepiece's,
rows have a fixed length, so that batches are counted in sentences, and labels are smoothed as in Vaswani et al. 2017.
"""

from ml_collections import ConfigDict

from reformer.configs import base


def get_config(preset: str = "") -> ConfigDict:
    """Returns the experiment; `preset` is '' (as 'base'), 'base', 'big' or 'tiny'."""
    presets = {"base": lambda config: None, "big": _big, "tiny": _tiny}
    base.check_preset(preset, presets)
    config = base.get_config()
    config.task.name = "translation"
    config.data.update(name="wmt14_ende", num_subwords=32_000, length=128)
    config.model.update(
        vocab_size=32_000,
        max_length=512,
        num_layers=6,
        embed_dim=512,
        mlp_dim=2048,
        num_heads=8,
        head_dim=64,
        attention_pattern=("full",),
        look_ahead=False,  # not tried where there is a source
        cross_attention=True,
        merge_streams="average",
        position_embedding="sinusoidal",
        activation="relu",
        dropout_rate=0.1,
        label_smoothing=0.1,
    )
    # rsqrt peaks at 0.088 / sqrt(8000) = 0.00098.
    config.optimizer.update(name="adamw", schedule="rsqrt", learning_rate=0.088, warmup_steps=8000)
    config.training.update(num_steps=500_000, batch_size=1024, log_every_steps=100)  # about 28,000 tokens of each side
    config.evaluation.update(every_steps=5000, batch_size=256)
    config.checkpoint.every_steps = 5000
    presets[preset or "base"](config)
    return config


def _big(config: ConfigDict) -> None:
    config.model.update(embed_dim=1024, mlp_dim=4096, num_heads=16, dropout_rate=0.3)
    config.optimizer.learning_rate = 0.0625  # peaks at 0.0007
    config.training.num_steps = 300_000


def _tiny(config: ConfigDict) -> None:
    config.data.update(num_subwords=4000, length=64)
    config.model.update(vocab_size=4000, max_length=128, num_layers=2, embed_dim=64, mlp_dim=128, num_heads=2)
    config.model.update(head_dim=32)
    config.optimizer.update(schedule="cosine", learning_rate=0.002, warmup_steps=50)
    config.training.update(num_steps=300, batch_size=16, log_every_steps=20)
    config.evaluation.update(every_steps=100, batch_size=64, max_examples=128)
    config.checkpoint.every_steps = 100
