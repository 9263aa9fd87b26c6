"""Runs of a program in several real processes on this machine, as a cluster starts them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import portpicker

ROOT = Path(__file__).parent.parent
PATIENCE_SECONDS = 1800  # the processes may be stopped for minutes while something else is measured


class Ended(NamedTuple):
    """How a process ended: its exit code (negative = the signal), and what it printed."""

    code: int
    out: str
    err: str


class Processes:
    """The processes of one run; use it in a `with`, which kills those that are left."""

    def __init__(
        self,
        logs: Path,
        *arguments: str,
        program: str = "train.py",
        num_processes: int = 2,
        num_devices: int = 2,
        environment: dict[str, str] | None = None,
        distinct: tuple[tuple[str, ...], ...] = (),
    ):
        """Starts them.

        Args:
          logs: a directory for their output.
          *arguments: of every process.
          program: a file in the root of the project.
          num_processes: 1 = without the flags of several processes.
          num_devices: simulated devices of each process.
          environment: further variables.
          distinct: further arguments of each process.
        """
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = [(logs / f"{i}.out", logs / f"{i}.err") for i in range(num_processes)]
        port, self._running = portpicker.pick_unused_port(), []
        for i, (out, err) in enumerate(self._logs):
            command = [sys.executable, str(ROOT / program), *arguments, *(distinct[i] if distinct else ())]
            if num_processes > 1:
                command += [f"--coordinator=localhost:{port}", f"--num_processes={num_processes}", f"--process_id={i}"]
            with out.open("w") as stdout, err.open("w") as stderr:
                variables = _environment(num_devices) | (environment or {})
                self._running.append(subprocess.Popen(command, env=variables, stdout=stdout, stderr=stderr))

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_) -> None:
        for process in self._running:
            process.kill()
            process.wait()

    def output(self, i: int) -> str:
        """What process `i` has printed so far."""
        return self._logs[i][0].read_text()

    def wait_for(self, text: str, i: int = 0) -> None:
        """Waits until process `i` has printed `text`."""
        self.wait_until(lambda: text in self.output(i))

    def wait_until(self, is_reached) -> None:
        """Waits until `is_reached()`; fails if a process ends before."""
        ends_at = time.monotonic() + PATIENCE_SECONDS
        while not is_reached():
            ended = [i for i, process in enumerate(self._running) if process.poll() is not None]
            assert not ended, f"process {ended[0]} ended: {self._ended(ended[0])}"
            assert time.monotonic() < ends_at, "out of patience"
            time.sleep(0.05)

    def signal(self, i: int, number: int = signal.SIGKILL) -> None:
        """Sends process `i` a signal."""
        self._running[i].send_signal(number)

    def wait(self) -> list[Ended]:
        """Waits until all have ended."""
        for process in self._running:
            process.wait(PATIENCE_SECONDS)
        return [self._ended(i) for i in range(len(self._running))]

    def _ended(self, i: int) -> Ended:
        out, err = self._logs[i]
        return Ended(self._running[i].returncode, out.read_text(), err.read_text())


def _environment(num_devices: int) -> dict[str, str]:
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    flags.append(f"--xla_force_host_platform_device_count={num_devices}")
    variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
    if jax.config.jax_compilation_cache_dir:  # tests/training/conftest.py
        variables["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
        variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    return os.environ | variables


def small_run(text_file: Path, **fields) -> list[str]:
    """The flags of train.py for a run of seconds on a text; `fields` with `__` for the dot, `training__num_steps=3`."""
    defaults = {
        "data__path": text_file,
        "model__max_length": 32,
        "model__num_layers": 1,
        "model__attention_pattern": "('lsh',)",
        "model__embed_dim": 16,
        "model__mlp_dim": 32,
        "model__num_heads": 2,
        "model__head_dim": 8,
        "model__lsh_chunk_length": 8,
        "model__local_chunk_length": 8,
        "training__num_steps": 6,
        "training__batch_size": 8,
        "training__log_every_steps": 1,
        "model__num_hashes": 2,
        "model__position_embedding": "axial",
        "optimizer__name": "adafactor",  # small differences of gradients stay small
        "optimizer__learning_rate": 0.02,
        "optimizer__schedule": "constant",  # the same program for any number of steps: it is compiled once
        "evaluation__every_steps": 3,
        "evaluation__num_hash_seeds": 1,
        "checkpoint__every_steps": 3,
    }
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in (defaults | fields).items()]
    return [f"--config={ROOT}/configs/text.py:tiny", *flags]
