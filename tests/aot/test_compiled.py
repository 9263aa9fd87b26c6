"""What XLA makes of a training step for GPUs and TPUs, on a machine that has neither (`make test-aot`)."""

import json
import os
import pathlib
import subprocess

import pytest

from benchmarks import hlo
from benchmarks.targets import TARGETS

ROOT = pathlib.Path(__file__).parents[2]
PYTHONS = {"cuda": ROOT / ".venv-aot-gpu" / "bin" / "python", "tpu": ROOT / ".venv-aot-tpu" / "bin" / "python"}
LENGTH, EMBED_DIM, MLP_DIM = 8192, 256, 1024
FIELDS = {
    "num_layers": 2,
    "attention_pattern": "('local','lsh')",
    "max_length": LENGTH,
    "axial_shape": "(64,128)",
    "axial_dims": "(64,192)",
    "embed_dim": EMBED_DIM,
    "mlp_dim": MLP_DIM,
    "num_heads": 4,
    "head_dim": 64,
    "lsh_chunk_length": 64,
    "local_chunk_length": 64,
    "mlp_chunk_length": 2048,
    "loss_chunk_length": 2048,
    "dtype": "bfloat16",
}
pytestmark = [pytest.mark.aot, pytest.mark.slow]


@pytest.fixture(scope="module")
def compile_step(tmp_path_factory):
    """Returns a function of (target, mesh, batch size, changes of fields) to (row, optimized HLO); each runs once."""
    made = {}

    def run(target, mesh="data=1", batch_size=1, **changes):
        python = PYTHONS[TARGETS[target].platform]
        if not python.exists():
            pytest.skip(f"{python.parents[1].name} is not there: make test-aot makes it")
        key = (target, mesh, batch_size, *changes.items())
        if key not in made:
            made[key] = _run(python, tmp_path_factory.mktemp("aot"), target, mesh, batch_size, FIELDS | changes)
        return made[key]

    return run


def _run(python, folder, target, mesh, batch_size, fields):
    command = ["benchmarks/aot.py", "--target", target, "--config", "configs/enwik8.py:small", "--mesh", mesh]
    command += ["--keep_hlo", folder / "step.hlo"]
    command += [f"--config.{group}.batch_size={batch_size}" for group in ("training", "evaluation")]
    command += [f"--config.model.{name}={value}" for name, value in fields.items()]
    (row,) = _rows(python, folder, command)
    return row, hlo.parse((folder / "step.hlo").read_text()) if "error" not in row else None


