"""Beam search: it finds what a search without caches finds, and what stands behind it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import ReformerConfig, ReformerEncoderDecoder
from reformer.decoding.beam import Search, search

CONFIG = ReformerConfig(
    vocab_size=9,
    max_length=32,
    num_layers=2,
    embed_dim=16,
    mlp_dim=24,
    num_heads=2,
    head_dim=8,
    attention_pattern=("full", "local"),  # whose caches are exact
    local_chunk_length=2,
    lsh_chunk_length=4,
    num_buckets=4,
    cross_attention=True,
    position_embedding="sinusoidal",
)
BEGIN, END = 1, 2
SOURCES = [np.array([5, 3, 8, 4, 2], np.int32), np.array([7, 2], np.int32)]
HOW = Search(BEGIN, END, never=(0, BEGIN), beam_size=3, length_penalty=1.0, max_tokens=8)
RNG = jax.random.key(0)


def make(**changes):
    """A model whose logits differ enough to be told apart."""
    model = ReformerEncoderDecoder(dataclasses.replace(CONFIG, **changes))
    params = model.init(jax.random.key(7), method="create")["params"]
    head = params["decoder"]["head"]
    params["decoder"]["head"] = {"kernel": 3 * head["kernel"], "bias": head["bias"]}
    return model, {"params": params}


@pytest.fixture(scope="module")
def made():
    return make()


def penalty(num_tokens, alpha):
    return ((5 + num_tokens) / 6) ** alpha


@pytest.fixture(scope="module")
def log_probabilities(made):
    """A function of a source and targets that runs the whole model, without a cache: [targets, tokens, vocab]."""
    model, variables = made

    @jax.jit
    def logits(source, mask, tokens):
        return jax.nn.log_softmax(
            model.apply(variables, source, tokens, source_mask=mask).at[:, :, jnp.array([0, 1])].set(-1e9)
        )

    def run(source, targets):
        """`targets` are lists of at most 8 ids."""
        rows = np.zeros((64, 8), np.int32)  # one shape, one compilation
        rows[:, 0] = BEGIN
        for row, target in zip(rows, targets, strict=False):
            row[1 : 1 + len(target)] = target[:7]
        padded, mask = np.zeros((64, 5), np.int32), np.zeros((64, 5), bool)
        padded[:, : len(source)], mask[:, : len(source)] = source, True
        return np.asarray(logits(jnp.asarray(padded), jnp.asarray(mask), jnp.asarray(rows)))[: len(targets)]

    return run


def search_without_caches(log_probabilities, source, how):
    """The same search, written as one would explain it."""
    alive, finished = [(0.0, [])], []
    for number in range(how.max_tokens):
        found = log_probabilities(source, [tokens for _, tokens in alive])[:, number]
        longer = [
            (so_far + found[i, token], [*tokens, token])
            for i, (so_far, tokens) in enumerate(alive)
            for token in range(CONFIG.vocab_size)
        ]
        best = sorted(longer, key=lambda pair: -pair[0])[: 2 * how.beam_size]
        alive = [pair for pair in best if pair[1][-1] != END][: how.beam_size]
        ended = [(so_far / penalty(number + 1, how.length_penalty), t) for so_far, t in best if t[-1] == END]
        finished = sorted(finished + ended, key=lambda pair: -pair[0])[: how.beam_size]
        best_possible = alive[0][0] / penalty(how.max_tokens, how.length_penalty)
        if len(finished) == how.beam_size and finished[-1][0] >= best_possible:
            break
    return finished[0] if finished else (alive[0][0] / penalty(how.max_tokens, how.length_penalty), alive[0][1])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"beam_size": 1}, marks=pytest.mark.slow),
        pytest.param({"length_penalty": 0.0, "max_tokens": 3}, marks=pytest.mark.slow),
    ],
)
def test_the_search_finds_what_one_without_caches_finds(made, log_probabilities, changes):
    how = dataclasses.replace(HOW, **changes)
    targets, scores = search(*made, SOURCES, how, rng=RNG)
    for source, target, score in zip(SOURCES, targets, scores, strict=True):
        expected_score, expected = search_without_caches(log_probabilities, source, how)
        assert target.tolist() == expected
        np.testing.assert_allclose(score, expected_score, rtol=1e-4)


@pytest.mark.slow
def test_a_beam_as_wide_as_all_hypotheses_finds_the_best_one(made, log_probabilities):
    usable = [3, 4, 5]
    how = dataclasses.replace(HOW, never=(0, 1, 6, 7, 8), beam_size=40, max_tokens=3)
    every = [[*tokens, END] for count in range(3) for tokens in itertools.product(usable, repeat=count)]
    targets, scores = search(*made, SOURCES[:1], how, rng=RNG)

    model, variables = made
    tokens = np.zeros((len(every), 4), np.int32)
    for row, target in zip(tokens, every, strict=True):
        row[: 1 + len(target)] = [BEGIN, *target]
    source = jnp.asarray(np.tile(SOURCES[0], (len(every), 1)))
    logits = model.apply(variables, source, jnp.asarray(tokens[:, :-1])).at[:, :, jnp.array(how.never)].set(-jnp.inf)
    found = np.asarray(jax.nn.log_softmax(logits))
    totals = [sum(found[i, j, token] for j, token in enumerate(target)) for i, target in enumerate(every)]
    expected = [total / penalty(len(target), 1.0) for total, target in zip(totals, every, strict=True)]
    assert targets[0].tolist() == every[int(np.argmax(expected))]
    np.testing.assert_allclose(scores[0], max(expected), rtol=1e-4)


@pytest.mark.slow
def test_padding_and_the_other_sources_change_nothing(made):
    together, scores = search(*made, SOURCES, HOW, rng=RNG, padded_length=11)
    for source, target, score in zip(SOURCES, together, scores, strict=True):
        (alone,), (its_score,) = search(*made, [source], HOW, rng=RNG)
        assert alone.tolist() == target.tolist()
        np.testing.assert_allclose(its_score, score, rtol=1e-4)


@pytest.mark.slow
def test_a_larger_penalty_gives_longer_targets():
    made, lengths = make(look_ahead=False), []  # random parameters whose targets end at different places
    for length_penalty in (0.0, 5.0):
        targets, _ = search(*made, SOURCES, dataclasses.replace(HOW, length_penalty=length_penalty), rng=RNG)
        lengths.append(sum(map(len, targets)))
    assert lengths[0] < lengths[1]


@pytest.mark.slow
def test_lsh_layers_search_too_and_repeat_with_the_same_rotations():
    made = make(attention_pattern=("local", "lsh"))
    (one, scores), (other, again) = (search(*made, SOURCES, HOW, rng=RNG) for _ in range(2))
    assert [target.tolist() for target in one] == [target.tolist() for target in other]
    assert np.isfinite(scores).all() and (scores == again).all()


@pytest.mark.parametrize(
    ("sources", "changes", "options", "message"),
    [
        ([], {}, {}, "0 sources: there must be one at least"),
        ([np.zeros(0, np.int32)], {}, {}, "none may be empty"),
        (SOURCES, {}, {"padded_length": 4}, "padded_length=4 is below the 5 tokens of a source. Raise it"),
        (SOURCES, {"max_tokens": 33}, {}, "max_tokens=33 exceeds max_length=32 of the decoder. Lower it"),
        ([np.array([5, 9, 2], np.int32)], {}, {}, r"sources\[0\]\[1\]=9 is out of range: vocab_size=9 allows"),
        (SOURCES, {"begin_id": 9}, {}, "begin_id=9 is out of range: vocab_size=9 allows"),
        (SOURCES, {}, {"padded_length": 33}, "A source of 33 tokens must have from 1 to max_length=32"),
    ],
)
def test_what_cannot_be_translated_is_refused(made, sources, changes, options, message):
    with pytest.raises(ValueError, match=message):
        search(*made, sources, dataclasses.replace(HOW, **changes), rng=RNG, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beam_size": 0}, "beam_size=0 must be at least 1"),
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"length_penalty": -0.1}, "length_penalty=-0.1 must be at least 0, and finite"),
    ],
)
def test_searches_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(HOW, **changes)
