"""Cached decoding: what a causal language model writes after a prompt, token by token.

The prompts go through the model once; every layer keeps what it needs of them (`ops.cache`). From then on a token costs
one pass of a single token, whose time does not depend on what came before it unless there are full attention layers.

Full and local attention compute exactly what the whole forward pass computes, but for Hugging Face's windows of more
chunks than the sequence has: those wrap around and count keys twice. LSH attention cannot: there, tokens that come
later move the sort, unless one chunk holds prompt and continuation. The number of buckets, `config.num_buckets` or that
of `max_length`, and the rotations are the same for prompt and continuation.

No position at or beyond `max_length` has been trained, of no kind of position embedding: sinusoidal ones could be
computed, but what follows would be noise. A text grows longer than that by starting anew with its latest tokens,
`keep_last`, wherever the model is full.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reformer.config import ReformerConfig
from reformer.layers import cached
from reformer.layers import rotations as all_rotations
from reformer.layers.embeddings import Embeddings
from reformer.layers.kinds import KINDS, fix_num_buckets
from reformer.layers.rotations import Rotations
from reformer.models.language import ReformerLM
from reformer.ops import cache as cache_ops
from reformer.ops.cache import Cache
from reformer.ops.ids import check_ids
from reformer.ops.sampling import draw


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn from its logits; the parts apply in this order.

    Attributes:
      num_ids: only the ids below it are drawn, such as the 256 bytes and no reserved id; None = all.
      temperature: the logits are divided by it; 0 takes the most likely id.
      top_k: draw from the so many most likely ids.
      top_p: draw from the fewest most likely ids whose probabilities sum to it.
      stop_id: a row ends with it.
    """

    num_ids: int | None = None
    temperature: float | int = 1.0
    top_k: int | None = None
    top_p: float | int | None = None
    stop_id: int | None = None

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be at least 0, and finite; 0 takes the most likely.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1, or None.")
        for name in ("num_ids", "top_k"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1, or None.")


class State(NamedTuple):
    """Where decoding stands.

    Attributes:
      caches: for every layer of `attention_pattern` those of all blocks, stacked.
      position: of the next token.
      logits: of the next token.
      stopped: the rows that have drawn the stop id.
    """

    caches: tuple[Cache, ...]
    position: Int[Array, " batch"]
    logits: Float[Array, "batch vocab"]
    stopped: Bool[Array, " batch"]


def generate(
    config: ReformerConfig,
    variables: Any,
    prompts: Sequence[Any],
    num_tokens: int,
    *,
    sampling: Sampling = Sampling(),
    rng: PRNGKeyArray,
    tokens_at_once: int = 16,
    keep_last: int | None = None,
) -> Iterator[Int[np.ndarray, "batch tokens"]]:
    """Continues prompts and yields the new tokens as they come.

    The same `rng` gives the same tokens, whatever `tokens_at_once` is. The logits of a row do not depend on the other
    rows (to rounding), so its most likely tokens do not either; a drawn token depends on the row's number too.

    Args:
      config: the model's.
      variables: the model's.
      prompts: ids of every row, at least one, such as the begin id; lengths may differ.
      num_tokens: to be drawn for every row, at most.
      sampling: how to draw.
      rng: of the draws and of the LSH rotations.
      tokens_at_once: how many tokens a compiled loop draws before they are yielded, at most.
      keep_last: where the longest row fills `max_length`, all rows start anew with their first id, such as the begin
        id, and so many of their latest, as windows begin in training; likewise where prompts are longer. None = what
        does not fit is refused.

    Returns:
      An iterator of new ids, up to `tokens_at_once` per row at a time. A row that has ended repeats the stop id; when
      all rows have, so has the iterator.

    Raises:
      ValueError: an empty prompt or none, an id that does not exist, tokens beyond `max_length` without `keep_last`, a
        model that is not causal or has no head for tokens, or numbers that are too small or too large.
    """
    check(config, prompts, num_tokens, sampling, keep_last)
    if "head" not in variables["params"]:
        raise ValueError("variables['params'] has no 'head', which gives the logits of tokens. Take a ReformerLM's.")
    if tokens_at_once < 1:
        raise ValueError(f"tokens_at_once={tokens_at_once} must be at least 1.")
    return _generate(config, variables, prompts, num_tokens, sampling, rng, tokens_at_once, keep_last)


def sample(
    config: ReformerConfig,
    variables: Any,
    prompts: Sequence[Any],
    num_tokens: int,
    *,
    sampling: Sampling = Sampling(),
    rng: PRNGKeyArray,
    keep_last: int | None = None,
) -> Int[np.ndarray, "batch tokens"]:
    """Continues prompts and returns all new tokens at once; arguments and errors as in `generate`."""
    chunks = generate(config, variables, prompts, num_tokens, sampling=sampling, rng=rng, keep_last=keep_last)
    return np.concatenate(list(chunks), axis=1)


def check(
    config: ReformerConfig,
    prompts: Sequence[Any],
    num_tokens: int,
    sampling: Sampling = Sampling(),
    keep_last: int | None = None,
) -> None:
    """Raises ValueError, as `generate` does, where a model cannot continue prompts; arguments as there."""
    if not config.causal:
        raise ValueError("causal=False has no next token. Decode with a model of causal=True.")
    if not len(prompts):
        raise ValueError("prompts=[] must hold at least one prompt. Pass a list of arrays of ids.")
    for i, prompt in enumerate(map(np.asarray, prompts)):
        if prompt.ndim != 1 or not len(prompt) or not np.issubdtype(prompt.dtype, np.integer):
            raise ValueError(f"prompts[{i}] must be a row of at least one integer id, such as the begin id.")
        check_ids(f"prompts[{i}]", prompt, config.vocab_size)
    if num_tokens < 1:
        raise ValueError(f"num_tokens={num_tokens} must be at least 1.")
    if keep_last is not None and not 1 <= keep_last < config.max_length:
        raise ValueError(
            f"keep_last={keep_last} must be from 1 to {config.max_length - 1}, one less than max_length, or None."
        )
    longest = max(map(len, prompts))
    # The last token is drawn, but the model does not see it.
    if keep_last is None and longest + num_tokens - 1 > config.max_length:
        raise ValueError(
            f"A prompt of {longest} tokens and num_tokens={num_tokens} exceed max_length={config.max_length} by more "
            "than the last token. Shorten one of them, or let the text start anew with its latest tokens where the "
            f"model is full, such as keep_last={config.max_length // 2} (--keep_last={config.max_length // 2})."
        )
    if sampling.stop_id is not None and not 0 <= sampling.stop_id < (sampling.num_ids or config.vocab_size):
        raise ValueError(f"stop_id={sampling.stop_id} is never drawn. Choose one of the ids, or None.")


def _generate(config, variables, prompts, num_tokens, sampling, rng, tokens_at_once, keep_last):
    rows = [np.asarray(prompt) for prompt in prompts]
    capacity = min(max(map(len, rows)) + num_tokens, config.max_length + 1)
    hash_rng, draw_rng = jax.random.split(rng)
    rotations = draw_rotations(config, hash_rng)
    first, room, stopped, state = 0, 0, np.zeros(len(rows), bool), None
    while first < num_tokens:
        if not room:
            rows = _cut(rows, config.max_length, keep_last)
            room = capacity - max(map(len, rows))
            state = prefill(config, variables, *_pad(rows), rotations, capacity=capacity)
            state = state._replace(stopped=state.stopped | stopped)
        count = min(tokens_at_once, num_tokens - first, room)
        drawn, state = _draw_some(config, sampling, tokens_at_once, variables, rotations, state, draw_rng, first, count)
        drawn = np.asarray(drawn)[:, :count]
        ended = (drawn == sampling.stop_id).all(axis=0)
        if ended.any():
            yield drawn[:, : ended.argmax() + 1]
            return
        yield drawn
        rows = [np.append(row, new) for row, new in zip(rows, drawn, strict=True)]
        stopped = stopped | (drawn == sampling.stop_id).any(axis=1)
        first, room = first + count, room - count


def _cut(rows: list[np.ndarray], max_length: int, keep_last: int | None) -> list[np.ndarray]:
    """Rows with their first and latest ids only, if one of them is too long for the model."""
    if max(map(len, rows)) <= max_length:
        return rows
    return [row if len(row) <= keep_last + 1 else np.append(row[:1], row[-keep_last:]) for row in rows]


def _pad(rows: list[np.ndarray]) -> tuple[Int[np.ndarray, "batch length"], Int[np.ndarray, " batch"]]:
    """Rows as one array, padded on the right, and their lengths."""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    for padded, row in zip(tokens, rows, strict=True):
        padded[: len(row)] = row
    return tokens, lengths


def draw_rotations(config: ReformerConfig, rng: PRNGKeyArray) -> Rotations | None:
    """Draws the rotations of all LSH layers for decoding; None where there are none."""
    return all_rotations.draw(config, config.max_length, rng) if config.num_lsh_layers else None


@partial(jax.jit, static_argnums=0, static_argnames="capacity")
def prefill(
    config: ReformerConfig,
    variables: Any,
    tokens: Int[Array, "batch length"],
    lengths: Int[Array, " batch"],
    rotations: Rotations | None,
    *,
    capacity: int,
) -> State:
    """Runs the model over whole prompts at once and keeps what the next tokens need.

    Args:
      config: the model's.
      variables: the model's.
      tokens: the prompts, padded on the right.
      lengths: real tokens of every row, at least 1.
      rotations: from `draw_rotations`.
      capacity: tokens that prompt and continuation will have at most.
    """
    config = fix_num_buckets(config, config.max_length)
    plans = [KINDS[kind].cache(config, capacity) for kind in config.attention_pattern]

    def look(i, arrays, plan, given):
        del i, plan, given
        return arrays if arrays.key is None else arrays._replace(query=arrays.key)

    language_model = ReformerLM(config)
    mask = jnp.arange(tokens.shape[1])[None, :] < lengths[:, None]
    streams, seen = language_model.apply(variables, tokens, look, mask=mask, rotations=rotations, method="observe")
    caches = []
    for plan, arrays, of_layer in zip(plans, seen, all_rotations.by_layer(config, rotations), strict=True):
        fill = partial(cache_ops.fill, plan)
        caches.append(jax.lax.map(lambda block, fill=fill: fill(block[0], lengths, block[1]), (arrays, of_layer)))
    last = jax.tree.map(lambda x: jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1), streams)
    logits: Any = language_model.apply(variables, last, method="logits")
    return State(tuple(caches), lengths, logits[:, 0], jnp.zeros(len(lengths), bool))