def _rows(python, folder, command):
    """What a program appends to the results."""
    environment = {name: x for name, x in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment["BENCHMARK_RESULTS"] = str(folder)
    ended = subprocess.run([python, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return [json.loads(line) for line in (folder / "aot.jsonl").read_text().splitlines()]


@pytest.fixture
def attention_rows(tmp_path):
    """Returns a function from arguments of aot_attention.py to its rows for an H100."""

    def run(*arguments):
        if not PYTHONS["cuda"].exists():
            pytest.skip(".venv-aot-gpu is not there: make test-aot makes it")
        return _rows(PYTHONS["cuda"], tmp_path, ["benchmarks/aot_attention.py", *arguments])

    return run


@pytest.mark.parametrize("target", TARGETS)
def test_a_step_compiles_and_the_trips_of_its_loops_are_known(target, compile_step):
    row, _ = compile_step(target)
    assert "error" not in row
    assert row["unknown_loops"] == 0 and row["kernels"] > 0
    assert 0 < row["scratch_gib"] < 0.5


@pytest.mark.parametrize("target", ["h100", "v5e"])
def test_attention_has_the_blocks_of_an_accelerator(target, compile_step):
    # 2^18 scores at once, a CPU's, would be 16 blocks of attention for each head.
    row, _ = compile_step(target)
    chunks = LENGTH // FIELDS["mlp_chunk_length"]
    num_layers, num_sweeps = FIELDS["num_layers"], 3  # forward, again in the reverse sweep, and its gradients
    assert row["loop_iterations"] < 16 * num_layers * num_sweeps * chunks


@pytest.mark.parametrize("target", ["h100", "v5e"])
def test_nothing_but_embeddings_adds_by_scatter(target, compile_step):
    row, _ = compile_step(target)
    assert set(row["scatter_adds"]) <= {"none"}
    assert sum(row["scatter_adds"].values()) <= 3


@pytest.mark.parametrize(("mesh", "batch_size"), [("data=4", 4), ("data=1,fsdp=4", 4), ("data=1,length=4", 1)])
def test_no_activations_are_gathered(mesh, batch_size, compile_step):
    row, module = compile_step("h100", mesh, batch_size)
    gathers = [x.instruction for x in hlo.run(module).launches if x.instruction.collective == "all-gather"]
    assert gathers or "fsdp" not in mesh
    for gather in gathers:
        for _, sizes, _ in hlo.arrays(gather.shape):
            assert not {LENGTH, LENGTH // 4, FIELDS["mlp_chunk_length"]} & set(sizes), gather.shape
    assert "all-reduce" in row["collectives"]
    assert ("all-to-all" in row["collectives"]) == ("length" in mesh)


@pytest.mark.parametrize("mesh", ["data=4", "data=1,fsdp=4"])
def test_a_mesh_of_examples_has_no_collective_in_a_loop_over_tokens(mesh, compile_step):
    row, _ = compile_step("h100", mesh, 4)
    assert set(row["collectives"]) <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert ("all-gather" in row["collectives"]) == ("fsdp" in mesh)
    for collective in row["collectives"].values():
        assert set(collective["by_loops"]) <= {"none"}


@pytest.mark.parametrize("mesh", ["data=4", "data=1,fsdp=4"])
def test_position_gradients_are_summed_into_their_tables_before_they_cross_devices(mesh, compile_step):
    _, module = compile_step("h100", mesh, 4)
    sums = [x.instruction for x in hlo.run(module).launches if x.instruction.collective == "all-reduce"]
    assert sums
    for one in sums:
        for _, sizes, _ in hlo.arrays(one.shape):
            assert LENGTH not in sizes, one.shape


@pytest.mark.parametrize("target", ["h100", "v5e"])
def test_tokens_are_worked_in_one_piece_unless_told_otherwise(target, compile_step):
    chunked, _ = compile_step(target)
    whole, _ = compile_step(target, mlp_chunk_length=None, loss_chunk_length=None)
    assert whole["kernels"] < 0.7 * chunked["kernels"]
    assert whole["loop_iterations"] < chunked["loop_iterations"] / 2


@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_kernel_keeps_its_numbers_in_registers(head_dim, compile_step):
    row, _ = compile_step("h100", attention_implementation="pallas", head_dim=head_dim)
    kernels = row["pallas_kernels"]
    assert {x["kernel"].partition("__")[0] for x in kernels} == {"forward_chunks", "backward_chunks"}
    assert all(x["spilled_bytes"] == 0 and x["shared_bytes"] <= 227 * 2**10 for x in kernels)


NARROW = {"embed_dim": 256, "mlp_dim": 1024, "axial_dims": "(64,192)", "num_heads": 2, "head_dim": 64, "num_hashes": 1}
WIDE = {"embed_dim": 1024, "mlp_dim": 4096, "axial_dims": "(256,768)", "num_heads": 8, "head_dim": 128, "num_hashes": 2}


@pytest.mark.parametrize(
    ("target", "implementation", "widths", "most_gib"),
    [
        ("h100", "plain", NARROW, 6.7),
        ("v5e", "plain", NARROW, 9.4),
        ("h100", "plain", WIDE, 30.0),
        ("h100", "pallas", WIDE, 28.0),
    ],
)
def test_a_million_tokens_fit(target, implementation, widths, most_gib, compile_step):
    changes = {"num_layers": 12, "max_length": 2**20, "axial_shape": "(1024,1024)", "dropout_rate": 0}
    changes |= {"mlp_chunk_length": None, "loss_chunk_length": None, "attention_implementation": implementation}
    row, _ = compile_step(target, **(changes | widths))
    assert "error" not in row, row["error"]
    assert row["peak_gib"] <= most_gib


SHORT = ("--length", "8192", "--num_heads", "2", "--num_hashes", "2")


@pytest.mark.parametrize(
    ("sizes", "dtype", "most_spilled"),
    [
        (("--chunk_length", "16", "48", "64", "128", "256", "512", "--head_dim", "64", "128"), "bfloat16", 0),
        (("--head_dim", "32", "256"), "bfloat16", 64),
        (("--head_dim", "32", "64", "128"), "float32", 64),
    ],
)
def test_the_kernel_compiles_for_chunks_of_any_length(sizes, dtype, most_spilled, attention_rows):
    for row in attention_rows(*SHORT, *sizes, "--dtype", dtype):
        assert "error" not in row, row["attention"]
        assert len(row["pallas_kernels"]) == 2
        assert max(x["spilled_bytes"] for x in row["pallas_kernels"]) <= most_spilled, row["attention"]


def test_the_bytes_of_the_kernel(attention_rows):
    (row,) = attention_rows()
    assert row["bytes"] <= 18_000
    assert row["loop_iterations"] <= 2, "all rounds are one launch"
