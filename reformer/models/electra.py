"""Replaced-token detection: a small generator fills hidden places, and a discriminator says which tokens it made up.

Source: Clark, Luong, Le, Manning 2020, "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators",
arXiv 2003.10555, section 2 (the method), 3.2 (shared weights, smaller generators).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from reformer.config import ReformerConfig
from reformer.layers.stack import Observer
from reformer.models.electra_parts import Discriminator, DrawNoise, Generator, generator_config
from reformer.models.language import Evaluated
from reformer.models.trunk import may_draw
from reformer.ops.dropout import draw_seed
from reformer.ops.ids import check_ids
from reformer.ops.losses import widen
from reformer.ops.replacement import number_places

# What the generator takes from the discriminator, and the parts of the parameters that this means.
SHARED_PARTS = {"embeddings": ("embeddings",), "all": ("embeddings", "stack", "norm"), "none": ()}


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
        # Labels are smoothed over the ids of a vocabulary, not over yes and no.
        return Discriminator(dataclasses.replace(self.config, label_smoothing=0.0), parent=None)

    @nn.compact
    def create(self) -> None:
        """Visits every parameter, to create them and compute nothing: `model.init(rng, method='create')`."""

        def create(model, without):
            def init(rng):
                params = model.init(rng, method="create")["params"]
                return {name: tree for name, tree in params.items() if name not in without}

            return init

        self.param("discriminator", create(self.discriminator, ()))
        self.param("generator", create(self.generator, SHARED_PARTS[self.share]))

    def _params(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The parameters of the generator and of the discriminator."""
        if self.is_initializing() and not self.has_variable("params", "discriminator"):
            self.create()
        return self.split(self.variables["params"])

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
          targets: the ids that really stand there, at every place; those that `mask` hides may be any integers.
          weights: of the generator's targets; above 0 at the places that it fills, 0 elsewhere.
          mask: True = real token; None = all are.
          deterministic: no dropout; False needs an rng named 'dropout' if a rate is positive.

        Returns:
          Sum of weighted nats and sum of weights, as the class describes them.

        Raises:
          ValueError: the sequence is too long, an id does not exist, or there is no rng named 'hash', for the draws and
            the LSH rotations.
        """
        self._check(tokens, targets, mask)
        generator, discriminator = self._params()
        (nats, _), drawn = self.generator.apply(
            {"params": generator},
            tokens,
            targets,
            self._noise(targets, weights, mask),
            weights=_per_example(weights, mask),
            mask=mask,
            deterministic=deterministic,
            method="learn_and_draw",
            rngs=self._rngs(),
        )
        sums: Any = self.discriminator.apply(
            {"params": discriminator},
            *_replace(targets, drawn, weights, mask),
            mask=mask,
            deterministic=deterministic,
            method="loss",
            rngs=self._rngs(),
        )
        return nats + self.discriminator_weight * sums[0], sums[1]

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
        _, params = self._params()
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
        _, seen, labels = self._score_generator(tokens, targets, weights, mask)
        return seen, labels

    def _score_generator(self, tokens, targets, weights, mask):
        self._check(tokens, targets, mask)
        params, _ = self._params()
        sums, drawn = self.generator.apply(
            {"params": params},
            tokens,
            targets,
            self._noise(targets, weights, mask),
            weights=_per_example(weights, mask),
            mask=mask,
            method="score_and_draw",
            rngs=self._rngs(),
        )
        return sums, *_replace(targets, drawn, weights, mask)

    @nn.nowrap
    def _check(self, tokens, targets, mask) -> None:
        # Targets of weight 0 too: they are what the discriminator sees.
        for name, ids in (("tokens", tokens), ("targets", targets)):
            check_ids(name, ids, self.config.vocab_size, counting=(mask,), repair=f"the {name}")

    def _noise(self, targets, weights, mask) -> DrawNoise:
        if not may_draw(self, "hash"):
            raise ValueError("Replacements are drawn with rngs={'hash': key}, also when deterministic. Pass a key.")
        seed = draw_seed(self.make_rng("hash"))
        return DrawNoise(seed, number_places(seed, 2 * targets + (weights > 0), mask), self.temperature)

    def _rngs(self) -> dict[str, jax.Array]:
        return {name: self.make_rng(name) for name in ("hash", "dropout") if may_draw(self, name)}


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


def _per_example(weights, mask):
    """Scales the weights of each example's targets to sum to its number of real tokens; it may have no targets."""
    weights = widen(weights)
    real = jnp.ones_like(weights) if mask is None else mask.astype(weights.dtype)
    weights = weights * real
    sums = jnp.sum(weights, axis=1, keepdims=True)
    return weights * (jnp.sum(real, axis=1, keepdims=True) / jnp.where(sums > 0, sums, 1))


def _replace(targets, drawn, weights, mask):
    """The tokens with draws in the hidden places, and 1 where a draw is not by chance what really stands there."""
    hidden = weights > 0 if mask is None else (weights > 0) & mask
    tokens = jnp.where(hidden, drawn, targets)
    return tokens, (tokens != targets).astype(jnp.int32)
