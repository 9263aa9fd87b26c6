"""A program is made for the devices that it will run on, whatever devices trace it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from reformer import ReformerLM, compiler_options, sharding
from reformer.interop.export import export_logits
from reformer.ops import attention, plan
from tests.interop.test_export import CONFIG

KINDS = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}


@pytest.fixture(autouse=True)
def blocks_of_cpus_are_small(monkeypatch):
    """Even the smallest attention is a loop on a CPU, and none elsewhere."""
    monkeypatch.setattr(plan, "_SCORES_AT_ONCE_CPU", 16)


def num_loops(text):
    return text.count("stablehlo.while")


@pytest.mark.parametrize("platform", KINDS)
def test_the_target_is_that_of_the_context_else_the_default_device(platform):
    with sharding.compiling_for(platform):
        assert sharding.target_platform() == KINDS[platform]
        assert (compiler_options() is None) == (platform != "cpu")
    assert sharding.target_platform() == "cpu"


@pytest.mark.parametrize("device", ["cpu", jax.devices("cpu")[1]])
def test_a_default_device_that_was_set_counts(device, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert sharding.target_platform() == "gpu"
    with jax.default_device(device):
        assert sharding.target_platform() == "cpu"


def test_the_target_is_that_of_the_devices_of_the_mesh():
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    mesh = AbstractMesh((2, 2, 1), sharding.AXES[:3], (AxisType.Auto,) * 3, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert sharding.target_platform() == "gpu"
        with sharding.compiling_for("cpu"):
            assert sharding.target_platform() == "cpu"
            assert jax.sharding.get_abstract_mesh().shape == mesh.shape
    with jax.set_mesh(sharding.make_mesh()), sharding.compiling_for("tpu"):
        assert sharding.target_platform() == "tpu"


def test_what_was_traced_for_one_platform_is_not_lowered_for_another():
    x = jax.ShapeDtypeStruct((1, 64, 2, 4), jnp.float32)
    attend = jax.jit(lambda q, k, v: attention.local_attention(q, k, v, chunk_length=4))
    here = attend.lower(x, x, x).as_text()
    with sharding.compiling_for("cuda"):
        there = attend.lower(x, x, x).as_text()
        named = attend.trace(x, x, x).lower(lowering_platforms=("cuda",)).as_text()
        assert attend.trace(x, x, x).lower().as_text() == there
    assert num_loops(here) > num_loops(there) == num_loops(named)
    assert attend.lower(x, x, x).as_text() == here


@pytest.fixture(scope="module")
def variables():
    return jax.jit(ReformerLM(CONFIG).init, static_argnames="method")(jax.random.key(0), method="create")


def exported(variables, platforms):
    return export.deserialize(bytearray(export_logits(CONFIG, variables, platforms=platforms)))


def test_an_export_has_the_blocks_of_the_platform_that_it_is_for(variables):
    loops = {name: num_loops(exported(variables, [name]).mlir_module()) for name in KINDS}
    assert loops["cpu"] > loops["cuda"] == loops["rocm"] == loops["tpu"]
    assert num_loops(exported(variables, None).mlir_module()) == loops["cpu"]


@pytest.mark.slow
def test_an_export_for_two_platforms_has_the_blocks_of_both_and_runs(variables):
    both = exported(variables, ["cpu", "cuda"])
    loops = [num_loops(exported(variables, [name]).mlir_module()) for name in ("cpu", "cuda")]
    assert both.platforms == ("cpu", "cuda")
    assert num_loops(both.mlir_module()) >= sum(loops)
    tokens = jax.random.randint(jax.random.key(1), (1, 16), 0, 20)
    logits = jax.jit(ReformerLM(CONFIG).apply)(variables, tokens, rngs={"hash": jax.random.key(0)})
    np.testing.assert_allclose(both.call(variables, tokens), logits, rtol=1e-5, atol=1e-5)
