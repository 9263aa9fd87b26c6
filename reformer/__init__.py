"""Reformer: Transformers on long sequences, in JAX and Flax.

Source: Kitaev, Kaiser, Levskaya 2020, "Reformer: The Efficient Transformer", arXiv 2001.04451.
"""

from reformer.compilation import compiler_options
from reformer.config import ReformerConfig
from reformer.interop import export
from reformer.layers.kinds import num_buckets
from reformer.models.electra import ReformerElectra
from reformer.models.encoder_decoder import ReformerEncoderDecoder
from reformer.models.heads import QuestionAnswerer, ReformerEncoder, SequenceClassifier, TokenClassifier
from reformer.models.language import ReformerLM
from reformer.models.vision import ReformerViT
from reformer.ops.attention import full_attention, local_attention, lsh_attention

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
    "ReformerElectra",
    "ReformerEncoder",
    "ReformerEncoderDecoder",
    "ReformerLM",
    "ReformerViT",
    "SequenceClassifier",
    "TokenClassifier",
    "compiler_options",
    "export",
    "full_attention",
    "load",
    "local_attention",
    "lsh_attention",
    "num_buckets",
]
