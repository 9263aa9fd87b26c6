"""Frozen parameters: which they are, that nothing touches them, and that the gradient of the rest stays right."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from configs import base
from reformer import SequenceClassifier
from reformer.training import state, step
from reformer.training.optimizer import make_optimizer
from reformer.training.state import init_state, param_shapes
from tests import small_models as models

MODEL = SequenceClassifier(
    dataclasses.replace(
        models.SMALL,
        causal=False,
        attention_pattern=("local",),
        num_layers=1,
        max_length=16,
        mlp_chunk_length=None,
    ),
    4,
)
BATCH = {"tokens": models.tokens(MODEL.config, 4), "targets": jnp.arange(4)}
PARAMS = {"embeddings": {"token": 1}, "stack": {"norm": {"scale": 2}, "dense": {"kernel": 3}}, "norm": {"scale": 4}}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), []),
        (("embeddings", "stack"), ["embeddings/token", "stack/dense/kernel", "stack/norm/scale"]),
        (("norm",), ["norm/scale", "stack/norm/scale"]),
        (("^norm",), ["norm/scale"]),
        (("stack/norm",), ["stack/norm/scale"]),
        (("embed", "kern"), []),
        (("embed.*|kernel",), ["embeddings/token", "stack/dense/kernel"]),
    ],
)
def test_a_pattern_matches_whole_names_of_a_path(patterns, expected):
    trained, others = state.split_frozen(PARAMS, patterns)
    assert sorted(traverse_util.flatten_dict(others, sep="/")) == expected
    assert len(jax.tree.leaves(trained)) == 4 - len(expected)
    assert state.merge_frozen(trained, others) == PARAMS


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("embeddings", "layers"), r"'layers' matches no parameter. They lie under embeddings, norm, stack"),
        (("embeddings,stack",), r"'embeddings,stack' matches no parameter.*quote each name"),
        (("embeddings", "stack", "norm"), r"leaves nothing to train"),
    ],
)
def test_patterns_that_match_nothing_or_all_are_refused(patterns, message):
    with pytest.raises(ValueError, match=message):
        state.check_frozen(patterns, list(traverse_util.flatten_dict(PARAMS, sep="/")))


def _update(patterns, optimizer, accumulation_steps=1):
    """A state, the state after one update, and its metrics."""
    before = jax.jit(functools.partial(init_state, MODEL, optimizer, 0, patterns))()
    options = {"model": MODEL, "optimizer": optimizer, "schedule": lambda count: 1.0, "seed": 0}
    options |= {"accumulation_steps": accumulation_steps, "frozen_patterns": patterns}
    return before, *jax.jit(functools.partial(step.train_step, **options))(before, BATCH)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_frozen_parameters_stay_and_have_no_optimizer_state_and_no_decay(name):
    group = base.get_group("optimizer")
    group.update(name=name, weight_decay=0.5, clip_norm=1.0)
    before, after, _ = _update(("embeddings", "stack"), make_optimizer(group, lambda count: 0.1))
    for part in ("embeddings", "stack"):
        jax.tree.map(np.testing.assert_array_equal, after.params[part], before.params[part])
    kernels = [path for path in param_shapes(MODEL) if path.startswith("head") and path.endswith("kernel")]
    old, new = (traverse_util.flatten_dict(state.params, sep="/") for state in (before, after))
    assert len(kernels) == 2 and all((new[path] != old[path]).any() for path in kernels)
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(after.optimizer)}
    assert any("'head'" in path for path in paths)
    assert not any("'embeddings'" in path or "'stack'" in path for path in paths)


@pytest.fixture(scope="module")
def gradients():
    """Of all parameters, by path, of the mean loss."""

    def loss(params):
        nats, weight = MODEL.apply({"params": params}, **BATCH, rngs=step.step_rngs(0, jnp.array(0)), method="loss")
        return nats / weight

    params = jax.jit(functools.partial(MODEL.init, method="create"))(step.split_seed(0)[0])["params"]
    return traverse_util.flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")


@pytest.mark.slow
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_gradients_of_the_rest_are_those_of_the_whole(gradients, accumulation_steps):
    patterns = ("embeddings", "attention", "^norm")
    before, after, metrics = _update(patterns, optax.sgd(1.0), accumulation_steps)
    old, new = (traverse_util.flatten_dict(state.params, sep="/") for state in (before, after))
    trained = {path: gradient for path, gradient in gradients.items() if not state.is_frozen(path, patterns)}
    assert 0 < len(trained) < len(gradients) == len(new)
    for path in gradients:
        expected = trained[path] if path in trained else np.zeros_like(gradients[path])
        np.testing.assert_allclose(old[path] - new[path], expected, atol=1e-5, err_msg=path)
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in trained.values()))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
    assert len(metrics["finite_gradients"]) == len(trained)


def test_a_frozen_stack_below_the_head_is_not_run_backwards():
    params = jax.eval_shape(functools.partial(MODEL.init, method="create"), jax.random.key(0))["params"]
    rngs = step.step_rngs(0, jnp.array(0))

    def program(patterns):
        trained, others = state.split_frozen(params, patterns)
        run = functools.partial(step.accumulate_gradients, MODEL, rngs=rngs, num_micro_batches=1)
        return str(jax.make_jaxpr(run)(trained, BATCH, others=others))

    assert "reverse=True" in program(())
    assert "reverse=True" not in program(("embeddings", "stack"))
