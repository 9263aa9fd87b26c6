"""Beam search: the target that a trained encoder-decoder finds most likely, for its length, given a source.

The source is read once. Every hypothesis of a source is a row of the decoder's caches (`ops.cache`), which are put in
another order when hypotheses are; the keys and values of the source are shared by all its hypotheses.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reformer.config import derive_encoder_config
from reformer.decoding import sampling
from reformer.layers import cached
from reformer.models.encoder_decoder import ReformerEncoderDecoder
from reformer.ops.ids import check_ids


@dataclasses.dataclass(frozen=True)
class Search:
    """How hypotheses are extended and compared.

    Attributes:
      begin_id: stands before every target.
      end_id: a hypothesis that has it is finished.
      never: ids that are not written, such as padding.
      beam_size: hypotheses of a source that are extended at once; 1 = always the most likely token.
      length_penalty: log-probabilities are divided by ((5 + tokens) / 6) ** length_penalty, the end id counted.
      max_tokens: of a target, the end id counted.

    Source: Wu et al. 2016 (arXiv 1609.08144), section 7, without coverage penalty; the end of the search is
    Tensor2Tensor's: no hypothesis can become better than the worst of `beam_size` finished ones.
    """

    begin_id: int
    end_id: int
    never: tuple[int, ...] = ()
    beam_size: int = 4
    length_penalty: float | int = 0.6
    max_tokens: int = 256

    def __post_init__(self):
        for name in ("beam_size", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if not 0 <= self.length_penalty < float("inf"):
            raise ValueError(f"length_penalty={self.length_penalty} must be at least 0, and finite.")


class Beams(NamedTuple):
    """Where a search stands; `beams` hypotheses of every source, the rest of a row of tokens is zero.

    Attributes:
      state: of the decoder, a row for every hypothesis.
      alive: log-probabilities of the hypotheses that are extended.
      tokens: of these.
      scores: of the best finished ones, -inf where there are fewer.
      finished: their tokens.
    """

    state: sampling.State
    alive: Float[Array, "sources beams"]
    tokens: Int[Array, "sources beams max_tokens"]
    scores: Float[Array, "sources beams"]
    finished: Int[Array, "sources beams max_tokens"]


def search(
    model: ReformerEncoderDecoder,
    variables: Any,
    sources: Sequence[np.ndarray],
    how: Search,
    *,
    rng: PRNGKeyArray,
    padded_length: int | None = None,
) -> tuple[list[np.ndarray], Float[np.ndarray, " sources"]]:
    """Finds a target for every source.

    Args:
      model: with the number of buckets of its training, if it has LSH layers.
      variables: the model's.
      sources: ids, the end id included where the model was trained with it; lengths may differ.
      how: the search.
      rng: of the LSH rotations.
      padded_length: what the sources are padded to; None = the longest. Equal ones need no compilation.

    Returns:
      The ids of each target, up to its end id if it came, and their scores: log-probabilities by the length penalty.

    Raises:
      ValueError: a source is empty or longer than the model reads, `max_tokens` exceeds what it writes, or an id is
        none of the model's.
    """
    longest = max(map(len, sources), default=0)
    length = padded_length or longest
    _check(model, sources, how, length)
    tokens, lengths = np.zeros((len(sources), length), np.int32), np.array([len(source) for source in sources])
    for row, source in zip(tokens, sources, strict=True):
        row[: len(source)] = source
    mask = np.arange(length)[None, :] < lengths[:, None]
    beams = _run(model, how, variables, jnp.asarray(tokens), jnp.asarray(mask), rng)
    targets, scores = jax.device_get(_best(how, beams))
    ended = [np.flatnonzero(target == how.end_id) for target in targets]
    counts = [ends[0] + 1 if len(ends) else how.max_tokens for ends in ended]
    return [target[:count] for target, count in zip(targets, counts, strict=True)], scores


def _check(model: ReformerEncoderDecoder, sources: Sequence[np.ndarray], how: Search, length: int) -> None:
    if not sources or not all(map(len, sources)):
        raise ValueError(f"{len(sources)} sources: there must be one at least, and none may be empty.")
    if length < max(map(len, sources)):
        raise ValueError(f"padded_length={length} is below the {max(map(len, sources))} tokens of a source. Raise it.")
    if how.max_tokens > model.config.max_length:
        raise ValueError(
            f"max_tokens={how.max_tokens} exceeds max_length={model.config.max_length} of the decoder. Lower it."
        )
    encoder = model.encoder_config or derive_encoder_config(model.config)
    for i, source in enumerate(sources):
        check_ids(f"sources[{i}]", source, encoder.vocab_size)
    for name in ("begin_id", "end_id"):
        check_ids(name, np.array(getattr(how, name)), model.config.vocab_size)


@partial(jax.jit, static_argnums=(0, 1))
def _run(
    model: ReformerEncoderDecoder,
    how: Search,
    variables: Any,
    source: Int[Array, "sources length"],
    mask: Bool[Array, "sources length"],
    rng: PRNGKeyArray,
) -> Beams:
    config, decoder = model.config, {"params": variables["params"]["decoder"]}
    of_encoder, of_decoder = jax.random.split(rng)
    encoded: Any = model.apply(variables, source, source_mask=mask, rngs={"hash": of_encoder}, method="encode")
    read = cached.read_source(config, decoder["params"]["stack"], *encoded)
    rotations = sampling.draw_rotations(config, of_decoder)

    def extend(carry):
        number, beams = carry
        previous = jnp.take(beams.tokens, jnp.maximum(number - 1, 0), axis=2)
        fed = jnp.where(number == 0, how.begin_id, previous).reshape(-1)
        state = sampling.advance(config, decoder, rotations, beams.state, fed, read)
        return number + 1, _extend(how, beams._replace(state=state), number)

    start = _start(config, how, len(source))
    return jax.lax.while_loop(lambda carry: _can_improve(how, *carry), extend, (jnp.int32(0), start))[1]


def _start(config, how: Search, num_sources: int) -> Beams:
    num_rows = num_sources * how.beam_size
    dtype = jnp.promote_types(jnp.float32, config.dtype)
    state = sampling.State(
        cached.make_caches(config, num_rows, how.max_tokens),
        jnp.zeros(num_rows, jnp.int32),
        jnp.zeros((num_rows, config.vocab_size), dtype),
        jnp.zeros(num_rows, bool),
    )
    shape = (num_sources, how.beam_size)
    nothing, tokens = jnp.full(shape, -jnp.inf, dtype), jnp.zeros((*shape, how.max_tokens), jnp.int32)
    # All hypotheses are the same at first: only one of them may be extended.
    return Beams(state, nothing.at[:, 0].set(0), tokens, nothing, tokens)


def _can_improve(how: Search, number: Int[Array, ""], beams: Beams) -> Bool[Array, ""]:
    """Whether an unfinished hypothesis may still become better than a finished one that is kept."""
    best_possible = jnp.max(beams.alive, axis=1) / _penalty(how, how.max_tokens)
    worst_finished = jnp.min(beams.scores, axis=1)
    return (number < how.max_tokens) & jnp.any(best_possible > worst_finished)


def _penalty(how: Search, num_tokens):
    return ((5 + num_tokens) / 6) ** how.length_penalty


def _extend(how: Search, beams: Beams, number: Int[Array, ""]) -> Beams:
    """Adds token `number` to every hypothesis and keeps the best, of unfinished and finished ones apart."""
    num_sources, size = beams.alive.shape
    logits = beams.state.logits.reshape(num_sources, size, -1)
    if how.never:
        logits = logits.at[:, :, list(how.never)].set(-jnp.inf)
    total = beams.alive[:, :, None] + jax.nn.log_softmax(logits)
    # Of twice as many, at least half do not end.
    best, index = jax.lax.top_k(total.reshape(num_sources, -1), min(2 * size, total[0].size))
    origin, token = index // logits.shape[-1], (index % logits.shape[-1]).astype(jnp.int32)
    tokens = jnp.take_along_axis(beams.tokens, origin[:, :, None], axis=1).at[:, :, number].set(token)
    ends = token == how.end_id

    alive, chosen = jax.lax.top_k(jnp.where(ends, -jnp.inf, best), size)
    origin = jnp.take_along_axis(origin, chosen, axis=1)
    rows = (jnp.arange(num_sources)[:, None] * size + origin).reshape(-1)
    caches = jax.tree.map(lambda x: jnp.take(x, rows, axis=1), beams.state.caches)

    scores = jnp.where(ends, best / _penalty(how, number + 1), -jnp.inf)
    scores = jnp.concatenate([beams.scores, scores], axis=1)
    finished = jnp.concatenate([beams.finished, tokens], axis=1)
    scores, kept = jax.lax.top_k(scores, size)
    return Beams(
        beams.state._replace(caches=caches),
        alive,
        jnp.take_along_axis(tokens, chosen[:, :, None], axis=1),
        scores,
        jnp.take_along_axis(finished, kept[:, :, None], axis=1),
    )


@partial(jax.jit, static_argnums=0)
def _best(how: Search, beams: Beams) -> tuple[Int[Array, "sources max_tokens"], Float[Array, " sources"]]:
    """The best finished hypothesis of every source; where none is, the most likely unfinished one."""
    has_finished = beams.scores[:, 0] > -jnp.inf
    tokens = jnp.where(has_finished[:, None], beams.finished[:, 0], beams.tokens[:, 0])
    unfinished = beams.alive[:, 0] / _penalty(how, how.max_tokens)
    return tokens, jnp.where(has_finished, beams.scores[:, 0], unfinished)
