"""How many operations a training step needs, by count and not by measurement."""

from reformer.config import ReformerConfig, derive_encoder_config
from reformer.layers.kinds import KINDS


def flops_per_token(config: ReformerConfig, length: int, num_outputs: int | None = None) -> float:
    """Returns the matrix-product operations per token of a training step; a multiplication and an addition are two.

    A forward pass, twice its cost for the cotangents, and once more to compute the values again if it is reversible.
    Of an encoder-decoder, for a source as long as the target.
    XLA's own `cost_analysis` counts the body of a scan once, whatever the number of layers.

    Args:
      config: Of the model.
      length: Tokens of an example.
      num_outputs: Of the head at every token; None = one for every id, a language model.
    """
    num_outputs = config.vocab_size if num_outputs is None else num_outputs
    total = _stack_flops(config, length) + 3 * 2 * config.output_dim * num_outputs
    return total + (_stack_flops(derive_encoder_config(config), length) if config.cross_attention else 0)


def _stack_flops(config: ReformerConfig, length: int) -> float:
    width = config.num_heads * config.head_dim
    total = 0.0
    for kind in map(KINDS.__getitem__, config.attention_pattern):
        num_projections = 3 if kind.shares_query_key(config) else 4
        linear = 2 * config.embed_dim * width * num_projections + 4 * config.embed_dim * config.mlp_dim
        total += linear + 4 * width * kind.keys_per_query(config, length)
        if config.cross_attention:
            total += 4 * width * (config.embed_dim + config.output_dim + length)
    passes = 4 if config.reversible else 3
    return passes * config.num_blocks * total
