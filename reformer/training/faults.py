"""Kills a run where a test wants it: `REFORMER_KILL=POINT:N` ends the process with SIGKILL at the N-th pass of a point.

`POINT:N:TERM` sends it SIGTERM instead. Without that variable nothing here does anything. The points are `compile` (a
program is lowered, XLA has not begun), `train`, `evaluate`, `restore` and, in the order of a save, `save` (it begins),
`save_some` (one file is written), `save_files` (all are), `save_manifest` (before that is written), `save_commit`
(after it), `save_committed`, `save_delete`.
"""

import collections
import os
import signal
import threading
import time
from pathlib import Path

import jax

VARIABLE = "REFORMER_KILL"
_POINT, _COUNT, _SIGNAL, *_ = [*os.environ.get(VARIABLE, "").split(":"), "", ""]
_passed: collections.Counter = collections.Counter()


def passes(point: str) -> None:
    """Notes that the run passes `point`; the last thing it does if it is to be killed there."""
    _passed[point] += 1
    if point == _POINT and _passed[point] == int(_COUNT or 1):
        os.kill(os.getpid(), signal.Signals[f"SIG{_SIGNAL or 'KILL'}"])


def watch_files(directory: Path) -> None:
    """Passes `save_some` as soon as a file with contents appears in `directory`, looked for by another thread."""
    if _POINT == "save_some":
        threading.Thread(target=_wait_for_file, args=(directory,), daemon=True).start()


def _wait_for_file(directory: Path) -> None:
    while not any(path.is_file() and path.stat().st_size for path in directory.glob("*/**/*")):
        time.sleep(0.0005)
    passes("save_some")


def _on_duration(event: str, duration_secs: float, **kwargs: str | int) -> None:
    del duration_secs, kwargs
    if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
        passes("compile")


if _POINT == "compile":
    jax.monitoring.register_event_duration_secs_listener(_on_duration)
