"""Test environment: eight simulated CPU devices, strict broadcasting, run-time shape checks.

Everything here must happen before `jax` or `reformer` is imported by a test module.
"""

import gc
import os
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compile time dominates on CPU. Without LLVM's optimizations the HLO and its memory are the same. Without fusion
# emitters XLA compiles four times faster; jaxlib 0.11 no longer knows the flag, and an unknown one aborts.
FASTER_COMPILATION = " --xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith("0.10."):
    FASTER_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8" + FASTER_COMPILATION)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # not the user's: tests/training has one of its own

import jax
import jaxtyping
import pytest
from absl import flags

gc.set_threshold(100_000, 50, 50)  # tracing makes objects by the million, and a collection looks at all of JAX's
jax.config.update("jax_numpy_rank_promotion", "raise")
# Not the config: it checks the types of its own fields, with messages for users.
CHECKED = [
    "reformer." + part
    for part in (
        "commands",
        "data",
        "decoding",
        "inspection",
        "interop",
        "layers",
        "models",
        "ops",
        "reference",
        "tasks",
        "training",
    )
]
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")
flags.FLAGS.mark_as_parsed()


def pytest_configure(config):
    """Register the markers, and make every warning from our own modules an error."""
    config.addinivalue_line("markers", "slow: takes more than two seconds; deselect with -m 'not slow'")
    config.addinivalue_line(
        "markers", "aot: compiles for accelerators that are not there; only `make test-aot` runs it"
    )
    config.addinivalue_line("filterwarnings", r"error:::reformer(\.|$)")


@pytest.fixture
def x64():
    """Run the test in float64."""
    with jax.enable_x64(True):
        yield
