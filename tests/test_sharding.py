"""Eight simulated devices compute what one computes, and attention never gathers the sequence."""

import contextlib
import dataclasses
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import ReformerLM, sharding
from tests import small_models as models

# float64: a rounding difference in float32 could flip a bucket.
CONFIG = dataclasses.replace(
    models.SMALL,
    max_length=64,
    num_layers=2,
    num_heads=4,
    head_dim=4,
    dropout_rate=0.1,
    dtype="float64",
    param_dtype="float64",
)
MESHES = {
    "data 8": {"data": 8},
    "fsdp 8": {"fsdp": 8, "data": 1},
    "tensor 4 x data 2": {"tensor": 4},
    "fsdp 2 x tensor 2 x data 2": {"fsdp": 2, "tensor": 2},
    "length 4 x data 2": {"tensor": 4, "split_length": True},
    "length 2 x fsdp 4": {"tensor": 2, "fsdp": 4, "split_length": True},
}


def loss_and_gradients(mesh, config=CONFIG):
    params, tokens = models.init(config), models.tokens(config, batch=8)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, sharding.parameter_shardings(params, mesh))
        tokens = jax.device_put(tokens, sharding.batch_sharding(mesh))
        return jax.jit(jax.value_and_grad(models.mean_loss(config)))(params, tokens, jax.random.key(0))


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


def assert_equal(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)


@pytest.fixture(scope="module")
def expected():
    with jax.enable_x64(True):
        return loss_and_gradients(one_device())


