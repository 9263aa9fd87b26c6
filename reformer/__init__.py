"""Reformer: Transformers on long sequences, in JAX and Flax.

Source: Kitaev, Kaiser, Levskaya 2020, "Reformer: The Efficient Transformer", arXiv 2001.04451.
"""

from reformer.compilation import compiler_options
from reformer.config import ReformerConfig
from reformer.encoder_decoder import ReformerEncoderDecoder
from reformer.heads import QuestionAnswerer, ReformerEncoder, SequenceClassifier, TokenClassifier
from reformer.layers.attention import num_buckets
from reformer.model import ReformerLM
from reformer.ops.attention import full_attention, local_attention, lsh_attention
from reformer.vision import ReformerViT

__version__ = "0.1.0"


def load(workdir):
    """Loads a trained model.

    Args:
      workdir: the directory that was given to `train.py`.

    Returns:
      The model's `ReformerConfig` and its variables, of the best checkpoint.

    Raises:
      ValueError: the directory is not that of a run, or has no checkpoint yet.
      OSError: its checkpoints are damaged.
    """
    from reformer.training import checkpoint  # a model alone does not need the training libraries

    return checkpoint.load(workdir)


__all__ = [
    "QuestionAnswerer",
    "ReformerConfig",
    "ReformerEncoder",
    "ReformerEncoderDecoder",
    "ReformerLM",
    "ReformerViT",
    "SequenceClassifier",
    "TokenClassifier",
    "compiler_options",
    "full_attention",
    "load",
    "local_attention",
    "lsh_attention",
    "num_buckets",
]
