"""Reformer: Transformers on long sequences, in JAX and Flax.

Source: Kitaev, Kaiser, Levskaya 2020, "Reformer: The Efficient Transformer", arXiv 2001.04451.
"""

from reformer.config import ReformerConfig
from reformer.layers.attention import num_buckets
from reformer.model import ReformerLM
from reformer.ops.attention import full_attention, local_attention, lsh_attention

__all__ = ["ReformerConfig", "ReformerLM", "full_attention", "local_attention", "lsh_attention", "num_buckets"]
