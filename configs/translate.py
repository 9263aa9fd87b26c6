"""Translation between two languages from text files, line by line translations of each other.

Command:  python train.py --config=configs/translate.py --config.data.path=PREFIX --workdir=runs/translate
          python translate.py --workdir=runs/translate --split=test      BLEU, beam 4
          The files are PREFIX.train.en, PREFIX.train.de, PREFIX.val.en, PREFIX.val.de and PREFIX.test*.en, .de, or
          PREFIX.en and PREFIX.de alone; other languages by --config.data.source_language and target_language.
Hardware: 2 cores of an AMD EPYC
Time:     `captions` and `transformer` 3,500 steps: 1.7 s a step side by side, one core each
          `documents` and `documents_full` 0.9 and 1.1 s a step, after `captions` and two stages of shorter documents
Result:   BLEU of Multi30k's test_2016_flickr 33.5 with `captions`, 33.9 with `transformer`; of whole documents 10.2 and
          10.7 with `documents` and `documents_full`, which learn little from random parameters; see docs/translation.md

Presets, whose sizes are for the 29,000 image captions of Multi30k and two CPU cores:
`captions` (the default) has reversible encoder and decoder with full attention, as in the paper: sentences are shorter
than a chunk, LSH would have nothing to skip. `transformer` is a plain Transformer of the same size: one stream,
ordinary autodiff. `documents` joins 32 captions and has local and LSH attention in both stacks; `documents_full` is the
same with full attention. `tiny` trains in minutes on a laptop CPU and learns little.
Source: arXiv 2001.04451, section 5, "Machine translation".
"""

from ml_collections import ConfigDict

from reformer.configs import base


def get_config(preset: str = "") -> ConfigDict:
    """Returns the experiment; `preset` is '' (as 'captions') or one of `presets`."""
    presets = {
        "captions": lambda config: None,
        "transformer": _transformer,
        "documents": _documents,
        "documents_full": _documents_full,
        "tiny": _tiny,
    }
    base.check_preset(preset, presets)
    config = base.get_config()
    config.task.update(name="translation", share_embeddings=True)
    config.data.update(name="pairs", num_subwords=6000, length=32)
    config.model.update(
        vocab_size=6000,
        max_length=96,  # longer than the rows of training: some sentences to translate are
        num_layers=3,
        embed_dim=192,
        mlp_dim=512,
        num_heads=4,
        head_dim=48,
        attention_pattern=("full",),
        look_ahead=False,  # not tried where there is a source
        cross_attention=True,
        merge_streams="average",
        position_embedding="sinusoidal",
        dropout_rate=0.1,
        label_smoothing=0.1,
    )
    config.optimizer.update(name="adamw", schedule="cosine", learning_rate=0.002, warmup_steps=400, clip_norm=1.0)
    config.training.update(num_steps=3500, batch_size=64, log_every_steps=20)
    config.evaluation.update(every_steps=500, batch_size=64)
    config.checkpoint.every_steps = 250
    presets[preset or "captions"](config)
    return config


def _transformer(config: ConfigDict) -> None:
    config.model.update(num_streams=1, reversible=False)


def _documents(config: ConfigDict) -> None:
    _documents_full(config)
    config.model.update(
        attention_pattern=("local", "lsh", "local"), local_chunk_length=16, lsh_chunk_length=16, num_hashes=2
    )


def _documents_full(config: ConfigDict) -> None:
    config.data.update(join=32, length=576)
    config.model.max_length = 640
    config.training.update(num_steps=3000, batch_size=2)  # about as many subwords in a step as `captions`
    config.evaluation.update(every_steps=500, batch_size=8)


def _tiny(config: ConfigDict) -> None:
    config.data.num_subwords = 1000
    config.model.update(
        vocab_size=1000,
        max_length=128,
        num_layers=2,
        embed_dim=64,
        mlp_dim=128,
        num_heads=2,
        head_dim=32,
        local_chunk_length=16,
    )
    config.model.update(attention_pattern=("local", "lsh"), lsh_chunk_length=16)
    config.optimizer.warmup_steps = 50
    config.training.update(num_steps=300, batch_size=16)
    config.evaluation.update(every_steps=100, max_examples=128)
    config.checkpoint.every_steps = 100
