"""Cached decoding: its logits are the model's, as far as they can be, and what is drawn follows them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import ReformerConfig, ReformerLM, decoding
from reformer.decoding.sampling import Sampling
from reformer.layers.kinds import KINDS, fix_num_buckets
from reformer.ops.hashing import hash_vectors
from reformer.ops.sampling import keep_top_k, keep_top_p
from tests import small_models as models

CONFIG = ReformerConfig(
    vocab_size=50,
    max_length=48,
    num_layers=2,
    embed_dim=16,
    mlp_dim=24,
    num_heads=2,
    head_dim=8,
    lsh_chunk_length=8,
    local_chunk_length=8,
)
PROMPTS = np.array([1, 11, 28], np.int32)  # of one token, and beyond one chunk and the window
GREEDY = Sampling(temperature=0.0)


def make(**changes):
    return dataclasses.replace(CONFIG, **changes)


@functools.cache
def variables(config):
    """Parameters with large logits, so that the most likely token is clear."""
    params = models.init(config)
    return {"params": params | {"head": params["head"] | {"kernel": 4 * params["head"]["kernel"]}}}


def rotations(config):
    return decoding.draw_rotations(config, jax.random.key(1))


def step_by_step(config, tokens, lengths, num_steps, rotations):
    """The logits [batch, num_steps, vocab] of cached decoding along given tokens, from prompts of some lengths."""
    of_model = variables(config)

    @jax.jit
    def run(tokens, state):
        def step(state, _):
            tokens_now = jnp.take_along_axis(tokens, state.position[:, None], axis=1)[:, 0]
            return decoding.advance(config, of_model, rotations, state, tokens_now), state.logits

        return jnp.swapaxes(jax.lax.scan(step, state, None, length=num_steps)[1], 0, 1)

    prompts = tokens[:, : max(lengths)]
    state = decoding.prefill(config, of_model, prompts, lengths, rotations, capacity=config.max_length)
    return run(tokens, state)


def assert_steps_equal_the_whole_sequence(config):
    tokens, num_steps = models.tokens(config, batch=3), config.max_length - max(PROMPTS)
    of_model, of_layers = variables(config), rotations(config)
    fixed = fix_num_buckets(config, config.max_length)
    per_layer = None if of_layers is None else list(of_layers)
    whole = jax.jit(lambda tokens: ReformerLM(fixed).apply(of_model, tokens, rotations=per_layer))(tokens)
    expected = np.stack([row[n - 1 : n - 1 + num_steps] for row, n in zip(whole, PROMPTS, strict=True)])
    logits = step_by_step(config, tokens, PROMPTS, num_steps, of_layers)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "position_embedding",
    ["axial", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("learned", "sinusoidal"))],
)
def test_logits_of_full_and_local_layers_equal_those_of_the_whole_sequence(position_embedding):
    config = make(attention_pattern=("local", "full"), position_embedding=position_embedding)
    assert_steps_equal_the_whole_sequence(config)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"share_query_key": True}, {"semantics": "huggingface"}], ids=str)
def test_logits_equal_those_of_the_whole_sequence_under_other_rules(changes):
    assert_steps_equal_the_whole_sequence(make(attention_pattern=("local", "full"), **changes))


@pytest.mark.slow
@pytest.mark.parametrize("num_hashes", [1, 2])
def test_logits_of_one_lsh_layer_within_its_buckets_equal_those_of_the_whole_sequence(num_hashes):
    config = make(
        attention_pattern=("lsh",),
        num_layers=1,
        num_hashes=num_hashes,
        lsh_chunk_length=32,
        num_buckets=8,
        lsh_within_bucket=True,
    )
    assert_every_bucket_fits_into_the_window(config)
    assert_steps_equal_the_whole_sequence(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"num_hashes": 2, "lsh_correct_duplicates": True},
        {"lsh_within_bucket": True, "lsh_num_chunks_before": 0},
    ],
    ids=str,
)
def test_logits_of_lsh_layers_equal_those_of_the_whole_sequence_where_one_chunk_holds_it(changes):
    """Nothing there depends on later tokens: every query sees all before it, or all of its bucket."""
    assert_steps_equal_the_whole_sequence(
        make(attention_pattern=("lsh",), num_layers=1, max_length=32, lsh_chunk_length=32, num_buckets=4, **changes)
    )


@pytest.mark.parametrize(("max_length", "capacity"), [(20, 21), (1024, 20), (1024, 32), (32, 33)])
def test_a_sequence_in_one_chunk_needs_no_table_of_buckets(max_length, capacity):
    config = make(max_length=max_length, lsh_chunk_length=32, num_buckets=4)
    assert KINDS["lsh"].cache(config, capacity).table is None
    assert KINDS["lsh"].cache(dataclasses.replace(config, max_length=1024), 33).table is not None


def assert_every_bucket_fits_into_the_window(config):
    def look(i, arrays, plan, given):
        return arrays.query

    tokens, of_layers = models.tokens(config, batch=3), rotations(config)
    model = ReformerLM(config)
    _, (query,) = model.apply(variables(config), tokens, look, rotations=list(of_layers), method="observe")
    found = np.asarray(hash_vectors(query[0], of_layers[0], (config.num_buckets,)))
    assert max(np.bincount(row).max() for row in found.reshape(-1, config.max_length)) <= config.lsh_chunk_length


@pytest.mark.parametrize("pattern", [pytest.param(("local", "full"), marks=pytest.mark.slow), ("lsh",)])
def test_a_prompt_at_once_gives_the_logits_of_single_tokens(pattern):
    config = make(attention_pattern=pattern, num_layers=len(pattern))
    tokens = models.tokens(config, batch=2)
    logits = [step_by_step(config, tokens, np.full(2, n, np.int32), 48 - n, rotations(config)) for n in (1, 30)]
    # Of an LSH layer the last logits of the prompt itself come from the whole forward pass, the later ones do not.
    np.testing.assert_allclose(logits[0][:, 30:], logits[1][:, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_logits_of_a_batch_equal_those_of_its_rows_alone():
    config = make(attention_pattern=("local", "full", "lsh"), num_layers=3)
    tokens, of_layers = models.tokens(config, batch=3), rotations(config)
    together = step_by_step(config, tokens, PROMPTS, 16, of_layers)
    alone = [step_by_step(config, tokens[i : i + 1], PROMPTS[i : i + 1], 16, of_layers)[0] for i in range(3)]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_step_of_local_and_lsh_layers_copies_no_cache():
    config = make(max_length=2**14, position_embedding="sinusoidal", num_buckets=(8, 16))
    lengths = jnp.ones(1, jnp.int32)
    of_model = jax.eval_shape(ReformerLM(config).init, jax.random.key(0), lengths[:, None])
    of_layers = jax.eval_shape(lambda: rotations(config))

    def prefill(variables, rotations):
        return decoding.prefill(config, variables, lengths[:, None], lengths, rotations, capacity=2**14)

    state = jax.eval_shape(prefill, of_model, of_layers)
    step = jax.jit(lambda *args: decoding.advance(config, *args), donate_argnums=2)
    compiled = step.lower(of_model, of_layers, state, lengths).compile().memory_analysis()
    one_layer = 4 * state.caches[1].key.size / config.num_blocks
    assert compiled.temp_size_in_bytes < 0.1 * one_layer
    assert compiled.alias_size_in_bytes > 2 * one_layer  # the caches of keys and values are updated in place


def prompts(*lengths):
    return [np.asarray(models.tokens(CONFIG, batch=1, seed=n))[0, :n] for n in lengths]


def sample(prompts, num_tokens, *, seed=0, config=CONFIG, **kwargs):
    return decoding.sample(config, variables(config), prompts, num_tokens, rng=jax.random.key(seed), **kwargs)


@pytest.mark.slow
def test_temperature_zero_takes_the_most_likely_token_each_time():
    config = make(attention_pattern=("full",))
    prompt, drawn = prompts(5), sample(prompts(5), 12, config=config, sampling=GREEDY)
    written = np.concatenate([prompt[0], drawn[0]])
    logits = jax.jit(ReformerLM(config).apply)(variables(config), written[None])
    np.testing.assert_array_equal(logits[0].argmax(axis=-1)[4:-1], drawn[0])


@pytest.mark.slow
def test_the_most_likely_tokens_of_a_row_do_not_depend_on_the_others():
    together = sample(prompts(3, 20, 1), 12, sampling=GREEDY)
    alone = [sample(prompts(n), 12, sampling=GREEDY)[0] for n in (3, 20, 1)]
    np.testing.assert_array_equal(together, np.stack(alone))


@pytest.mark.slow
def test_the_same_key_gives_the_same_tokens_and_another_does_not():
    first = sample(prompts(3, 4), 20, seed=0)
    np.testing.assert_array_equal(first, sample(prompts(3, 4), 20, seed=0))
    assert (first != sample(prompts(3, 4), 20, seed=1)).any()
    assert (first[0] != first[1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("tokens_at_once", [1, 7, 64])
def test_how_many_tokens_come_at_once_does_not_matter(tokens_at_once):
    rng, expected = jax.random.key(0), sample(prompts(3, 4), 20)
    chunks = decoding.generate(CONFIG, variables(CONFIG), prompts(3, 4), 20, rng=rng, tokens_at_once=tokens_at_once)
    chunks = list(chunks)
    assert [chunk.shape[1] for chunk in chunks][:-1] == [tokens_at_once] * (len(chunks) - 1)
    np.testing.assert_array_equal(np.concatenate(chunks, axis=1), expected)


@pytest.mark.parametrize("tokens_at_once", [pytest.param(3, marks=pytest.mark.slow), 16])
def test_a_row_ends_with_the_stop_id_and_all_rows_end_the_generation(tokens_at_once):
    free = sample(prompts(3, 4), 40)
    stop = next(i for i in free[0] if i in free[1] and list(free[0]).index(i) != list(free[1]).index(i))
    ends = [list(row).index(stop) for row in free]
    expected = np.where(np.arange(40) > np.array(ends)[:, None], stop, free)[:, : max(ends) + 1]
    options = {"sampling": Sampling(stop_id=int(stop)), "rng": jax.random.key(0), "tokens_at_once": tokens_at_once}
    chunks = decoding.generate(CONFIG, variables(CONFIG), prompts(3, 4), 40, **options)
    np.testing.assert_array_equal(np.concatenate(list(chunks), axis=1), expected)


@pytest.mark.slow
def test_ids_from_num_ids_on_are_never_drawn():
    drawn = sample(prompts(3) * 8, 30, sampling=Sampling(num_ids=5, temperature=100.0))
    assert set(np.unique(drawn)) == set(range(5))


@pytest.mark.slow
def test_a_text_longer_than_the_model_starts_anew_with_its_latest_tokens():
    """As one would do it by hand: each part is a prompt of its own, of the first id and the latest ones."""
    config, given = make(attention_pattern=("local",)), prompts(46, 20)
    drawn = sample(given, 40, config=config, sampling=GREEDY, keep_last=30)
    written, done = given, 0
    for count in (3, 18, 18, 1):  # what the longest row leaves of 48 + 1
        part = sample(written, count, config=config, sampling=GREEDY)
        np.testing.assert_array_equal(drawn[:, done : done + count], part)
        whole = [np.append(row, new) for row, new in zip(written, part, strict=True)]
        written = [row if len(row) <= 31 else np.append(row[:1], row[-30:]) for row in whole]
        done += count


@pytest.mark.slow
def test_a_row_that_has_ended_stays_so_where_the_others_start_anew():
    config, given = make(attention_pattern=("local",)), prompts(3, 60)
    free = sample(given, 100, config=config, keep_last=20)
    stop = next(i for i in free[0][:20] if i not in free[1])
    options = {"sampling": Sampling(stop_id=int(stop)), "keep_last": 20}
    ended = sample(given, 100, config=config, **options)
    end = list(free[0]).index(stop)
    np.testing.assert_array_equal(ended[0], np.where(np.arange(100) > end, stop, free[0]))
    np.testing.assert_array_equal(ended[1], free[1])


def reference_kept(logits, k=None, p=None):
    """Which ids top-k and top-p leave, one row, no equal logits."""
    order = np.argsort(-logits)
    probabilities = np.exp(logits[order] - logits.max()) / np.exp(logits - logits.max()).sum()
    count = k if k else 1 + np.searchsorted(np.cumsum(probabilities), p)
    return np.isin(np.arange(len(logits)), order[:count])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("limits", [{"k": 1}, {"k": 7}, {"k": 50}, {"p": 1e-9}, {"p": 0.3}, {"p": 0.9}, {"p": 1.0}])
def test_top_k_and_top_p_keep_the_most_likely_ids(limits):
    logits = np.random.default_rng(0).normal(size=(20, 50)) * 3
    keep = keep_top_k if "k" in limits else keep_top_p
    kept = np.isfinite(keep(jnp.asarray(logits), *limits.values()))
    expected = np.stack([reference_kept(row, **limits) for row in logits])
    if limits == {"p": 1.0}:  # the last, tiny probabilities are below rounding
        expected = np.ones_like(expected)
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.slow
def test_top_k_of_one_is_the_most_likely_token():
    expected = sample(prompts(3, 4), 10, sampling=GREEDY)
    np.testing.assert_array_equal(sample(prompts(3, 4), 10, sampling=Sampling(top_k=1)), expected)
    np.testing.assert_array_equal(sample(prompts(3, 4), 10, sampling=Sampling(top_p=1e-6)), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "must hold at least one prompt"),
        ({"prompts": [np.zeros(0, np.int32)]}, r"prompts\[0\] must be a row of at least one integer id"),
        ({"prompts": [np.array([0.5])]}, r"prompts\[0\] must be a row"),
        ({"prompts": [np.array([3]), np.array([50])]}, r"prompts\[1\]\[0\]=50 is out of range: .* allows 0 to 49"),
        ({"num_tokens": 0}, "num_tokens=0 must be at least 1"),
        ({"num_tokens": 47}, "prompt of 3 tokens and num_tokens=47 exceed max_length=48"),
        ({"keep_last": 48}, "keep_last=48 must be from 1 to 47, one less than max_length, or None"),
        ({"keep_last": 0}, "keep_last=0 must be from 1 to 47"),
        ({"tokens_at_once": 0}, "tokens_at_once=0 must be at least 1"),
        ({"config": make(causal=False)}, "causal=False has no next token"),
        ({"sampling": Sampling(stop_id=50)}, "stop_id=50 is never drawn"),
        ({"sampling": Sampling(num_ids=9, stop_id=9)}, "stop_id=9 is never drawn"),
    ],
)
def test_impossible_requests_are_named_before_anything_runs(changes, message):
    request = {
        "config": CONFIG,
        "variables": variables(CONFIG),
        "prompts": prompts(3),
        "num_tokens": 4,
        "rng": jax.random.key(0),
    }
    with pytest.raises(ValueError, match=message):
        decoding.generate(**request | changes)


def test_a_model_without_a_head_for_tokens_is_refused():
    headless = {"params": {name: part for name, part in models.init(CONFIG).items() if name != "head"}}
    with pytest.raises(ValueError, match="has no 'head'"):
        decoding.generate(CONFIG, headless, prompts(3), 4, rng=jax.random.key(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be at least 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"num_ids": 0}, "num_ids=0 must be at least 1"),
    ],
)
def test_impossible_sampling_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)
