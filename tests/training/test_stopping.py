"""A run that is asked to end does so after the running step, with everything saved, and continues as if it had not."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from reformer.training import loop, stopping
from reformer.training.checkpoint import Checkpoints
from tests.training.runs import ROOT, assert_same_run, run, stop_at_batch


def signalled(stopper, number=signal.SIGTERM):
    """Sends a signal to this process and waits until it has arrived."""
    os.kill(os.getpid(), number)
    assert stopper._signalled.wait(10)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_stops_a_run_after_the_step(number, capsys):
    before = signal.getsignal(number)
    with stopping.Stopping() as stopper:
        stopper.check(3)
        assert not stopper.requested(4)
        signalled(stopper, number)
        assert stopper.requested(4) and stopper.requested(5)
        with pytest.raises(stopping.Stopped, match="stopped after step 3"):
            stopper.check(3)
    assert "stopping after the running step" in capsys.readouterr().err
    assert signal.getsignal(number) is before


def test_an_evaluation_is_cut_between_two_batches():
    with stopping.Stopping() as stopper:
        batches = stopper.watch(["first", "second", "third"])
        iterator = iter(batches)
        assert (next(iterator), len(batches), batches[2]) == ("first", 3, "third")
        signalled(stopper)
        with pytest.raises(stopping.Cut):
            next(iterator)


def test_a_second_interrupt_ends_the_process_at_once_even_if_it_is_busy():
    # Sleeping stands for a compilation: the main thread is inside a call that runs no Python.
    code = "from reformer.training import stopping\nwith stopping.Stopping(): print(flush=True), time.sleep(999)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"import time; {code}"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert b"Ctrl-C twice ends at once" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130


def test_outside_the_main_thread_there_is_nothing_to_listen_to():
    outcome = []

    def enter():
        with stopping.Stopping() as stopper:
            outcome.append(stopper.requested(1))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert outcome == [False]


@pytest.fixture(scope="module")
def unbroken(make_config, tmp_path_factory):
    """A run of 6 steps with evaluations at 4 and 6, and its result."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    return workdir, run(make_config(), workdir)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count", "step"),
    [
        ("training", 3, 3),  # no multiple of anything
        # due for an evaluation, which is left to the next run
        pytest.param("training", 4, 4, marks=pytest.mark.slow),
        ("evaluation", 3, 4),  # in the middle of an evaluation (the first batch is the probe of step 2)
    ],
)
def test_a_stopped_run_continues_as_if_it_had_not_been(unbroken, config, tmp_path, monkeypatch, kind, count, step):
    stop_at_batch(monkeypatch, kind, count)
    with pytest.raises(stopping.Stopped, match=f"stopped after step {step}"):
        run(config, tmp_path / "run")
    monkeypatch.undo()
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        assert checkpoints.latest == step
        assert checkpoints.metrics(step) == {}
    result = run(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", unbroken[0])
    assert result == unbroken[1]
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        assert all(checkpoints.metrics(evaluated) for evaluated in {4, 6} & set(checkpoints.steps))


@pytest.mark.slow
def test_a_signal_in_the_last_evaluation_ends_the_run_with_all_steps_saved(unbroken, config, tmp_path, monkeypatch):
    num_batches = len(loop.prepare(config, str(tmp_path / "run")).data.valid) // 32 // 8
    stop_at_batch(monkeypatch, "evaluation", 1 + 2 * (num_batches + 1) + 2)
    with pytest.raises(stopping.Stopped, match="stopped after step 6"):
        run(config, tmp_path / "run")
    monkeypatch.undo()
    assert run(config, tmp_path / "run") == unbroken[1]
