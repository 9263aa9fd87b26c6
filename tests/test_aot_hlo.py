"""What is read from optimized HLO is what a program of that text does."""

import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from benchmarks import aot, hlo, hlo_cost, hlo_summary, ptx, targets

GPU, TPU = targets.TARGETS["h100"], targets.TARGETS["v5e"]


def optimized(function, *shapes, dtype=jnp.float32):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)).compile().as_text()


def entry(*lines):
    """Text of a program with one computation, its last line the result."""
    body = "".join(f"  {line}\n" for line in lines[:-1])
    return f"HloModule m\n\nENTRY %main (p: f32[4]) -> f32[4] {{\n{body}  ROOT {lines[-1]}\n}}\n"


def cost(text, name):
    module = hlo.parse(text)
    return hlo_cost.Costs(module).of(module.entry, module.computations[module.entry][name])


def test_a_line_is_taken_apart():
    line = (
        "%f.1 = (f32[8]{0:T(128)}, /*index=1*/bf16[2,3]{1,0}) fusion(%a.2, %b), kind=kLoop, calls=%body.3, "
        'metadata={op_name="jit(step)/while/body/add" source_line=1}'
    )
    (found,) = hlo.parse(entry(line)).computations["main"].values()
    assert (found.name, found.opcode, found.operands, found.is_root) == ("f.1", "fusion", ("a.2", "b"), True)
    assert found.called("calls") == "body.3" and found.source == "jit(step)/while/body/add"
    assert hlo.parts(found.shape) == ["f32[8]{0:T(128)}", "/*index=1*/bf16[2,3]{1,0}"]
    assert hlo.arrays(found.shape)[1][:2] == ("bf16", (2, 3))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[2,3]{1,0}", 24),
        ("bf16[5]", 10),
        ("pred[]", 1),
        ("s4[8]", 4),
        ("f8e4m3fn[7]", 7),
        ("(u32[], (c64[2]{0}, token[]))", 20),
        ("f32[1024]{0:T(1024)S(1)}", 0),
    ],
)
def test_bytes_are_those_in_main_memory(shape, size):
    assert hlo.num_bytes(shape) == size


def test_a_single_number_is_one():
    assert hlo.is_scalar("s32[]{:T(128)}")
    assert not hlo.is_scalar("(s32[], s32[])") and not hlo.is_scalar("s32[1]")


def nested(x):
    def inner(c, _):
        return jnp.sin(c @ c), None

    def outer(c, _):
        return jax.lax.scan(inner, c, length=5)[0] + 1, None

    return jax.lax.scan(outer, x, length=7)[0]


def test_trips_of_loops_within_loops_are_multiplied():
    module = hlo.parse(optimized(nested, (16, 16)))
    run = hlo.run(module)
    assert (run.num_iterations, run.num_unknown_loops) == (7 + 7 * 5, 0)
    found = [hlo_cost.Costs(module).of(launch.computation, launch.instruction) for launch in run.launches]
    flops = sum(launch.times * x.flops32 for launch, x in zip(run.launches, found, strict=True))
    assert flops == 7 * 5 * 2 * 16**3
    assert {launch.trips for launch in run.launches} <= {(), (7,), (7, 5)}


def test_a_loop_whose_trips_are_unknown_counts_once_and_is_said():
    module = hlo.parse(optimized(lambda x: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x), (4,)))
    run = hlo.run(module)
    assert (run.num_iterations, run.num_unknown_loops) == (1, 1)


LOOP = """HloModule m

%condition (c: (s32[])) -> pred[] {
  %c = (s32[]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %n = s32[] constant(12)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%body (b: (s32[])) -> (s32[]) {
  %b = (s32[]) parameter(0)
  %j = s32[] get-tuple-element(%b), index=0
  %next = s32[] add(%j, %j)
  ROOT %r = (s32[]) tuple(%next)
}

ENTRY %main (p: (s32[])) -> (s32[]) {
  %p = (s32[]) parameter(0)
  ROOT %w = (s32[]) while(%p), condition=%condition, body=%body
}
"""


def test_trips_that_xla_does_not_write_down_are_those_of_the_condition():
    assert hlo.run(hlo.parse(LOOP)).num_iterations == 12
    assert hlo.run(hlo.parse(LOOP.replace("constant(12)", "parameter(1)"))).num_unknown_loops == 1
    known = ', backend_config={"known_trip_count":{"n":"3"}}'
    assert hlo.run(hlo.parse(LOOP.replace("body=%body", "body=%body" + known))).num_iterations == 3


