"""The tensors of Hugging Face's Reformers: their names and shapes, and where they live in our parameters."""

import math
from typing import NamedTuple

import numpy as np

from reformer.config import ReformerConfig
from reformer.interop.huggingface_config import BARE_MODEL, CLASSIFIER, QUESTION_ANSWERER

HEAD_BIAS, HEAD_BIAS_ALIAS = "lm_head.bias", "lm_head.decoder.bias"  # one parameter under two names


class Tensor(NamedTuple):
    """One tensor of their file and where it lives in our parameters.

    `block` is its index on the leading axis of a leaf under `stack`, `shape` is ours without that axis.
    """

    name: str
    stored_shape: tuple[int, ...]
    path: tuple[str, ...]
    shape: tuple[int, ...]
    block: int | None = None
    is_kernel: bool = False

    def from_stored(self, array: np.ndarray) -> np.ndarray:
        """Theirs to ours: `[outputs, inputs]` to `[*inputs, *outputs]`."""
        return (array.T if self.is_kernel else array).reshape(self.shape)

    def to_stored(self, array: np.ndarray) -> np.ndarray:
        """Ours to theirs, contiguous, because safetensors ignores strides."""
        array = array if self.block is None else array[self.block]
        stored = array.reshape(self.stored_shape[::-1]).T if self.is_kernel else array.reshape(self.stored_shape)
        return np.ascontiguousarray(stored)


def layout_of(config: ReformerConfig, architecture: str, num_labels: int) -> list[Tensor]:
    """Lists the tensors of a model, those of the layers in the order of their depth.

    Args:
        config: The model's.
        architecture: One of `huggingface_config.ARCHITECTURES`.
        num_labels: Of a classifier; 2 for question answering; any for the others.
    """
    prefix = "" if architecture == BARE_MODEL else "reformer."
    vocab, embed = config.vocab_size, config.embed_dim
    token = Tensor(
        f"{prefix}embeddings.word_embeddings.weight", (vocab, embed), ("embeddings", "token"), (vocab, embed)
    )
    layers = (_layer_layout(config, f"{prefix}encoder.layers.{depth}", depth) for depth in range(config.num_layers))
    return [
        token,
        *_position_layout(config, f"{prefix}embeddings.position_embeddings"),
        *(tensor for layer in layers for tensor in layer),
        *_norm_layout(f"{prefix}encoder.layer_norm", ("norm",), 2 * embed),
        *_head_layout(config, architecture, num_labels),
    ]


def _head_layout(config: ReformerConfig, architecture: str, num_labels: int) -> list[Tensor]:
    embed, both, labels = (config.embed_dim,), (2 * config.embed_dim,), (num_labels,)
    if architecture == BARE_MODEL:
        return []
    if architecture == QUESTION_ANSWERER:
        return _dense_layout("qa_outputs", ("head",), both, labels)
    if architecture == CLASSIFIER:
        hidden = _dense_layout("classifier.dense", ("head_hidden",), both, embed)
        return hidden + _dense_layout("classifier.out_proj", ("head",), embed, labels)
    vocab = (config.vocab_size,)
    return [_linear("lm_head.decoder", ("head",), both, vocab), Tensor(HEAD_BIAS, vocab, ("head", "bias"), vocab)]


def _position_layout(config: ReformerConfig, prefix: str) -> list[Tensor]:
    if config.position_embedding == "learned":
        shape = (config.max_length, config.embed_dim)
        return [Tensor(f"{prefix}.embedding.weight", shape, ("embeddings", "position"), shape)]
    sizes, dims = config.resolved_axial_shape, config.resolved_axial_dims
    tensors = []
    for axis, (size, dim) in enumerate(zip(sizes, dims, strict=True)):
        stored = (1,) * axis + (size,) + (1,) * (len(sizes) - axis - 1) + (dim,)
        tensors.append(Tensor(f"{prefix}.weights.{axis}", stored, ("embeddings", f"axial_{axis}"), (size, dim)))
    return tensors


def _layer_layout(config: ReformerConfig, prefix: str, depth: int) -> list[Tensor]:
    block, index = divmod(depth, len(config.attention_pattern))
    embed, mlp, heads = (config.embed_dim,), (config.mlp_dim,), (config.num_heads, config.head_dim)
    path = ("stack", f"layer_{index}")
    projections = ("query_key", "value") if config.attention_pattern[index] == "lsh" else ("query", "key", "value")
    attention, feed_forward = (*path, "attention"), (*path, "feed_forward")
    return [
        *_norm_layout(f"{prefix}.attention.layer_norm", (*attention, "norm"), *embed, block),
        *(
            _linear(f"{prefix}.attention.self_attention.{name}", (*attention, name), embed, heads, block)
            for name in projections
        ),
        _linear(f"{prefix}.attention.output.dense", (*attention, "output"), heads, embed, block),
        *_norm_layout(f"{prefix}.feed_forward.layer_norm", (*feed_forward, "norm"), *embed, block),
        *_dense_layout(f"{prefix}.feed_forward.dense.dense", (*feed_forward, "hidden"), embed, mlp, block),
        *_dense_layout(f"{prefix}.feed_forward.output.dense", (*feed_forward, "output"), mlp, embed, block),
    ]


def _linear(name, path, inputs, outputs, block=None) -> Tensor:
    stored_shape = (math.prod(outputs), math.prod(inputs))
    return Tensor(f"{name}.weight", stored_shape, (*path, "kernel"), inputs + outputs, block, is_kernel=True)


def _dense_layout(name, path, inputs, outputs, block=None) -> list[Tensor]:
    bias = Tensor(f"{name}.bias", outputs, (*path, "bias"), outputs, block)
    return [_linear(name, path, inputs, outputs, block), bias]


def _norm_layout(name, path, size, block=None) -> list[Tensor]:
    leaves = {"weight": "scale", "bias": "bias"}
    return [Tensor(f"{name}.{theirs}", (size,), (*path, ours), (size,), block) for theirs, ours in leaves.items()]
