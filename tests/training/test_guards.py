"""Numbers that are not finite end the run or leave the update out, and it is said where they broke; stalls end it too.

A run without progress ends; one that is slow, stopped or asleep does not.
"""

import math
import os
import signal
import subprocess
import sys
import threading
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import sharding
from reformer.training import checkpoint, disk, guards, loop, step
from reformer.training.guards import Guard, Watchdog, parameter_names
from reformer.training.optimizer import make_optimizer, make_schedule
from reformer.training.state import TrainState
from tests.training.runs import ROOT

NAMES = ["embeddings/token", "head/bias", "head/kernel", "norm/scale", "stack/layer_0/a", "stack/layer_1/a"]
GOOD = {"nats": 8.0, "weight": 4.0, "gradient_norm": 1.0}
BROKEN = GOOD | {"gradient_norm": math.nan}
ALL_FINITE = np.ones(len(NAMES), bool)
HANG = """
import sys, time
from reformer.training.guards import Watchdog
dog = Watchdog(0.4)
dog.begin("step 7")
print("still in the buffer", end="")
time.sleep(600)
"""


def test_the_message_holds_the_step_the_losses_before_and_the_parameter_nearest_to_the_loss():
    guard = Guard("byte", NAMES)
    for number in range(1, 13):
        guard.check_step(number, GOOD | {"nats": 4.0 * number * math.log(2)}, ALL_FINITE)
    with pytest.raises(FloatingPointError) as error:
        guard.check_step(13, BROKEN, np.array([False, True, True, True, False, False]))
    message = str(error.value)
    assert "gradient_norm=nan at step 13: training broke down between steps 12 and 13" in message
    assert "Bits per byte before: 5.0000 (step 5), " in message and "12.0000 (step 12)." in message
    assert "3 of 6 parameters are not finite, nearest to the loss: stack/layer_1/a, stack/layer_0/a, emb" in message


def test_many_parameters_are_counted_and_the_first_three_named():
    with pytest.raises(FloatingPointError, match=r"6 of 6 parameters .*: head/bias, head/kernel, norm/scale, \.\.\."):
        Guard("byte", NAMES).check_step(1, BROKEN, ~ALL_FINITE)


def test_heads_of_any_name_and_models_below_a_part_are_ordered_too():
    names = ["decoder/stack/layer_0/a", "encoder/embeddings/token", "head_hidden/bias", "norm/bias"]
    with pytest.raises(
        FloatingPointError, match="nearest to the loss: head_hidden/bias, norm/bias, decoder/stack/layer_0"
    ):
        Guard("window", names).check_step(1, BROKEN, np.zeros(4, bool))


def test_a_finite_gradient_is_not_blamed():
    with pytest.raises(FloatingPointError, match=r"Bits per byte before: none.\nEvery gradient is finite"):
        Guard("byte", NAMES).check_step(1, BROKEN, ALL_FINITE)


def test_so_many_updates_in_a_row_are_skipped_and_one_more_is_an_error():
    guard = Guard("byte", NAMES, max_skipped=2)
    for number in (1, 2):
        assert guard.check_step(number, BROKEN, ALL_FINITE).startswith("gradient_norm=nan")
    assert guard.check_step(3, GOOD, ALL_FINITE) == "" and guard.num_skipped == 0
    guard.check_step(4, BROKEN, ALL_FINITE)
    guard.check_step(5, BROKEN, ALL_FINITE)
    with pytest.raises(FloatingPointError, match=r"at step 6: .* 2 updates before it were skipped"):
        guard.check_step(6, BROKEN, ALL_FINITE)


def test_a_validation_loss_that_is_not_finite_is_an_error_even_where_updates_may_be_skipped():
    guard = Guard("dim", NAMES, max_skipped=5)
    guard.check_validation(3, 1.0)
    with pytest.raises(FloatingPointError, match=r"validation loss=inf at step 4"):
        guard.check_validation(4, math.inf)


class Linear(nn.Module):
    """Loss: the sum over a batch of tokens times the first parameter; the second one has no part in it."""

    def loss(self, tokens, targets, **_):
        params = self.variables["params"]
        return (tokens * params["head"]["kernel"][None]).sum(), jnp.float32(tokens.size)


def update(config, tokens, can_skip, mesh=None):
    """Returns the state before an update on `tokens`, the state after it, and the metrics."""
    config.optimizer.name = "adamw"
    schedule = make_schedule(config.optimizer, 10)
    optimizer = make_optimizer(config.optimizer, schedule)
    params = {"head": {"kernel": jnp.ones(4)}, "norm": {"scale": jnp.ones(4)}}
    before = TrainState(step=jnp.array(3), params=params, optimizer=optimizer.init(params))
    options = {"model": Linear(), "optimizer": optimizer, "schedule": schedule, "accumulation_steps": 1, "seed": 0}

    def run(state, tokens):
        return step.train_step(state, {"tokens": tokens, "targets": tokens}, can_skip=can_skip, **options)

    return before, *jax.jit(run)(before, tokens)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_skipped_update_changes_nothing_but_the_step(config, bad):
    tokens = jnp.ones((8, 4)).at[5, 2].set(bad)
    before, after, metrics = update(config, tokens, can_skip=True)
    assert after.step == 4
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    jax.tree.map(np.testing.assert_array_equal, after.optimizer, before.optimizer)
    assert metrics["finite_gradients"].tolist() == [False, True]
    assert parameter_names(before.params) == ["head/kernel", "norm/scale"]


