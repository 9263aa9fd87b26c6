"""One run in several processes equals the run in one, and a process that ends takes the others with it."""

import json
import time
from unittest import mock

import pytest

from reformer.commands import generate, train
from reformer.training import distributed
from tests.processes import Processes, small_run

ROUNDING = 1e-5


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    bits = "bits_per_byte"
    return {(record["split"], record["step"]): record[bits] for record in records if bits in record}


@pytest.mark.slow
def test_two_processes_equal_one_and_continue_each_others_run(text_file, tmp_path):
    def train_here(num_steps, workdir):
        flags = small_run(text_file, model__dropout_rate=0.1, training__num_steps=num_steps)
        train.main([*flags, f"--workdir={tmp_path}/{workdir}"])

    train_here(9, "unbroken")
    train_here(3, "moved")
    flags = small_run(text_file, model__dropout_rate=0.1, training__num_steps=6)
    with Processes(tmp_path / "logs", *flags, f"--workdir={tmp_path}/moved") as processes:
        first, second = processes.wait()
    assert (first.code, second.code) == (0, 0), (first, second)
    assert "4 devices (data 4, fsdp 1, tensor 1); continuing after step 3" in first.out
    assert "step" not in second.out
    with Processes(tmp_path / "eval", f"--workdir={tmp_path}/moved", program="eval.py") as processes:
        evaluation, second = processes.wait()
    assert (evaluation.code, second.code) == (0, 0), (evaluation, second)
    assert "bits_per_byte" not in second.out  # Gloo prints there
    train_here(9, "moved")
    expected, found = losses(tmp_path / "unbroken"), losses(tmp_path / "moved")
    assert len(expected) == 9 + 3
    assert found == pytest.approx(expected, abs=ROUNDING)  # without a flipped bucket, as it happens
    evaluated = json.loads(evaluation.out.splitlines()[-1])
    assert evaluated["step"] == 6 and evaluated["bits_per_byte"] == pytest.approx(found["valid", 6], abs=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_within_a_minute(text_file, tmp_path, victim):
    flags = small_run(text_file, training__num_steps=100_000, evaluation__every_steps=100_000)
    with Processes(tmp_path / "logs", *flags, "--silent_seconds=5", f"--workdir={tmp_path}/run") as processes:
        processes.wait_for("step 20/")
        processes.signal(victim)
        killed_at = time.monotonic()
        ended = processes.wait()
    assert time.monotonic() - killed_at < 60
    left = ended[1 - victim]
    assert left.code == distributed.EXIT_LOST_PROCESS
    (sentence,) = [line for line in left.err.splitlines() if line.startswith("error: ")]
    assert f"process {victim}" in sentence and "died" in sentence and "Start all processes again" in sentence
    assert "Traceback" not in left.err


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(text_file, tmp_path):
    paths = ((), (f"--config.data.path={tmp_path}/nothing",))
    flags = [*small_run(text_file), f"--workdir={tmp_path}/run"]
    with Processes(tmp_path / "logs", *flags, distinct=paths) as processes:
        first, second = processes.wait()
    assert second.code == 1 and "nothing" in second.err
    assert first.code == distributed.EXIT_LOST_PROCESS
    assert "process 1 of 2 failed; its own output says why" in first.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes=2"], r"^--coordinator and --process_id missing: .* belong together. Give all three"),
        (["--coordinator=localhost", "--num_processes=2", "--process_id=0"], "must be the HOST:PORT of process 0"),
        (["--coordinator=a:70000", "--num_processes=2", "--process_id=0"], "must be the HOST:PORT of process 0"),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "--process_id=2 must be from 0 to one less"),
        (["--coordinator=a:1", "--num_processes=0", "--process_id=0"], "--num_processes=0, which must be"),
        (["--num_processes=two"], "invalid int value: 'two'"),
        (["--silent_seconds=1"], "--silent_seconds=1 must be at least 5"),
    ],
)
def test_wrong_flags_are_one_sentence(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message) as error:
        train.parse([f"--workdir={tmp_path}", *flags])
    assert "\n" not in str(error.value)


def test_a_process_that_cannot_reach_the_watch_does_not_leave_the_first_one_waiting(monkeypatch):
    monkeypatch.setattr(distributed, "CONNECT_SECONDS", 0.1)
    state = mock.Mock(spec=distributed.distributed.State, process_id=0, num_processes=2)
    with pytest.raises(TimeoutError):
        distributed._connect_peers(state)


def test_generating_in_several_processes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^--num_processes=2: this program runs in one process"):
        generate.parse([f"--workdir={tmp_path}", "--coordinator=a:1", "--num_processes=2", "--process_id=0"])


def test_a_cluster_with_a_single_task_starts_as_a_laptop_does(monkeypatch):
    names = {"JOB_ID": "7", "STEP_NODELIST": "n1", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}
    for name, value in names.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert distributed._num_detected_processes() == 1
    distributed.initialize()
    assert not distributed.jax.distributed.is_initialized()
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert distributed._num_detected_processes() == 4
