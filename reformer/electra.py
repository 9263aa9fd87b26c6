"""Replaced-token detection: a small generator fills hidden places, and a discriminator says which tokens it made up.

Source: Clark, Luong, Le, Manning 2020, "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators",
arXiv 2003.10555, section 2 (the method), 3.2 (shared weights, smaller generators).
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from reformer.config import ReformerConfig
from reformer.layers.embeddings import Embeddings
from reformer.layers.linear import dense
from reformer.layers.stack import Observer
from reformer.model import Evaluated, ReformerLM, TokenModel
from reformer.ops.dropout import draw_seed
from reformer.ops.lengthwise import map_length
from reformer.ops.losses import chunked_cross_entropy, chunked_scores
from reformer.ops.replacement import draw_in_chunks, number_places
from reformer.trunk import Streams

# What the generator takes from the discriminator, and the parts of the parameters that this means.
SHARED_PARTS = {"embeddings": ("embeddings",), "all": ("embeddings", "stack", "norm"), "none": ()}


class Lot(NamedTuple):
    """What decides which tokens are drawn: noise, and how much it weighs against the logits."""

    seed: UInt[Array, ""]
    places: UInt[Array, "batch length"]
    temperature: float | int


class Generator(ReformerLM):
    """A masked language model whose embeddings may be those of a wider model, brought to its width by a dense layer."""

    embeddings_config: ReformerConfig

    def setup(self):
        """Declares the parts."""
        super().setup()
        if self._is_projected:
            self.projection = dense(self.config, self.config.embed_dim)

    @property
    def _is_projected(self) -> bool:
        return self.embeddings_config.embed_dim != self.config.embed_dim

    def make_embeddings(self) -> nn.Module:
        """The embeddings before the projection."""
        return Embeddings(self.embeddings_config)

    def embed(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length embed"]:
        """The vectors that enter the stack, before dropout."""
        embedded = super().embed(tokens)
        if not self._is_projected:
            return embedded
        if self.is_initializing():
            return self.projection(embedded)

        def project(params, x):
            projected: Any = self.projection.clone(parent=None).apply({"params": params}, x)
            return projected.astype(x.dtype)

        return map_length(project, self.variables["params"]["projection"], embedded, None)

    def learn_and_draw(self, tokens, targets, lot: Lot, *, weights, mask, deterministic):
        """`loss` of the targets, and a draw from the softmax of the same logits at every place."""
        streams, dropout_seed = self.run(tokens, mask, None, deterministic)
        logits, chunk_length, params = self._chunk_logits(), self.config.loss_chunk_length, self._head_params()
        sums = chunked_cross_entropy(logits, chunk_length, params, streams, targets, weights, dropout_seed)
        return sums, draw_in_chunks(logits, chunk_length, params, streams, *lot, dropout_seed)

    def score_and_draw(self, tokens, targets, lot: Lot, *, weights, mask):
        """What `chunked_scores` sums over the targets, and a draw as in `learn_and_draw`."""
        streams, _ = self.run(tokens, mask)
        logits, chunk_length, params = self._chunk_logits(), self.config.loss_chunk_length, self._head_params()
        sums = chunked_scores(logits, chunk_length, params, streams, targets, weights)
        return sums, draw_in_chunks(logits, chunk_length, params, streams, *lot)


class Discriminator(TokenModel):
    """One logit for every token: above 0, it was replaced. The targets of `loss` and `score` are 1 where it was."""

    @property
    def num_outputs(self) -> int:
        """Logits of a token."""
        return 1

    def _chunk_logits(self):
        """For the loss the logits 0 and x of two classes, whose cross-entropy is the binary one of x."""
        return partial(_beside_zero, super()._chunk_logits())

    def measure(
        self, streams: Streams, targets: Int[Array, "batch length"], weights: Float[Array, "batch length"]
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        """Share of unreplaced tokens, which those reach who never suspect one; and recall and precision."""
        replaced = weights * targets
        others = weights - replaced
        logits, chunk_length, params = self._chunk_logits(), self.config.loss_chunk_length, self._head_params()
        _, found, num_replaced = chunked_scores(logits, chunk_length, params, streams, targets, replaced)
        _, left_alone, num_others = chunked_scores(logits, chunk_length, params, streams, targets, others)
        return {
            "unreplaced_share": (num_others, num_replaced + num_others),
            "detection_recall": (found, num_replaced),
            "detection_precision": (found, found + num_others - left_alone),
        }


class ReformerElectra(nn.Module):
    """A generator and a discriminator that learn together; afterwards the discriminator alone is of use.

    The parameters are those of two ordinary models, below `generator` and `discriminator`; what both use is stored
    once, with the discriminator, whose sub-tree is complete. The generator learns from its own loss only: a drawn token
    has no gradient.

    **The loss is one pair of sums**, as training wants it. Every example has weight n, its number of real tokens, and
    n * (mean nats of the generator's targets + discriminator_weight * mean nats of the discriminator's). Both add up
    over examples, so that their ratio, and the gradient, is the same for any division into micro-batches, devices or
    evaluation batches. Where all examples are equally long and have equally many targets, it is the paper's loss.

    Attributes:
      config: of the discriminator; not causal.
      generator_scale: widths of the generator (streams, hidden units, heads) relative to the discriminator's.
      share: 'embeddings' = the generator uses the discriminator's embeddings, of tokens and positions; 'all' = its
        stack and norm too, so that only the heads differ, which needs generator_scale=1; 'none'.
      discriminator_weight: of its loss, beside 1 for the generator's.
      temperature: of the draws.
    """

    config: ReformerConfig
    generator_scale: float | int = 0.25
    share: str = "embeddings"
    discriminator_weight: float | int = 50.0
    temperature: float | int = 1.0

    def __post_init__(self):
        if found := list(problems(self.config, self.generator_scale, self.share)):
            raise ValueError("\n".join(found))
        super().__post_init__()

    @property
    def generator(self) -> Generator:
        """The model whose parameters are the first of `split`."""
        config = generator_config(self.config, self.generator_scale)
        return Generator(config, embeddings_config=config if self.share == "none" else self.config, parent=None)

    @property
    def discriminator(self) -> Discriminator:
        """The model whose parameters are the second of `split`, and the sub-tree `discriminator`."""
        return Discriminator(self.config, parent=None)

    @nn.compact
    def create(self) -> None:
        """Visits every parameter, to create them: `model.init(rng, method='create')`."""

        def create(model, without):
            def init(rng):
                params = model.init(rng, method="create")["params"]
                return {name: tree for name, tree in params.items() if name not in without}

            return init

        self.param("discriminator", create(self.discriminator, ()))
        self.param("generator", create(self.generator, SHARED_PARTS[self.share]))

    def split(self, params) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the parameters of the generator and of the discriminator, each complete."""
        shared = {name: params["discriminator"][name] for name in SHARED_PARTS[self.share]}
        return {**params["generator"], **shared}, params["discriminator"]

    def loss(
        self,
        tokens: Int[Array, "batch length"],
        targets: Int[Array, "batch length"],
        *,
        weights: Float[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Computes the loss of both, `loss_chunk_length` tokens at a time.

        Args:
          tokens: what the generator sees: ids, some of them hidden.
          targets: the ids that really stand there, at every place.
          weights: of the generator's targets; above 0 at the places that it fills, 0 elsewhere.
          mask: True = real token; None = all are.
          deterministic: no dropout; False needs an rng named 'dropout' if a rate is positive.

        Returns:
          Sum of weighted nats and sum of weights, as the class describes them.

        Raises:
          ValueError: the sequence is too long, or there is no rng named 'hash', for the draws and the LSH rotations.
        """
        generator, discriminator = self.split(self.variables["params"])
        (nats, _), drawn = self.generator.apply(
            {"params": generator},
            tokens,
            targets,
            self._lot(targets, weights, mask),
            weights=_per_example(weights, mask),
            mask=mask,
            deterministic=deterministic,
            method="learn_and_draw",
            rngs=self._rngs(),
        )
        nats_of_other, weight = self.discriminator.apply(
            {"params": discriminator},
            *_replace(targets, drawn, weights, mask),
            mask=mask,
            deterministic=deterministic,
            method="loss",
            rngs=self._rngs(),
        )
        return nats + self.discriminator_weight * nats_of_other, weight

    def score(
        self,
        tokens: Int[Array, "batch length"],
        targets: Int[Array, "batch length"],
        *,
        weights: Float[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
        look: Observer | None = None,
    ) -> Evaluated:
        """The loss without dropout, and how good both are; for evaluation.

        Args:
          tokens: as in `loss`.
          targets: as in `loss`.
          weights: as in `loss`.
          mask: as in `loss`.
          look: at the discriminator's attention, as in `Trunk.observe`; None = nobody looks.

        Returns:
          Sums over the examples; `right` are the tokens of which the discriminator knows whether they were replaced.

        Raises:
          ValueError: as in `loss`.
        """
        (nats, right, weight), *inputs = self._score_generator(tokens, targets, weights, mask)
        _, params = self.split(self.variables["params"])
        found: Any = self.discriminator.apply(
            {"params": params}, *inputs, mask=mask, look=look, method="score", rngs=self._rngs()
        )
        others = {
            "generator_nats": (nats, weight),
            "generator_accuracy": (right, weight),
            "discriminator_nats": (found.nats, found.weight),
        }
        return found._replace(nats=nats + self.discriminator_weight * found.nats, others=others | found.others)

    def replace(
        self,
        tokens: Int[Array, "batch length"],
        targets: Int[Array, "batch length"],
        *,
        weights: Float[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
    ) -> tuple[Int[Array, "batch length"], Int[Array, "batch length"]]:
        """Returns what the discriminator sees, given the arguments and the key of `score`, and 1 where it is replaced.

        Raises:
          ValueError: as in `loss`.
        """
        _, *inputs = self._score_generator(tokens, targets, weights, mask)
        return tuple(inputs)

    def _score_generator(self, tokens, targets, weights, mask):
        params, _ = self.split(self.variables["params"])
        sums, drawn = self.generator.apply(
            {"params": params},
            tokens,
            targets,
            self._lot(targets, weights, mask),
            weights=_per_example(weights, mask),
            mask=mask,
            method="score_and_draw",
            rngs=self._rngs(),
        )
        return sums, *_replace(targets, drawn, weights, mask)

    def _lot(self, targets, weights, mask) -> Lot:
        if not self.has_rng("hash"):
            raise ValueError("Replacements are drawn with rngs={'hash': key}, also when deterministic. Pass a key.")
        seed = draw_seed(self.make_rng("hash"))
        return Lot(seed, number_places(seed, 2 * targets + (weights > 0), mask), self.temperature)

    def _rngs(self) -> dict[str, jax.Array]:
        return {name: self.make_rng(name) for name in ("hash", "dropout") if self.has_rng(name)}


def generator_config(config: ReformerConfig, scale: float | int) -> ReformerConfig:
    """The config of a generator whose widths are `scale` times those of `config`.

    There are fewer heads of the same width where it allows that, and at least one. Axial tables of its own share the
    width of the streams automatically.

    Raises:
      ValueError: such a model cannot be.
    """
    if scale == 1:
        return config

    def scaled(size: int, scale: float | int = scale) -> int:
        return max(1, round(scale * size))

    num_heads = scaled(config.num_heads)
    head_dim = scaled(config.num_heads * config.head_dim, scale / num_heads)
    sizes = {"embed_dim": scaled(config.embed_dim), "mlp_dim": scaled(config.mlp_dim)}
    return dataclasses.replace(config, axial_dims=None, num_heads=num_heads, head_dim=head_dim, **sizes)


def problems(config: ReformerConfig, generator_scale: float | int, share: str) -> Iterator[str]:
    """Yields a sentence for each thing that does not fit a `ReformerElectra`."""
    if config.causal:
        yield "causal=True hides from each token what stands after it. ELECTRA needs causal=False."
    if share not in SHARED_PARTS:
        yield f"share={share!r} must be one of {', '.join(SHARED_PARTS)}."
    if share == "all" and generator_scale != 1:
        yield f"share='all' needs a generator of the same size, generator_scale=1 instead of {generator_scale}."
    if not 0 < generator_scale <= 1:
        yield f"generator_scale={generator_scale} must be above 0 and at most 1."
        return
    try:
        generator_config(config, generator_scale)
    except ValueError as error:
        yield from (f"generator_scale={generator_scale}: the generator's {line}" for line in str(error).splitlines())


def _beside_zero(logits_fn, *args):
    logits = logits_fn(*args)
    return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)


def _per_example(weights, mask):
    """Scales the weights of each example's targets to sum to its number of real tokens; it may have no targets."""
    real = jnp.ones_like(weights) if mask is None else mask.astype(weights.dtype)
    weights = weights * real
    sums = jnp.sum(weights, axis=1, keepdims=True)
    return weights * (jnp.sum(real, axis=1, keepdims=True) / jnp.where(sums > 0, sums, 1))


def _replace(targets, drawn, weights, mask):
    """The tokens with draws in the hidden places, and 1 where a draw is not by chance what really stands there."""
    hidden = weights > 0 if mask is None else (weights > 0) & mask
    tokens = jnp.where(hidden, drawn, targets)
    return tokens, (tokens != targets).astype(jnp.int32)
