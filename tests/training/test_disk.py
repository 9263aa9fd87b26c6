"""Disks that are full or may not be written to: one sentence, and earlier checkpoints as they were; and the lock.

One run at a time in a workdir; the lock goes with the process, whatever happens to it.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from reformer.training import disk, loop, manifest, metrics, writers
from reformer.training.checkpoint import Checkpoints
from reformer.training.state import TrainState
from tests.training.runs import ROOT, assert_same, restored, run, save, state_of

HOLD = "import pathlib, sys, time; from reformer.training import disk\nwith disk.locked(pathlib.Path(sys.argv[1])):\n"


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def mount(tmp_path):
    """Returns a function that makes a file system of so many bytes at a path; skips where that is not allowed."""
    with contextlib.ExitStack() as stack:

        def make(num_bytes):
            path = tmp_path / "disk"
            path.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(path)]
            if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
                pytest.skip("file systems may not be mounted here")
            stack.callback(subprocess.run, ["umount", "-l", str(path)])
            return path

        yield make


def large_state(step):
    noise = np.random.default_rng(step).normal(size=50_000).astype(np.float32)  # 200 kB that do not compress
    return TrainState(step=jnp.array(step), params={"kernel": jnp.asarray(noise)}, optimizer={"count": jnp.array(step)})


def fill(directory):
    """Writes a file that takes all space."""
    with contextlib.suppress(OSError), (directory / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_save_onto_a_full_disk_is_an_error_and_the_earlier_checkpoint_stays(mount):
    workdir = mount(2**20)
    with Checkpoints(workdir, keep_latest=2) as checkpoints:
        checkpoints.save(large_state(1), {}, {"step": 1}, None)
        checkpoints.wait()
        fill(workdir)
        checkpoints.save(large_state(2), {}, {"step": 2}, None)
        with pytest.raises(OSError, match=r"could not be saved in .*No space left.* Earlier checkpoints are intact"):
            checkpoints.wait()
    (workdir / "filler").unlink()
    with Checkpoints(workdir, keep_latest=2) as checkpoints:
        assert checkpoints.steps == [1]
        checkpoints.save(large_state(2), {}, {"step": 2}, None)
        checkpoints.wait()
        assert manifest.problem(checkpoints.directory / "2") is None


@pytest.mark.parametrize("when", ["at once", "in the background"])
def test_a_checkpoint_that_could_not_be_replaced_stays(tmp_path, monkeypatch, when):
    save_one(tmp_path)
    with pytest.raises(OSError, match="Earlier checkpoints are intact"), Checkpoints(tmp_path) as checkpoints:
        if when == "at once":
            monkeypatch.setattr(checkpoints._manager, "save", no_space)
        else:
            monkeypatch.setattr(manifest, "write", no_space)
        checkpoints.save(state_of(1), {}, {"step": 1}, 1.0)
        checkpoints.wait()
    monkeypatch.undo()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [1] and checkpoints.problem(1) is None and not checkpoints.metrics(1)


def test_a_save_that_fails_in_the_background_is_noticed_before_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "write", no_space)
    with pytest.raises(OSError, match="Earlier checkpoints are intact"), Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        for _ in range(600):
            checkpoints.raise_if_failed()
            time.sleep(0.1)


@pytest.mark.slow
def test_a_save_that_fails_in_the_background_ends_the_run_which_then_continues(config, tmp_path, monkeypatch):
    calls = iter(range(100))
    write = manifest.write
    monkeypatch.setattr(manifest, "write", lambda path: no_space() if next(calls) == 1 else write(path))
    with pytest.raises(
        OSError, match=r"could not be saved in .*No space left on device. Earlier checkpoints are intact"
    ):
        run(config, tmp_path / "run")
    monkeypatch.undo()
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        assert checkpoints.steps == [2]
    assert run(config, tmp_path / "run")["step"] == 6


@pytest.mark.slow
def test_a_journal_that_cannot_be_written_ends_the_run_with_a_sentence(config, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.Journal, "write", no_space)
    with pytest.raises(
        OSError, match=r"workdir=.* cannot be used: No space left on device.*run the same command again"
    ):
        run(config, tmp_path / "run")


def test_events_that_cannot_be_written_are_an_error_and_not_a_wait_without_end(mount):
    events = writers.TensorBoard(writers.Opening(mount(2**16), 0, {}))
    with pytest.raises(OSError, match="No space left"):
        for step in range(10_000):
            events.write({"split": "train", "step": step, "loss": 1.0})


def test_too_little_space_is_noticed_before_the_first_step(config, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=400_000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"has 0.0004 GB free, and 4 checkpoints of 0.000\d+ GB need"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    save_one(tmp_path / "run")
    leftover = tmp_path / "run" / "checkpoints" / "2.orbax-checkpoint-tmp"
    leftover.mkdir()
    (leftover / "half").write_bytes(bytes(1_000_000))
    assert manifest.bytes_of_leftovers(leftover.parent) == 1_000_000
    disk.check_space(tmp_path, state_of(1), 4, manifest.bytes_of_leftovers(leftover.parent))
    with pytest.raises(OSError, match="4 checkpoints"):
        disk.check_space(tmp_path, state_of(1), 4)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    disk.check_space(tmp_path, state_of(1), 1000)


def save_one(workdir):
    with Checkpoints(workdir) as checkpoints:
        save(checkpoints, 1)
        checkpoints.wait()
        assert_same(restored(checkpoints, 1), state_of(1))


def test_a_workdir_that_is_read_only_is_an_error_before_the_first_step(config, mount):
    workdir = mount(2**20)
    settled = loop.prepare(config, str(workdir / "run"))
    subprocess.run(["mount", "-o", "remount,ro", str(workdir)], check=True)
    with pytest.raises(OSError, match=r"workdir=.*/run cannot be used: Read-only file system \(.*/run\)"):
        loop.train(settled)


def test_a_workdir_below_a_file_is_an_error_before_the_first_step(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be used: Not a directory"):
        run(config, tmp_path / "file" / "run")


def test_bytes_below_a_directory_are_those_of_all_its_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"12345")
    (tmp_path / "c").write_bytes(b"12")
    assert disk.bytes_below(tmp_path) == 7
    assert disk.bytes_below(tmp_path / "absent") == 0


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_program_with_one_sentence_and_the_same_command_continues(text_file, mount):
    workdir = mount(2**21)
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        f"--config={ROOT}/configs/text.py:tiny",
        f"--config.data.path={text_file}",
        f"--workdir={workdir}/run",
        "--config.model.embed_dim=16",
        "--config.model.mlp_dim=16",
        "--config.model.max_length=32",
        "--config.model.num_layers=2",
        "--config.optimizer.name=adafactor",  # whose state is small
        "--config.training.num_steps=300",
        "--config.training.log_every_steps=1",
        "--config.evaluation.every_steps=300",
        "--config.checkpoint.every_steps=5",
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list(Path(workdir).glob("run/checkpoints/[0-9]*/manifest.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    fill(workdir)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    # A save may fail beside the journal: a sentence for each. TensorStore's threads print what they like.
    sentences = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert 1 <= len(sentences) <= 2, errors
    assert all("No space left on device" in sentence and "intact" in sentence for sentence in sentences)
    (workdir / "filler").unlink()
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "continuing after step" in result.stdout
    assert json.loads(result.stdout.splitlines()[-1])["step"] == 300


def test_a_file_system_that_cannot_sync_is_used_all_the_same(tmp_path, monkeypatch):
    def fsync(code):
        def raises(_):
            raise OSError(code, os.strerror(code))

        return raises

    monkeypatch.setattr(disk.os, "fsync", fsync(errno.EINVAL))
    disk.replace(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    monkeypatch.setattr(disk.os, "fsync", fsync(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        disk.replace(tmp_path / "file", b"other")
    assert (tmp_path / "file").read_bytes() == b"content"


def held_by_another_process(workdir):
    code = HOLD + "    print('held', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code, str(workdir)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_workdir_in_use_is_refused_with_host_and_process_until_the_holder_dies(tmp_path, config):
    holder = held_by_another_process(tmp_path)
    message = rf"is in use by another run \(host {socket.gethostname()}, process {holder.pid}\)"
    with pytest.raises(OSError, match=message), disk.locked(tmp_path):
        pass
    with pytest.raises(OSError, match=message):
        loop.train(loop.prepare(config, str(tmp_path)))
    assert {path.name for path in tmp_path.iterdir()} == {disk.LOCK}
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with disk.locked(tmp_path):
        assert (tmp_path / disk.LOCK).read_text() == f"host {socket.gethostname()}, process {os.getpid()}\n"


def test_the_lock_of_another_machine_is_waited_for(tmp_path, monkeypatch, capsys):
    holder = held_by_another_process(tmp_path)
    (tmp_path / disk.LOCK).write_text("host gone, process 1\n")
    monkeypatch.setattr(disk, "VANISHED_SECONDS", 0.1)
    with pytest.raises(OSError, match=r"in use by another run \(host gone, process 1\)"), disk.locked(tmp_path):
        pass
    assert "is locked (host gone, process 1): waiting" in capsys.readouterr().out
    monkeypatch.setattr(disk, "VANISHED_SECONDS", 60.0)
    monkeypatch.setattr(disk.time, "sleep", lambda _: (holder.kill(), holder.wait()))
    with disk.locked(tmp_path):
        pass


def test_a_lock_that_was_released_can_be_taken_again(tmp_path):
    for _ in range(2):
        with disk.locked(tmp_path):
            pass


def test_without_locks_of_the_file_system_a_run_goes_on_and_says_so(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", flock)
    with disk.locked(tmp_path):
        assert "has no locks; start no other run there" in capsys.readouterr().err
