"""A kind of attention that `reformer` does not know trains, decodes and is inspected, given by a record alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import ReformerConfig, ReformerLM, decoding
from reformer.config import ATTENTION_KINDS
from reformer.inspection import measure
from reformer.layers import kinds
from reformer.layers.kinds import Kind
from reformer.models.flops import flops_per_token
from reformer.ops.plan import ByAutodiff, Plan
from tests import small_models as models


@dataclasses.dataclass(frozen=True)
class Strided(Kind):
    """A query sees the latest tokens and every so many-th one before them."""

    window: int = 4
    stride: int = 8

    def shows(self, query, key):
        """As `Kind` has it."""
        distance = query - key
        return (distance < self.window) | (distance % self.stride == 0)

    def keys_per_query(self, config, length):
        """As `Kind` has it."""
        return self.window + length / (2 * self.stride)


def attend(rule, arrays, given):
    """Softmax attention of one row as anyone would write it."""
    position = jnp.arange(len(arrays.query))
    query, key = position[:, None], position[None, :]
    may_attend = (query > key if rule.looks_ahead else query >= key) & rule.shows(query, key)
    if given.mask is not None:
        may_attend &= given.mask[None, :]
    scores = arrays.query @ arrays.key.T * (1 if rule.shared else arrays.query.shape[-1] ** -0.5)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True)) * may_attend
    return weights @ arrays.value / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)


BY_AUTODIFF = ByAutodiff(attend)


@dataclasses.dataclass(frozen=True)
class StridedByAutodiff(Strided):
    """The same with an operation of its own, of which only the value is given."""

    operation: ByAutodiff = BY_AUTODIFF

    def plan(self, config, length, has_dropout):
        """As `Kind` has it."""
        return Plan(self.rule(config, has_dropout), self.operation)


BOTH = pytest.mark.parametrize("kind", ["strided", "strided_by_autodiff"])


@pytest.fixture(autouse=True, scope="module")
def registered():
    """Makes the kinds known to the tests of this file only."""
    kinds.register("strided", Strided())
    kinds.register("strided_by_autodiff", StridedByAutodiff())
    yield
    del ATTENTION_KINDS["strided"], ATTENTION_KINDS["strided_by_autodiff"]


def make(kind, **changes):
    changes = {"attention_pattern": (kind, "local"), "num_layers": 2} | changes
    return dataclasses.replace(models.SMALL, max_length=48, **changes)


@pytest.mark.slow
@BOTH
def test_its_reversible_gradients_equal_ordinary_autodiff(x64, kind):
    config = make(kind, dtype="float64", param_dtype="float64")
    assert models.worst_gradient_error(config, num_keys=1, batch=2) < 1e-10


def test_a_mask_and_an_operation_of_its_own_compute_the_same(x64):
    tokens = models.tokens(make("strided"))
    mask = jnp.arange(48)[None] < jnp.array([[48], [30]])
    logits = []
    for kind in ("strided", "strided_by_autodiff"):
        config = make(kind, dtype="float64", param_dtype="float64")
        params = models.init(make("strided", dtype="float64", param_dtype="float64"))
        logits.append(ReformerLM(config).apply({"params": params}, tokens, mask=mask))
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=1e-10)


@pytest.mark.slow
@BOTH
def test_its_loss_falls(kind):
    config = make(kind)
    loss_and_gradient = jax.jit(jax.value_and_grad(models.mean_loss(config)))
    params, tokens, losses = models.init(config), models.tokens(config), []
    for _ in range(5):
        loss, gradient = loss_and_gradient(params, tokens, jax.random.key(0))
        params = jax.tree.map(lambda x, g: x - 0.3 * g, params, gradient)
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.3, losses


def test_a_token_that_is_not_shown_changes_nothing():
    config = make("strided", attention_pattern=("strided",), num_layers=1, look_ahead=False)
    params, tokens = models.init(config), models.tokens(config, batch=1)
    one, other = (
        ReformerLM(config).apply({"params": params}, x)[0] for x in (tokens, tokens.at[0, 10].set(tokens[0, 10] ^ 1))
    )
    changed = np.flatnonzero(np.abs(one - other).max(axis=-1) > 1e-6)
    assert changed.tolist() == [10, 11, 12, 13, 18, 26, 34, 42]


@BOTH
def test_cached_decoding_equals_the_whole_sequence(kind):
    config = make(kind)
    variables, tokens = {"params": models.init(config)}, models.tokens(config)
    whole = jax.jit(ReformerLM(config).apply)(variables, tokens)
    lengths = np.array([20, 7], np.int32)
    state = decoding.prefill(config, variables, tokens[:, :20], lengths, None, capacity=48)
    step = jax.jit(lambda state, tokens: decoding.advance(config, variables, None, state, tokens))
    for i in range(20):
        expected = np.stack([whole[row, length - 1 + i] for row, length in enumerate(lengths)])
        np.testing.assert_allclose(state.logits, expected, rtol=1e-4, atol=1e-4)
        state = step(state, tokens[jnp.arange(2), state.position])


@BOTH
def test_it_is_inspected(kind):
    config = make(kind, look_ahead=False, share_query_key=False)
    tokens = np.asarray(models.tokens(config, batch=1)[0])
    layer, _ = measure.measure(config, {"params": models.init(config)}, tokens, jax.random.key(0))
    distance = np.subtract.outer(np.arange(48), np.arange(48))
    shown = (distance >= 0) & ((distance < 4) | (distance % 8 == 0))
    assert layer.kind == kind and layer.sorting is None
    assert ((layer.picture > 0) == shown[None]).all()
    np.testing.assert_allclose(layer.picture.sum(axis=-1), 1, rtol=1e-5)
    expected = shown.sum(1) / (distance >= 0).sum(1)  # the share of the keys that full attention would see
    np.testing.assert_allclose(layer.coverage.random, expected.mean(), rtol=1e-5)
    assert (layer.coverage.seen < 1).all() and (layer.coverage.seen > 0.1).all()


def attend_in_documents(rule, arrays, given):
    """`attend` of the only document of a row."""
    return attend(rule, arrays, given._replace(documents=None))


@pytest.mark.slow
def test_an_operation_that_does_not_heed_documents_is_refused_where_there_are_some():
    config = make("strided_by_autodiff")
    params, tokens = models.init(config), models.tokens(config, batch=1)
    run = functools.partial(ReformerLM(config).apply, {"params": params}, tokens)
    with pytest.raises(ValueError, match=r"ByAutodiff\(attend\) does not keep documents apart.*heeds_documents=True"):
        run(documents=jnp.zeros_like(tokens))
    heeding = dataclasses.replace(StridedByAutodiff(), operation=ByAutodiff(attend_in_documents, heeds_documents=True))
    kinds.register("strided_by_autodiff", heeding)
    with_documents = run(documents=jnp.zeros_like(tokens))
    kinds.register("strided_by_autodiff", StridedByAutodiff())
    np.testing.assert_allclose(with_documents, run(), rtol=1e-5, atol=1e-5)


def test_its_operations_are_counted():
    config, full = make("strided", share_query_key=False), make("full", share_query_key=False)
    keys = 48 / 2 - (4 + 48 / 16)
    assert flops_per_token(full, 48) - flops_per_token(config, 48) == 4 * 4 * 16 * keys


def test_a_name_that_nobody_registered_is_refused():
    with pytest.raises(
        ValueError, match=r"must be a tuple of 'full', 'local', 'lsh', 'strided', 'strided_by_autodiff'\."
    ):
        ReformerConfig(attention_pattern=("stridden",))


def test_a_kind_registered_again_takes_the_place_of_the_first():
    config, before = make("strided"), models.tokens(make("strided"))
    params = models.init(config)
    run = jax.jit(ReformerLM(config).apply)
    one = run({"params": params}, before)
    kinds.register("strided", Strided(window=1, stride=2))
    other = run({"params": params}, before)
    kinds.register("strided", Strided())
    assert np.abs(one - other).max() > 1e-3
