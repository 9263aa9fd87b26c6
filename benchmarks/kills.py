"""Trains as train.py does, and is killed on the way: REFORMER_KILL=POINT:N python benchmarks/kills.py [as train.py].

The process ends with SIGKILL at the N-th pass of a point; `POINT:N:TERM` sends it SIGTERM instead. The points are
`compile` (a program is lowered, XLA has not begun), `train`, `evaluate` (a batch of either begins), `restore`
(something is read from a checkpoint, or was) and, in the order of a save, `save` (it begins), `save_some` (one file is
written), `save_files` (all are), `save_manifest` (before that is written), `save_commit` (after it), `save_committed`,
`save_delete` (what is no longer kept).
"""

import collections
import functools
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import orbax.checkpoint as ocp

from reformer.commands import train
from reformer.training import checkpoint, manifest, profiling, stopping

VARIABLE = "REFORMER_KILL"


class Kill:
    """Counts the passes of each point, and kills this process when its own is reached."""

    def __init__(self, wanted: str):
        """Takes `POINT:N` or `POINT:N:SIGNAL`; '' = never."""
        self.point, count, number, *_ = [*wanted.split(":"), "", ""]
        self._count, self._signal = int(count or 1), signal.Signals[f"SIG{number or 'KILL'}"]
        self._passed: collections.Counter = collections.Counter()

    def passes(self, point: str) -> None:
        """Notes that the run passes `point`; the last thing it does if it is to be killed there."""
        self._passed[point] += 1
        if point == self.point and self._passed[point] == self._count:
            os.kill(os.getpid(), self._signal)


def install(kill: Kill) -> None:
    """Lets the runs of this process pass every point."""
    _surround(profiling.Profiler, "before", lambda *_: kill.passes("train"))
    _surround(ocp.CheckpointManager, "restore", *[lambda *_: kill.passes("restore")] * 2)
    _surround(manifest, "write", lambda *_: kill.passes("save_manifest"), lambda *_: kill.passes("save_commit"))
    _surround(shutil, "rmtree", lambda path, *_: Path(path).name == checkpoint.BIN and kill.passes("save_delete"))
    _surround(checkpoint.Checkpoints, "save", lambda checkpoints, *_: (checkpoints.wait(), kill.passes("save")))
    _pass_compilations(kill)
    _pass_batches(kill)
    _pass_files(kill)


def _surround(owner: Any, name: str, before: Callable[..., Any], after: Callable[..., Any] = lambda *_: None) -> None:
    """Lets a function of a class or module begin and end with other calls, of the same positional arguments."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def surrounded(*args, **kwargs):
        before(*args)
        result = function(*args, **kwargs)
        after(*args)
        return result

    setattr(owner, name, surrounded)


def _pass_compilations(kill: Kill) -> None:
    def on_duration(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs, kwargs
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            kill.passes("compile")

    jax.monitoring.register_event_duration_secs_listener(on_duration)


def _pass_batches(kill: Kill) -> None:
    iterate = stopping.WatchedBatches.__iter__

    def iterate_and_pass(batches):
        for batch in iterate(batches):
            kill.passes("evaluate")
            yield batch

    stopping.WatchedBatches.__iter__ = iterate_and_pass  # type: ignore[method-assign]


def _pass_files(kill: Kill) -> None:
    """Passes the points between the first file of a checkpoint and its name; Orbax makes a path for each item too."""
    create, finalize = manifest.ManifestedPath.create, manifest.ManifestedPath.finalize

    def is_of_checkpoint(path: manifest.ManifestedPath) -> bool:
        return path.get_final().name.isdecimal()

    async def create_and_watch(path):
        directory = await create(path)
        if is_of_checkpoint(path) and kill.point == "save_some":
            threading.Thread(target=_wait_for_file, args=(Path(directory), kill), daemon=True).start()
        return directory

    async def finalize_and_pass(path):
        is_passed = is_of_checkpoint(path)
        if is_passed:
            kill.passes("save_files")
        await finalize(path)
        if is_passed:
            kill.passes("save_committed")

    manifest.ManifestedPath.create = create_and_watch
    manifest.ManifestedPath.finalize = finalize_and_pass


def _wait_for_file(directory: Path, kill: Kill) -> None:
    while not any(path.is_file() and path.stat().st_size for path in directory.glob("*/**/*")):
        time.sleep(0.0005)
    kill.passes("save_some")


if __name__ == "__main__":
    install(Kill(os.environ.get(VARIABLE, "")))
    train.run()