def test_of_a_conditional_the_branch_that_launches_most_counts():
    branches = [
        "%little (a: f32[4]) -> f32[4] {\n  ROOT %a = f32[4] parameter(0)\n}\n",
        "%much (z: f32[4]) -> f32[4] {\n  %z = f32[4] parameter(0)\n  ROOT %y = f32[4] sine(%z)\n}\n",
    ]
    for attributes in ("branch_computations={%little, %much}", "true_computation=%much, false_computation=%little"):
        text = "\n".join(branches) + entry(f"%c = f32[4] conditional(%p, %q, %q), {attributes}")
        assert [launch.instruction.name for launch in hlo.run(hlo.parse(text)).launches] == ["y"]


@pytest.mark.parametrize(
    ("kinds", "depth"), [(((3, 8, 16), (16, 5)), 16), (((8, 16), (16, 5)), 16), (((4, 6, 16), (4, 16, 2)), 16)]
)
def test_operations_of_a_product(kinds, depth):
    text = optimized(jnp.matmul, *kinds)
    result = jax.eval_shape(jnp.matmul, *(jax.ShapeDtypeStruct(kind, jnp.float32) for kind in kinds)).shape
    found = hlo_summary.summarize(text, GPU)
    module = hlo.parse(text)
    costs = hlo_cost.Costs(module)
    flops = sum(costs.of(x.computation, x.instruction).flops32 * x.times for x in hlo.run(module).launches)
    assert flops == 2 * depth * math.prod(result)
    assert found["tflop"] == round(flops / 1e12, 3)


@pytest.mark.parametrize(
    ("shapes", "attributes", "flops"),
    [
        # [8, 16] x [16, 5], as a TPU has it.
        (("bf16[8,16]", "bf16[16,5]", "bf16[8,5]"), "dim_labels=bf_io->bf", 2 * 8 * 16 * 5),
        # Five products [8, 16] x [16, 3]: a window of five of which one place is no gap.
        (
            ("bf16[5,8,16]", "bf16[5,16,3]", "bf16[5,8,3]"),
            "window={size=5 stride=4 pad=0_0 lhs_dilate=5}, dim_labels=0bf_0io->0bf",
            2 * 5 * 8 * 16 * 3,
        ),
        # A window of two over three numbers, padded at both ends: 1 + 2 + 2 + 1 products.
        (
            ("f32[2,3,7]", "f32[2,7,4]", "f32[2,4,4]"),
            "window={size=2 pad=1_1}, dim_labels=b0f_0io->b0f",
            2 * 2 * 4 * 7 * (1 + 2 + 2 + 1),
        ),
    ],
)
def test_operations_of_a_convolution_leave_padding_out(shapes, attributes, flops):
    image, kernel, result = shapes
    lines = [f"%x = {image} parameter(0)", f"%k = {kernel} parameter(1)"]
    found = cost(entry(*lines, f"%c = {result} convolution(%x, %k), {attributes}"), "c")
    assert found.flops + found.flops32 == flops


def test_a_library_product_tells_its_depth():
    config = 'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}'
    lines = ["%a = bf16[8,16] parameter(0)", "%b = bf16[16,5] parameter(1)"]
    call = f'%c = (f32[8,5], s8[64]) custom-call(%a, %b), custom_call_target="__cublas$gemm", {config}'
    assert cost(entry(*lines, call), "c").flops == 2 * 8 * 16 * 5


FUSED = """HloModule m

%fused (x: f32[100,8], y: f32[1,8], i: s32[]) -> f32[100,8] {
  %x = f32[100,8]{1,0} parameter(0)
  %y = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %slice = f32[1,8]{1,0} dynamic-slice(%x, %i, %zero), dynamic_slice_sizes={1,8}
  %sum = f32[1,8]{1,0} add(%slice, %y)
  ROOT %update = f32[100,8]{1,0} dynamic-update-slice(%x, %sum, %i, %zero)
}

ENTRY %main (a: f32[100,8], b: f32[1,8], j: s32[]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[1,8]{1,0} parameter(1)
  %j = s32[] parameter(2)
  ROOT %f = f32[100,8]{1,0} fusion(%a, %b, %j), kind=kLoop, calls=%fused
}
"""


def test_a_fusion_that_updates_a_slice_in_place_touches_the_slice_only():
    row = 8 * 4
    assert cost(FUSED, "f").bytes == row + row + 4 + row  # slice, summand, index; written
    text = re.sub(r".*dynamic-slice.*\n", "", FUSED).replace("add(%slice, %y)", "add(%y, %y)")
    assert cost(text, "f").bytes == row + 4 + row