def advance(
    config: ReformerConfig,
    variables: Any,
    rotations: Rotations | None,
    state: State,
    tokens: Int[Array, " batch"],
    source: cached.SourceCache | None = None,
) -> State:
    """Feeds the next token of every row; the state then holds the logits of the one after it."""
    params, positions = variables["params"], state.position[:, None]
    x: Any = Embeddings(config, parent=None).apply({"params": params["embeddings"]}, tokens[:, None], positions)
    of_layers = all_rotations.by_layer(config, rotations)
    stack = params["stack"]
    streams, caches = cached.run_stack_once(config, stack, x, state.position, state.caches, of_layers, source)
    logits: Any = ReformerLM(config).apply(variables, streams, method="logits")
    return State(caches, state.position + 1, logits[:, 0], state.stopped)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnames="state")
def _draw_some(config, sampling, tokens_at_once, variables, rotations, state, rng, first, count):
    """Draws `count` tokens per row, number `first` and so on, into an array [batch, tokens_at_once]."""

    def draw_one(i, carry):
        drawn, state = carry
        tokens = draw(
            state.logits,
            jax.random.fold_in(rng, first + i),
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            num_ids=sampling.num_ids,
        )
        if sampling.stop_id is not None:
            tokens = jnp.where(state.stopped, sampling.stop_id, tokens)
            state = state._replace(stopped=state.stopped | (tokens == sampling.stop_id))
        return drawn.at[:, i].set(tokens), advance(config, variables, rotations, state, tokens)

    drawn = jnp.zeros((len(state.position), tokens_at_once), jnp.int32)
    return jax.lax.fori_loop(0, count, draw_one, (drawn, state))