def test_an_update_that_may_be_skipped_and_is_good_is_the_same_update(config):
    tokens = jnp.linspace(0, 1, 32).reshape(8, 4)
    one, other = (update(config, tokens, can_skip)[1] for can_skip in (False, True))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_without_skipping_a_bad_update_reaches_the_parameters(config):
    _, after, metrics = update(config, jnp.full((8, 4), math.nan), can_skip=False)
    assert not np.isfinite(after.params["head"]["kernel"]).any()
    assert not np.isfinite(metrics["gradient_norm"])


def test_every_device_skips_when_the_examples_of_one_are_bad(config):
    mesh = sharding.make_mesh(data=8)
    tokens = jax.device_put(jnp.ones((8, 4)).at[5].set(math.nan), jax.NamedSharding(mesh, jax.P("data")))
    with jax.set_mesh(mesh):
        before, after, _ = update(config, tokens, can_skip=True)
    copies = [np.asarray(shard.data) for shard in after.params["head"]["kernel"].addressable_shards]
    assert len(copies) == 8
    for copy in copies:
        np.testing.assert_array_equal(copy, before.params["head"]["kernel"])


@pytest.mark.slow
def test_a_run_skips_says_so_and_ends_when_there_are_too_many(config, tmp_path, capsys):
    config.optimizer.update(name="adamw", learning_rate=1e38, warmup_steps=0, clip_norm=None)
    config.model.update(attention_pattern=("local",), num_layers=1)
    config.training.max_skipped_updates = 2
    with pytest.raises(FloatingPointError, match=r"2 updates before it were skipped"):
        loop.train(loop.prepare(config, str(tmp_path / "run")))
    assert "update skipped, 2 in a row" in capsys.readouterr().out
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count('"split": "skipped"') == 2
    _, variables = checkpoint.load(tmp_path / "run")  # of a state before the bad updates
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


@pytest.fixture
def dog():
    """A watchdog that fires after 0.4 s into its list `said`."""
    said = []
    fired = threading.Event()
    watching = Watchdog(0.4, on_stall=lambda message: (said.append(message), fired.set()))
    watching.said, watching.fired = said, fired
    yield watching
    watching.close()


def test_a_stall_is_reported_with_what_was_running_and_since_when(dog):
    dog.begin("step 7")
    assert dog.fired.wait(30)
    assert len(dog.said) == 1
    assert "no progress for 0 s in step 7, which began at " in dog.said[0]
    assert "--config.training.stall_seconds" in dog.said[0]


def test_progress_keeps_it_quiet(dog):
    for number in range(20):
        dog.begin(f"step {number}")
        time.sleep(0.05)
    assert not dog.said


def test_a_long_save_that_grows_keeps_it_quiet_and_one_that_does_not_is_reported(dog, tmp_path):
    dog.begin("saving", sign=lambda: disk.bytes_below(tmp_path))
    for number in range(20):
        (tmp_path / str(number)).write_text("x")
        time.sleep(0.05)
    assert not dog.said
    assert dog.fired.wait(30)


def test_a_sign_that_hangs_does_not_keep_it_quiet(dog):
    dog.begin("saving", sign=threading.Event().wait)
    assert dog.fired.wait(30)


def test_compilation_has_its_own_allowance(dog):
    dog.begin("the compilation", compiles=True)
    assert not dog.fired.wait(1)


def test_none_switches_it_off():
    before = threading.active_count()
    Watchdog(None).begin("step 1")
    assert threading.active_count() == before


def test_a_closed_one_is_silent(dog):
    dog.begin("step 7")
    dog.close()
    assert not dog.fired.wait(1)


def test_a_process_that_hangs_ends_with_a_message_its_stack_and_a_code_of_its_own():
    result = subprocess.run([sys.executable, "-c", HANG], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == guards.STALL_EXIT_CODE
    assert result.stdout == "still in the buffer"
    assert "in step 7" in result.stderr and "time.sleep" not in result.stderr.splitlines()[0]
    assert 'File "<string>", line 7 in <module>' in result.stderr


@pytest.mark.slow
def test_a_process_that_was_stopped_has_its_whole_allowance_left():
    code = HANG.replace("0.4", "4").replace("600", "2")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(8)
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(timeout=300) == 0
