"""Traces of some steps."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from reformer.training.profiling import Profiler, Steps, parse_steps


def test_two_numbers_are_the_first_and_the_last_step():
    assert parse_steps("10:15", num_steps=20, finished_step=0) == Steps(10, 15)
    assert parse_steps("5:5", num_steps=5, finished_step=4) == Steps(5, 5)
    assert parse_steps("", num_steps=20, finished_step=0) is None


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("10", r"--profile_steps=10 must be two numbers"),
        ("a:b", r"must be two numbers, the first and the last step, such as 10:15"),
        ("-1:3", r"must be two numbers"),
        ("15:10", r"--profile_steps=15:10 must name steps from 1 to 20, the first one first"),
        ("0:3", r"must name steps from 1 to 20"),
        ("18:21", r"must name steps from 1 to 20"),
        ("4:9", r"this run continues after step 4. Name later steps, from 5 to 20"),
    ],
)
def test_steps_that_cannot_be_traced_are_one_sentence(steps, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_steps(steps, num_steps=20, finished_step=4)
    assert "\n" not in str(error.value)


def run_steps(profiler, steps):
    multiply = jax.jit(lambda x: x @ x)
    for number in steps:
        profiler.before(number)
        result = multiply(jnp.ones((8, 8)))
        profiler.after(number, result)
    profiler.close()


def test_a_trace_is_written_where_it_is_said_to_be(tmp_path):
    said = []
    run_steps(Profiler(Steps(2, 3), tmp_path, said.append), range(1, 5))
    assert len(said) == 1 and "trace of steps 2 to 3" in said[0]
    path = next(word for word in said[0].split() if word.endswith("perfetto_trace.json.gz"))
    with gzip.open(path) as file:
        assert json.load(file)["traceEvents"]
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_a_run_that_ends_within_the_steps_writes_what_it_has(tmp_path):
    said = []
    run_steps(Profiler(Steps(2, 30), tmp_path, said.append), range(1, 4))
    assert len(said) == 1


def test_without_steps_nothing_is_written(tmp_path):
    run_steps(Profiler(None, tmp_path, print), range(1, 4))
    assert not list(tmp_path.iterdir())
