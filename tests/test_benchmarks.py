"""What the benchmarks work out by themselves: operation counts, ratios, crossovers, the longest length, memory."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import attention, electra, memory, peer_gradients, peers, plots, products, record, train_step, vision
from reformer.models.flops import flops_per_token
from tests.small_models import TINY


@pytest.mark.parametrize("length", [1, 2, 100, 4096, 5000, 524_288])
def test_axial_shape_holds_the_length_with_less_than_a_row_to_spare(length):
    first, second = record.axial_shape(length)
    assert length <= first * second < length + first


def test_axial_shape_of_a_power_of_two_is_exact():
    assert record.axial_shape(4096) == (64, 64)
    assert record.axial_shape(8192) == (128, 64)


def test_shapes_of_a_step_are_those_of_its_arguments():
    _, arguments = train_step.make_step(TINY, batch_size=2)
    _, shapes = train_step.abstract_step(TINY, batch_size=2)
    described = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (arguments, shapes)]
    assert described[0] == described[1]


@pytest.mark.slow
def test_products_of_a_step_are_all_the_operations_that_the_model_counts():
    config = train_step.make_config(1024, num_layers=4, dropout_rate=0.0)  # of fewer blocks XLA shares the two passes
    found = products.products(train_step.compile_step(*train_step.abstract_step(config)).as_text())
    operations = sum(product.flops * times for product, times in found.items())
    assert operations == pytest.approx(flops_per_token(config, 1024) * 1024, rel=0.01)
    assert 0 < products.seconds_of(min(found, key=lambda product: product.flops), num_repeats=1) < 1


def test_ratios_are_of_neighbouring_steps():
    results = {"theirs": [(2.0, 100), (6.0, 300), (4.0, 200)], "ours": [(1.0, 10), (2.0, 30), (4.0, 20)]}
    theirs, mine = peers.summarize(results, "theirs")
    assert theirs["speed_over_baseline"] == theirs["ratio_min"] == theirs["ratio_max"] == 1
    assert (mine["ratio_min"], mine["speed_over_baseline"], mine["ratio_max"]) == (1, 2, 3)
    assert (mine["step_seconds"], mine["num_pairs"]) == (2, 3)


def test_crossover_of_two_power_laws_is_where_they_meet():
    linear = {n: 3.0 * n for n in (512, 1024, 2048, 4096)}
    quadratic = {n: 0.002 * n**2 for n in (512, 1024, 2048, 4096, 8192)}
    assert attention.find_crossover(linear, quadratic) == {"between": (1024, 2048), "tokens": 1500}


def test_crossover_is_behind_the_last_length_that_loses():
    found = attention.find_crossover({1: 1.0, 2: 4.0, 4: 1.0}, {1: 2.0, 2: 2.0, 4: 2.0})
    assert found["between"] == (2, 4)


@pytest.mark.parametrize(("seconds", "between"), [(1.0, (None, 512)), (9.0, (1024, None))])
def test_no_crossover_is_made_up_outside_the_measured_lengths(seconds, between):
    found = attention.find_crossover({512: seconds, 1024: seconds, 2048: 0.1}, {512: 2.0, 1024: 2.0})
    assert found == {"between": between, "tokens": None}


def test_very_long_calls_are_repeated_less():
    assert [attention.num_repeats(x) for x in (0.001, 1.0, 59.0, 61.0)] == [21, 20, 5, 2]


@pytest.mark.parametrize("budget", [1e6, 8e7, 2e8])
def test_longest_length_fits_and_three_percent_more_does_not(budget):
    asked = []

    def planned_bytes(length):
        asked.append(length)
        return 5000 + 12 * length

    length = memory.longest_fitting(planned_bytes, budget)
    more = max(length * memory.TOLERANCE, length + memory.UNIT)
    assert 5000 + 12 * length <= budget < 5000 + 12 * more
    assert all(n % memory.UNIT == 0 for n in asked)
    assert len(asked) < 16


def test_no_length_beyond_the_longest_is_planned():
    assert memory.longest_fitting(lambda length: length, memory.LONGEST) == memory.LONGEST
    assert memory.longest_fitting(lambda length: length, memory.LONGEST - 1) < memory.LONGEST


def test_nothing_fits_a_budget_below_that_of_the_shortest_length():
    assert memory.longest_fitting(lambda length: length, memory.UNIT - 1) is None


def test_gradient_errors_are_relative_to_the_reference():
    reference = np.array([3.0, 4.0])
    found = peer_gradients.compare((1.5, np.array([4.0, -3.0])), (1.0, reference))
    assert found == pytest.approx({"loss_difference": 0.5, "relative_error": 2**0.5, "cosine": 0})


def test_peak_memory_counts_what_was_freed_and_not_what_the_parent_held():
    ballast = np.ones(2**25)
    code = "from benchmarks import record as r; a = r.peak_resident_bytes(); x = b'1' * 10**8; del x; "
    code += "print(a, r.peak_resident_bytes())"
    run = subprocess.run([sys.executable, "-c", code], cwd=record.ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())
    assert after - before == pytest.approx(1e8, rel=0.05)
    assert record.peak_resident_bytes() > ballast.nbytes > before


def test_a_benchmark_that_is_killed_leaves_no_process_behind():
    work = "print('started', flush=True); import time; time.sleep(999)"
    code = f"from benchmarks import record; record.in_fresh_process(exec, {work!r})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=record.ROOT, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.kill()
        process.communicate(timeout=60)  # returns when both have let go of the pipe


def test_last_measurement_of_the_same_thing_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    for length, seconds in ((1, 5), (2, 6), (1, 7)):
        record.append("example", {"length": length, "seconds": seconds})
    assert sorted(row["seconds"] for row in plots.read("example", "length")) == [6, 7]
    assert plots.read("absent", "length") == []


def test_the_course_of_a_run_tells_the_seconds_of_training_without_pauses():
    rates = ((10, 50.0), (20, 1.0), (30, 50.0))
    train = [{"split": "train", "step": step, "tokens_per_second": rate} for step, rate in rates]
    scores = {"split": "valid", "bits_per_image": 1.0, "accuracy": 0.25, "top_5_accuracy": 0.5}
    entries = [{"split": "train", "step": 1}, train[0], scores | {"step": 10}, *train[1:], scores | {"step": 30}]
    found = list(vision.course(entries, tokens_per_step=100))
    assert [(entry["step"], entry["seconds"]) for entry in found] == [(10, 20), (30, 60)]
    assert found[0]["nats"] == pytest.approx(np.log(2))


def test_every_device_has_pictures_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    origin = {"machine": "a machine", "num_cores": 2, "jax": "0", "commit": "abc"}
    times = {"milliseconds": 1.0, "ns_per_token_head": 2.0, "dtype": "float32"}
    for device in ("cpu", "Some GPU"):
        for sweep, kind in (("length", "full"), ("length", "lsh-4"), ("num_hashes", "lsh-4")):
            measured = {"sweep": sweep, "kind": kind, "length": 512, "device": device}
            record.append("attention", measured | times | origin)
    names = [name for name, _ in plots.draw_all()]
    assert names == ["benchmark_attention_some_gpu.png", "benchmark_attention_cpu.png"]


def test_masked_models_get_more_steps_than_electra_for_the_same_operations():
    configs = [electra.make_config(name, "tiny", 0, 1000, []) for name in ("electra", "masked")]
    costs = [electra.flops_per_step(config) for config in configs]
    steps = electra.steps_of_equal_cost("masked", "tiny", 1000, [])
    assert 1000 < steps < 2000 and steps * costs[1] == pytest.approx(1000 * costs[0], rel=1e-3)
    assert electra.steps_of_equal_cost("electra", "tiny", 1000, []) == 1000
    assert {config.evaluation.every_steps for config in configs} == {1000}


def test_a_row_of_the_fine_tuning_table_has_its_mean_and_each_seed():
    rows = [{"origin": "scratch", "pre_training": None, "test_accuracy": share} for share in (0.5, 0.625)]
    assert electra.describe(rows) == ["scratch", "-", "-", "56.2", "50.0, 62.5"]