# training/test_devices.py trains on the others.
@pytest.mark.parametrize(
    "name",
    [
        "length 4 x data 2",
        pytest.param("length 2 x fsdp 4", marks=pytest.mark.slow),
        pytest.param("fsdp 2 x tensor 2 x data 2", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_equal_one(x64, expected, name):
    assert_equal(loss_and_gradients(sharding.make_mesh(**MESHES[name])), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"reversible": False, "mlp_chunk_length": None, "attention_pattern": ("full",)},
        {"semantics": "huggingface", "position_embedding": "learned", "attention_pattern": ("lsh",)},
    ],
    ids=["ordinary autodiff", "huggingface"],
)
def test_a_length_over_devices_equals_one_device(x64, changes):
    config = dataclasses.replace(CONFIG, num_layers=1, **changes)
    mesh = sharding.make_mesh(1, 1, 2, split_length=True, devices=jax.devices()[:2])
    assert_equal(loss_and_gradients(mesh, config), loss_and_gradients(one_device(), config))


def test_parameters_are_really_sharded():
    mesh = sharding.make_mesh(2, 2, 2)
    params = models.init(models.SMALL)
    placed = jax.device_put(params, sharding.parameter_shardings(params, mesh))
    kernel = placed["stack"]["layer_0"]["feed_forward"]["hidden"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 16 // 2, 24 // 2)


def compile_gradient(mesh, config, batch):
    params = jax.eval_shape(ReformerLM(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    places = sharding.parameter_shardings(params, mesh)
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, places)
    tokens = jax.ShapeDtypeStruct((batch, config.max_length), jnp.int32, sharding=sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(models.mean_loss(config)), out_shardings=places)
        return gradient.lower(params, tokens, jax.random.key(0)).compile()


def results_of(compiled, operation) -> list[list[int]]:
    """The shapes of what all operations of a kind return, on each device."""
    results = re.findall(rf" = (.*?) {operation}(?:-start)?\(", compiled.as_text())
    shapes = [shape for result in results for shape in re.findall(r"\w+\[([\d,]+)\]", result)]
    return [[int(size) for size in shape.split(",")] for shape in shapes]


@pytest.mark.slow
def test_only_parameters_are_gathered_and_nothing_of_a_sequence_moves():
    config = dataclasses.replace(models.SMALL, max_length=64, num_layers=2, mlp_chunk_length=None)
    compiled = compile_gradient(sharding.make_mesh(fsdp=2, tensor=2), config, batch=8)
    operations = ("all-gather", "all-to-all", "collective-permute")
    moved = [int(np.prod(shape)) for operation in operations for shape in results_of(compiled, operation)]
    largest_parameter, activation = 2 * config.embed_dim * config.vocab_size, 8 // 4 * 64 * config.embed_dim
    assert moved and max(moved) <= largest_parameter < activation


@pytest.mark.slow
def test_a_split_length_moves_only_between_length_and_heads_and_takes_a_part_of_the_memory():
    length, width = 2**14, 16
    sizes = {"max_length": length, "num_layers": 1, "num_heads": 4, "head_dim": width // 4}
    config = dataclasses.replace(models.SMALL, attention_pattern=("lsh",), **sizes)

    def compile_on(num_devices):
        mesh = sharding.make_mesh(1, 1, num_devices, split_length=True, devices=jax.devices()[:num_devices])
        return compile_gradient(mesh, config, batch=1)

    one, four = compile_on(1), compile_on(4)
    exchanged = [int(np.prod(shape)) for shape in results_of(four, "all-to-all")]
    assert exchanged and max(exchanged) <= length * width // 4
    gathered = results_of(four, "all-gather") + results_of(four, "collective-permute")
    assert max((int(np.prod(shape)) for shape in gathered), default=0) <= length  # the ids of the tokens
    scratch = [compiled.memory_analysis().temp_size_in_bytes for compiled in (one, four)]
    assert scratch[1] < 0.4 * scratch[0], scratch


def test_an_unknown_axis_name_fails():
    with pytest.raises(ValueError, match="Unknown logical axis 'act_lenght'"):
        sharding.constrain(jnp.zeros((2, 2)), "act_batch", "act_lenght")


@pytest.fixture
def forgetful():
    """Warnings that are given once are given again."""
    sharding._warn_once.cache_clear()
    yield
    sharding._warn_once.cache_clear()


def logits(mesh, *spec, is_set=False):
    """Traces a model on tokens that lie on a mesh."""
    tokens = jax.device_put(models.tokens(models.SMALL, 8), jax.NamedSharding(mesh, jax.P(*spec)))
    model = ReformerLM(dataclasses.replace(models.SMALL, attention_pattern=("local",)))
    with jax.set_mesh(mesh) if is_set else contextlib.nullcontext():
        return jax.jit(model.apply).eval_shape({"params": models.init(model.config)}, tokens)


def auto(*names):
    return jax.make_mesh((8,) + (1,) * (len(names) - 1), names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))


def test_arrays_on_a_mesh_that_is_not_set_give_one_warning_with_the_repair(forgetful):
    with pytest.warns(
        UserWarning, match=r"mesh \(data=8, fsdp=1, tensor=1\) that is not set: .* jax.set_mesh"
    ) as found:
        logits(sharding.make_mesh(), "data")
        logits(sharding.make_mesh(), "data")
    assert len(found) == 1


def test_axes_that_no_rule_knows_give_one_warning_with_the_names(forgetful):
    with pytest.warns(UserWarning, match=r"Mesh axes batch=8 split nothing: .* data, fsdp, tensor, length") as found:
        logits(auto("batch"), "batch", is_set=True)
        sharding.parameter_shardings({"head": {"bias": jnp.zeros(8)}}, auto("batch"))
    assert len(found) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mesh axes model=2 split nothing")
def test_devices_along_an_axis_that_no_rule_knows_do_not_count_twice(x64, expected):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    assert_equal(loss_and_gradients(mesh), expected)


def test_an_own_mesh_with_known_axes_or_one_device_gives_no_warning(forgetful):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits(auto("data"), "data", is_set=True)
        logits(one_device(), "data")


@pytest.mark.parametrize("is_set", [False, True])
def test_explicit_axes_are_refused_with_the_repair(is_set):
    with pytest.raises(
        ValueError, match=r"type Explicit \(data\) must be of type Auto. Make the mesh by reformer.sharding"
    ):
        logits(jax.make_mesh((8,), ("data",)), "data", is_set=is_set)


def test_sizes_are_checked_only_on_a_mesh_with_our_axes():
    with pytest.raises(ValueError, match=r"axes \('data',\) must have data, fsdp and tensor, or data, fsdp and length"):
        sharding.validate(models.SMALL, auto("data"), {}, 64)


def test_a_parameter_without_axes_fails():
    with pytest.raises(ValueError, match="params/new/kernel has no logical axes"):
        sharding.parameter_shardings({"params": {"new": {"kernel": jnp.zeros(2)}}}, sharding.make_mesh())


def test_a_head_of_ones_own_is_whole_on_every_device_and_a_dense_one_is_split():
    head = {"head": {"kernel": jnp.zeros((8, 4)), "mixture": {"kernel": jnp.zeros((8, 4))}}}
    places = sharding.parameter_shardings(head, sharding.make_mesh(fsdp=8))["head"]
    assert places["kernel"].shard_shape((8, 4)) == (1, 4)
    assert places["mixture"]["kernel"].is_fully_replicated


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "sharding.data=3, sharding.fsdp=1, sharding.tensor=1 do not fit 8 devices"),
        ({"fsdp": -1}, "at most one may be -1"),
    ],
)
def test_meshes_that_do_not_fit_the_devices_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(**sizes)


def test_all_sizes_that_do_not_divide_are_named_at_once():
    config = dataclasses.replace(models.SMALL, embed_dim=18, num_heads=3, mlp_dim=25)
    with pytest.raises(ValueError) as error:
        sharding.validate(config, sharding.make_mesh(fsdp=4, tensor=2), {"config.training.batch_size": 6}, 63)
    assert str(error.value).splitlines() == [
        "config.training.batch_size=6 does not divide over config.sharding.data * fsdp=4 devices. Change one of them.",
        "config.model.embed_dim=18 does not divide over config.sharding.fsdp=4 devices. Change one of them.",
        "config.model.num_heads=3 does not divide over config.sharding.tensor=2 devices. Change one of them.",
        "config.model.mlp_dim=25 does not divide over config.sharding.tensor=2 devices. Change one of them.",
    ]


def test_a_length_that_does_not_divide_is_refused_where_it_is_split():
    mesh = sharding.make_mesh(tensor=2, split_length=True)
    with pytest.raises(ValueError, match=r"^config.data.length=63 does not divide over config.sharding.tensor=2 devi"):
        sharding.validate(models.SMALL, mesh, {}, 63)