def test_a_fusion_reads_what_it_does_not_slice_whole():
    text = FUSED.replace(
        "ROOT %update = f32[100,8]{1,0} dynamic-update-slice(%x, %sum, %i, %zero)", "ROOT %e = f32[100,8]{1,0} sine(%x)"
    )
    assert cost(text, "f").bytes == 800 * 4 + 32 + 4 + 800 * 4


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("%r = f32[2,8] dynamic-slice(%x, %i), dynamic_slice_sizes={2,8}", 2 * 64 + 4),
        ("%r = f32[100,8] dynamic-update-slice(%x, %y, %i, %i)", 2 * 32),
        ("%r = f32[3,8] gather(%x, %j), slice_sizes={1,8}", 2 * 96 + 12),
        ("%r = f32[100,8] scatter(%x, %j, %z), to_apply=%add", 3 * 96 + 12),
        ("%r = f32[100,8] sine(%x)", 2 * 3200),
        ("%r = (f32[100,8], f32[100,8]{1,0:S(1)}, u32[]) copy-start(%x)", 3200),
    ],
)
def test_bytes_of_an_instruction_by_itself(line, size):
    given = ["%x = f32[100,8] parameter(0)", "%y = f32[1,8] parameter(1)", "%z = f32[3,8] parameter(2)"]
    given += ["%i = s32[] parameter(3)", "%j = s32[3] parameter(4)"]
    assert cost(entry(*given, line), "r").bytes == size


def test_scatter_adds_are_counted_by_the_loops_around_them():
    def add(x, i):
        return jax.lax.scan(lambda c, _: (c.at[i.astype(jnp.int32)].add(1.0), None), x, length=6)[0]

    text = optimized(add, (64,), (8,))
    if "scatter(" in text:  # XLA on a CPU may write a scatter as a loop
        assert sum(hlo_summary.summarize(text, GPU)["scatter_adds"].values()) == 6
    added = "%add (a: f32[], b: f32[]) -> f32[] {\n  %a = f32[] parameter(0)\n  ROOT %s = f32[] add(%a, %a)\n}\n\n"
    lines = ["%x = f32[9] parameter(0)", "%j = s32[3] parameter(1)", "%z = f32[3] parameter(2)"]
    text = added + entry(*lines, "%r = f32[9] scatter(%x, %j, %z), to_apply=%add")
    assert hlo_summary.summarize(text, GPU)["scatter_adds"] == {"none": 1}
    assert hlo_summary.summarize(text.replace("add(%a, %a)", "copy(%a)"), GPU)["scatter_adds"] == {}


@pytest.mark.parametrize(
    ("line", "kind", "gb"),
    [
        ("%r = f32[1000] all-reduce(%x), to_apply=%add", "all-reduce", 4e-6),
        ("%r = f32[4000] all-gather(%x), dimensions={0}", "all-gather", 16e-6),
        ("%r = (f32[1000], f32[4000]) all-gather-start(%x), dimensions={0}", "all-gather", 16e-6),
        ("%r = f32[1000] all-reduce-start(%x), to_apply=%add", "all-reduce", 4e-6),
        ("%r = f32[250] reduce-scatter(%x), dimensions={0}", "reduce-scatter", 4e-6),
        ("%r = (f32[1000], f32[1000], u32[], u32[]) collective-permute-start(%x)", "collective-permute", 4e-6),
        ("%r = (f32[1000]) all-to-all(%x)", "all-to-all", 4e-6),
    ],
)
def test_bytes_of_a_collective_are_the_larger_of_what_goes_in_and_out(line, kind, gb):
    module = hlo.parse(entry("%x = f32[1000] parameter(0)", line))
    body = module.computations["main"]
    assert body["r"].collective == kind
    assert hlo_cost.collective_bytes(body["r"], [body["x"].shape]) / 1e9 == pytest.approx(gb, rel=1e-2)


def test_collectives_tell_the_loops_that_they_stand_in():
    text = LOOP.replace("%next = s32[] add(%j, %j)", "%next = s32[] all-reduce(%j), to_apply=%sum")
    found = hlo_summary.summarize(text, GPU)["collectives"]
    assert found == {"all-reduce": {"number": 12, "gb": 0.0, "by_loops": {"12": 12}}}
    done = entry("%s = f32[4] all-reduce-start(%p)", "%d = f32[4] all-reduce-done(%s)")
    assert hlo_summary.summarize(done.replace("%s =", "%p = f32[4] parameter(0)\n  %s =", 1), GPU)["kernels"] == 1


