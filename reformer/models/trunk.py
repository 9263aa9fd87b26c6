"""What every model of the family has below its head: embeddings, the stack of layers, and a norm over both streams."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt

from reformer.config import ReformerConfig
from reformer.layers import rotations as all_rotations
from reformer.layers import stack
from reformer.layers.attention import Fixed
from reformer.layers.embeddings import Embeddings
from reformer.layers.kinds import KINDS, padded_length
from reformer.layers.linear import LayerNorm
from reformer.layers.rotations import Rotations
from reformer.ops.dropout import draw_seed, dropout, fold, token_numbers
from reformer.ops.ids import check_ids, spoil_missing
from reformer.ops.lengthwise import map_length
from reformer.ops.reversible import Streams
from reformer.sharding import check_is_set, constrain, splits_length, splits_tokens

POOLINGS = ("first", "mean")  # what stands for a whole sequence


class Encoded(NamedTuple):
    """What cross attention attends to.

    Attributes:
      hidden: of `config.output_dim` features, normalised, as `heads.ReformerEncoder` returns them; differentiated.
      mask: True = real token; None = all are.
    """

    hidden: Float[Array, "batch source width"]
    mask: Bool[Array, "batch source"] | None = None


class Trunk(nn.Module):
    """Embeddings, the stack of layers and the norm. A model adds a head; the names of these parts are the same in all.

    Source: Kitaev, Kaiser, Levskaya 2020, "Reformer: The Efficient Transformer", arXiv 2001.04451.
    """

    config: ReformerConfig

    def setup(self):
        """Declares the parts; a model adds its head."""
        self.embeddings = self.make_embeddings()
        self.stack = stack.stacked_blocks(self.config)
        self.norm = LayerNorm(self.config)

    @nn.nowrap
    def make_embeddings(self) -> nn.Module:
        """The module that `embed` calls; a model whose input is not a row of ids has another one."""
        return Embeddings(self.config)

    def create(self) -> None:
        """Visits every parameter, to create them and compute nothing: `model.init(rng, method='create')`."""
        self.stack(self.embed(self.example()))
        self.create_head(self.norm(jnp.zeros((1, 1, self.config.output_dim))))

    def example(self) -> Array:
        """The shortest input that `run` takes."""
        return jnp.zeros((1, 1), jnp.int32)

    def create_head(self, hidden: Float[Array, "batch length hidden"]) -> None:
        """Visits the parameters of the head; the trunk has none."""
        del hidden

    def run(
        self,
        inputs: Array,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: Rotations | None = None,
        deterministic: bool = True,
        encoded: Encoded | None = None,
        documents: Int[Array, "batch length"] | None = None,
    ) -> tuple[Streams, UInt[Array, ""] | None]:
        """Embeds and runs the stack.

        Args:
          inputs: what `embed` takes, such as ids [batch, length]. A real token whose id does not exist is an error, and
            NaN where the values are not known, within `jit`; those that `mask` hides may be any integers.
          mask: True = real token; None = all are.
          rotations: of every LSH layer in depth order; None = drawn from the rng named 'hash'.
          deterministic: no dropout; False needs an rng named 'dropout' if a rate is positive.
          encoded: what the layers with cross attention attend to.
          documents: of every token the number of its document, from 0, in ascending order: tokens attend within their
            document only, and what one gives does not depend on the contents of the others; None = all is one.

        Returns:
          Both streams after the last layer, and the dropout seed of the head, None = no dropout.

        Raises:
          ValueError: the sequence is empty or too long, an id does not exist, or mask, rotations or what is encoded do
            not fit or are missing.
        """
        streams, seed, _ = self._run(inputs, mask, rotations, deterministic, encoded, documents, None)
        return streams, seed

    def _run(self, inputs, mask, rotations, deterministic: bool, encoded, documents, look: stack.Observer | None):
        """`run`, and as third what `observe` returns."""
        config = self.config
        check_is_set(inputs)
        length = _check_inputs(inputs, mask, config.max_length)
        _check_documents(config, inputs, documents)
        if _are_ids(inputs):
            check_ids("tokens", inputs, config.vocab_size, counting=(mask,), repair="the tokens")
        seed = self._dropout_seed(deterministic)
        inputs, mask, documents = _pad(inputs, mask, documents, padded_length(length, config))
        x = self.embed(inputs)
        if _are_ids(inputs):
            x = spoil_missing(x, inputs, mask, config.vocab_size)
        if seed is not None:
            x = dropout(x, config.dropout_rate, fold(seed, 0), token_numbers(x))
        x = constrain(x, "act_batch", "act_length", "act_embed")
        if self.is_initializing():
            self.stack(x[:1, :1])
        _check_encoded(config, len(x), encoded)
        encoded_mask = None if encoded is None else encoded.mask
        fixed = self._fixed(x.shape[1], mask, rotations, seed, encoded_mask, documents)
        context = () if encoded is None else constrain(encoded.hidden, "act_batch", "replicated", "act_embed")
        streams, seen = stack.run_stack(config, self.variables["params"]["stack"], x, fixed, context, look)
        streams = jax.tree.map(lambda y: y[:, :length], streams)
        return streams, None if seed is None else fold(seed, 1), seen

    def embed(self, inputs: Shaped[Array, "batch length *values"]) -> Float[Array, "batch length embed"]:
        """The vectors that enter the stack, before dropout."""
        if self.is_initializing() or not splits_tokens():
            return self.embeddings(inputs)
        # Positions of the whole length, which are the same for all examples, would exist on every device.
        number = jnp.arange(inputs.shape[1])[None]
        positions = jnp.broadcast_to(number, inputs.shape[:2]) if splits_length() else None
        embeddings = self.embeddings.clone(parent=None)

        def embed(params, inputs_and_positions):
            return embeddings.apply({"params": params}, *inputs_and_positions)

        return map_length(embed, self.variables["params"]["embeddings"], (inputs, positions), None)

    def _dropout_seed(self, deterministic: bool):
        config = self.config
        rates = [config.dropout_rate, *(KINDS[kind].dropout_rate(config) for kind in config.attention_pattern)]
        if config.cross_attention:
            rates.append(config.attention_weights_dropout_rate)
        if deterministic or not any(rates):
            return None
        if not may_draw(self, "dropout"):
            raise ValueError("deterministic=False with dropout needs rngs={'dropout': key}.")
        return draw_seed(self.make_rng("dropout"))

    def _fixed(self, length: int, mask, rotations, seed, encoded_mask, documents):
        """The fixed inputs of the residual functions, stacked over blocks."""
        config = self.config
        num_blocks, parts = config.num_blocks, stack.parts(config)
        per_layer = iter(self._rotations(length, rotations))
        num_functions = len(parts) * len(config.attention_pattern)
        seeds: Any = (None,) * num_functions
        if seed is not None:
            seeds = fold(seed, jnp.arange(2, 2 + num_functions * num_blocks)).reshape(num_blocks, -1).T
        fixed = []
        for part, of_part in zip(parts * len(config.attention_pattern), seeds, strict=True):
            if part == "attention":
                of_tokens = [stack.stack_over_blocks(x, num_blocks) for x in (mask, documents)]
                fixed.append(Fixed(of_tokens[0], next(per_layer), of_part, of_tokens[1]))
            elif part == "cross_attention":
                fixed.append(Fixed(stack.stack_over_blocks(encoded_mask, num_blocks), None, of_part))
            else:
                fixed.append(of_part)
        return tuple(fixed)

    def _rotations(self, length: int, rotations: Rotations | None) -> tuple:
        """For every layer of the pattern the rotations of all blocks, stacked; None where nothing is hashed."""
        config = self.config
        are_needed = all_rotations.are_needed(config, length)
        if rotations is not None and (are_needed or not config.num_lsh_layers):
            all_rotations.check(config, length, rotations)
        if rotations is None and are_needed:
            if not may_draw(self, "hash"):
                raise ValueError("LSH layers need rngs={'hash': key}, also when deterministic, or explicit rotations.")
            rotations = all_rotations.draw(config, length, self.make_rng("hash"))
        return all_rotations.by_layer(config, rotations if are_needed else None)

    def observe(
        self,
        inputs: Array,
        look: stack.Observer | None,
        *,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: Rotations | None = None,
        encoded: Encoded | None = None,
        documents: Int[Array, "batch length"] | None = None,
    ) -> tuple[Streams, tuple]:
        """Runs the model without dropout and looks into the attention of every layer.

        Args:
          inputs: as in `run`.
          look: called with the number of the layer within `attention_pattern`, its projections, its plan and what else
            its attention is given; what it returns, a pytree of arrays, is collected. The order of an LSH layer holds
            the buckets. None = nobody looks.
          mask: as in `run`.
          rotations: as in `run`.
          encoded: as in `run`.
          documents: as in `run`.

        Returns:
          Both streams after the last layer, and for every layer of the pattern what `look` returned,
          stacked over blocks; () where nobody looks.

        Raises:
          ValueError: as in `run`.
        """
        streams, _, seen = self._run(inputs, mask, rotations, True, encoded, documents, look)
        return streams, seen

    def pool(
        self,
        streams: Streams,
        mask: Bool[Array, "batch length"] | None,
        pooling: str,
    ) -> Float[Array, "batch hidden"]:
        """LayerNorm of both streams, of the 'first' token or the 'mean' of all that are real.

        Args:
          streams: after the last layer.
          mask: as in `run`.
          pooling: one of `POOLINGS`.
        """
        if pooling == "first":
            return self.norm(merge_streams(self.config, (streams[0][:, 0], streams[1][:, 0])))
        hidden = self.norm(merge_streams(self.config, streams))
        if mask is None:
            return jnp.mean(hidden, axis=1)
        counts = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
        return jnp.sum(jnp.where(mask[..., None], hidden, 0), axis=1) / counts


def may_draw(module: nn.Module, name: str) -> bool:
    """Whether `module.make_rng(name)` gives a key; while parameters are created, theirs stands in for a missing one."""
    return module.has_rng(name) or module.is_initializing()


def merge_streams(
    config: ReformerConfig, streams: tuple[Float[Array, "*rows embed"], Float[Array, "*rows embed"]]
) -> Float[Array, "*rows width"]:
    """Both streams after the last layer as one array, of `config.output_dim` features."""
    if config.merge_streams == "average":
        return (streams[0] + streams[1]) / 2
    return jnp.concatenate(streams, axis=-1)


def _check_inputs(inputs, mask, max_length: int) -> int:
    """Returns the length."""
    if inputs.ndim < 2 or inputs.shape[1] < 1:
        raise ValueError(f"inputs of shape {inputs.shape} must be [batch, length, ...] with at least one token.")
    length = inputs.shape[1]
    if length > max_length:
        raise ValueError(f"length={length} exceeds max_length={max_length}. Raise max_length or cut the input.")
    if mask is not None and (mask.shape != inputs.shape[:2] or mask.dtype != bool):
        raise ValueError(f"mask {mask.shape} of {mask.dtype} must be [batch, length] = {inputs.shape[:2]} of bool.")
    return length


def _are_ids(inputs) -> bool:
    """Whether inputs are rows of ids; other models have a vector of values for every token."""
    return inputs.ndim == 2


def _check_encoded(config: ReformerConfig, batch: int, encoded: Encoded | None) -> None:
    if (encoded is not None) != config.cross_attention:
        raise ValueError(
            f"cross_attention={config.cross_attention} needs {'an' if config.cross_attention else 'no'} `encoded`. "
            "Pass what an encoder made of the source to a model with cross attention, and to no other."
        )
    if encoded is None:
        return
    if encoded.hidden.shape[::2] != (batch, config.output_dim):
        raise ValueError(
            f"encoded.hidden of shape {encoded.hidden.shape} must be [batch={batch}, source, {config.output_dim}]: "
            "embed_dim and merge_streams of the encoder must be those of the decoder."
        )
    if encoded.hidden.shape[1] < 1 or (encoded.mask is not None and encoded.mask.shape != encoded.hidden.shape[:2]):
        raise ValueError(
            f"encoded.hidden {encoded.hidden.shape} must have at least one source token, and its mask "
            f"{None if encoded.mask is None else encoded.mask.shape} must be [batch, source]."
        )


def _check_documents(config: ReformerConfig, inputs, documents) -> None:
    if documents is None:
        return
    if documents.shape != inputs.shape[:2]:
        raise ValueError(f"documents of shape {documents.shape} must be [batch, length] = {inputs.shape[:2]}.")
    if config.attention_implementation != "plain":
        raise ValueError(
            f"attention_implementation={config.attention_implementation!r} does not keep documents apart. Use "
            "attention_implementation='plain', or leave documents out."
        )


def _pad(inputs, mask, documents, length: int):
    """Pads to `length` with masked tokens, as Hugging Face's windows need it."""
    missing = length - inputs.shape[1]
    if not missing:
        return inputs, mask, documents
    mask = jnp.ones(inputs.shape[:2], bool) if mask is None else mask
    behind = [(0, 0), (0, missing)]
    documents = None if documents is None else jnp.pad(documents, behind, mode="edge")
    return jnp.pad(inputs, behind + [(0, 0)] * (inputs.ndim - 2)), jnp.pad(mask, behind), documents
