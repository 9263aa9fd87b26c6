"""A run without progress ends; one that is slow, stopped or asleep does not."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reformer.training import damage, watchdog
from reformer.training.watchdog import Watchdog

ROOT = Path(__file__).parent.parent.parent
HANG = """
import sys, time
from reformer.training.watchdog import Watchdog
dog = Watchdog(0.4)
dog.begin("step 7")
print("still in the buffer", end="")
time.sleep(600)
"""


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
    dog.begin("saving", sign=lambda: damage.bytes_below(tmp_path))
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


def test_bytes_below_a_directory_are_those_of_all_its_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"12345")
    (tmp_path / "c").write_bytes(b"12")
    assert damage.bytes_below(tmp_path) == 7
    assert damage.bytes_below(tmp_path / "absent") == 0


def test_a_process_that_hangs_ends_with_a_message_its_stack_and_a_code_of_its_own():
    result = subprocess.run([sys.executable, "-c", HANG], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == watchdog.EXIT_CODE
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