def test_a_sort_on_a_gpu_is_a_kernel_for_each_distance_beyond_a_block():
    module = hlo.parse(entry("%x = u32[3,8192] parameter(0)", "%s = u32[3,8192] sort(%x), dimensions={1}"))
    sort = module.computations["main"]["s"]
    # 2^13 numbers: blocks of 2^11 first; merging to 2^12 takes a first comparison and the block, to 2^13 one more.
    assert hlo_cost.num_kernels(module, sort, on_gpu=True) == 1 + 2 + 3
    assert hlo_cost.num_kernels(module, sort, on_gpu=False) == 1


def test_single_numbers_are_no_operations_of_a_tpu():
    text = entry("%x = s32[] parameter(0)", "%y = s32[] add(%x, %x)")
    assert [hlo_summary.summarize(text, target)["kernels"] for target in (GPU, TPU)] == [1, 0]


def test_a_kernel_takes_the_longest_of_launch_memory_and_products():
    target = targets.Target("cuda", 1e9, 1e12, 1e-6, {}, float32_share=0.5)
    lines = ["%a = f32[1000,1000] parameter(0)", "%b = f32[1000,1000] parameter(1)"]
    cases = {
        "%r = f32[1000,1000] add(%a, %b)": 12.0,  # 12 MB
        "%r = f32[1000,1000] dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}": 12.0,  # 4 ms of products
        "%r = s32[1] iota(), iota_dimension=0": 0.001,
    }
    for line, expected in cases.items():
        found = hlo_summary.summarize(entry(*lines, line), target)
        assert found["estimated_ms"] == pytest.approx(expected, abs=0.005), line
        assert found["short_kernels"] == float(expected < 0.003)


def test_pallas_kernels_are_found_by_their_names():
    call = (
        '%r = f32[4] custom-call(%p), custom_call_target="__gpu$xla.gpu.triton", backend_config={name = "mine", x = 1}'
    )
    text = entry("%p = f32[4] parameter(0)", call)
    assert hlo_summary.summarize(text, GPU)["pallas_kernels"] == {"mine": 1}


def test_bytes_that_a_pallas_kernel_tells_count_instead_of_its_operands():
    call = '%r = f32[1000] custom-call(%p), custom_call_target="__gpu$xla.gpu.triton", backend_config={name = "mine"'
    for told, expected in (("", 0.01), (r', serialized_metadata = "{\22bytes_accessed\22: \2230000000\22}"', 0.03)):
        found = hlo_summary.summarize(entry("%p = f32[2499000] parameter(0)", call + told + "}"), GPU)
        assert found["gb"] == expected


SAID = """ptxas info    : Compiling entry function 'mine' for 'sm_90a'
ptxas info    : Function properties for mine
    16 bytes stack frame, 24 bytes spill stores, 28 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
ptxas info    : Function properties for mine__1
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers
"""


def test_registers_and_spills_are_those_of_the_kernel():
    assert ptx.of_kernel(SAID, "mine") == {"registers": 255, "spilled_bytes": 28}
    assert ptx.of_kernel(SAID, "mine__1") == {"registers": 32, "spilled_bytes": 0}


def test_the_peak_of_a_tpu_is_its_own_and_that_of_a_gpu_arrays_and_scratch():
    sizes = {"argument_size_in_bytes": 3, "output_size_in_bytes": 2, "alias_size_in_bytes": 1}
    sizes |= {"temp_size_in_bytes": 10, "peak_memory_in_bytes": 9}
    plan = SimpleNamespace(**{name: size * 2**30 for name, size in sizes.items()})
    compiled = SimpleNamespace(memory_analysis=lambda: plan)
    assert aot.memory(compiled, "cuda") == {"scratch_gib": 10, "peak_gib": 14}
    assert aot.memory(compiled, "tpu") == {"scratch_gib": 5, "peak_gib": 9}


def test_a_mesh_of_the_command_line():
    assert aot.parse_mesh("data=1,fsdp=4") == {"data": 1, "fsdp": 4}
    for wrong in ("fsdp", "fsdp=0", "model=2", "tensor=2,length=2"):
        with pytest.raises(ValueError, match="--mesh="):
            aot.parse_mesh(wrong)


def test_a_report_says_that_it_estimates():
    row = {"target": "v5e", "config": "c.py", "overrides": [], "mesh": {"data": 1}}
    assert "Does not compile: too large" in aot.report(row | {"error": "too large"})
    found = hlo_summary.summarize(optimized(nested, (16, 16)), TPU)
    found["pallas_kernels"] = []
    headings = [
        line for line in aot.report(row | {"scratch_gib": 1, "peak_gib": 2} | found).splitlines() if "#" in line
    ]
    assert len(headings) == 2 and all("(estimate)" in line for line in headings)
