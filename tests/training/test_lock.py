"""One run at a time in a workdir; the lock goes with the process, whatever happens to it."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys

import pytest

from reformer.training import lock, loop
from tests.training.runs import ROOT

HOLD = "import pathlib, sys, time; from reformer.training import lock\nwith lock.held(pathlib.Path(sys.argv[1])):\n"


def held_by_another_process(workdir):
    code = HOLD + "    print('held', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code, str(workdir)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_workdir_in_use_is_refused_with_host_and_process_until_the_holder_dies(tmp_path, config):
    holder = held_by_another_process(tmp_path)
    message = rf"is in use by another run \(host {socket.gethostname()}, process {holder.pid}\)"
    with pytest.raises(OSError, match=message), lock.held(tmp_path):
        pass
    with pytest.raises(OSError, match=message):
        loop.train(loop.prepare(config, str(tmp_path)))
    assert {path.name for path in tmp_path.iterdir()} == {lock.NAME}
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.held(tmp_path):
        assert (tmp_path / lock.NAME).read_text() == f"host {socket.gethostname()}, process {os.getpid()}\n"


def test_the_lock_of_another_machine_is_waited_for(tmp_path, monkeypatch, capsys):
    holder = held_by_another_process(tmp_path)
    (tmp_path / lock.NAME).write_text("host gone, process 1\n")
    monkeypatch.setattr(lock, "VANISHED_SECONDS", 0.1)
    with pytest.raises(OSError, match=r"in use by another run \(host gone, process 1\)"), lock.held(tmp_path):
        pass
    assert "is locked (host gone, process 1): waiting" in capsys.readouterr().out
    monkeypatch.setattr(lock, "VANISHED_SECONDS", 60.0)
    monkeypatch.setattr(lock.time, "sleep", lambda _: (holder.kill(), holder.wait()))
    with lock.held(tmp_path):
        pass


def test_a_lock_that_was_released_can_be_taken_again(tmp_path):
    for _ in range(2):
        with lock.held(tmp_path):
            pass


def test_without_locks_of_the_file_system_a_run_goes_on_and_says_so(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.held(tmp_path):
        assert "has no locks; start no other run there" in capsys.readouterr().err
