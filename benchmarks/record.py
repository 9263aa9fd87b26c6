"""What every benchmark keeps beside its figures, and how they are written down."""

import hashlib
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(os.environ.get("BENCHMARK_RESULTS", ROOT / "benchmarks" / "results"))


def provenance() -> dict[str, Any]:
    """Returns the command, commit, versions and machine of this process; call it before the work, not after."""
    import jax  # here, so that a process that measures another library does not hold JAX too

    return {
        "command": shlex.join(["python", Path(sys.argv[0]).resolve().relative_to(ROOT).as_posix(), *sys.argv[1:]]),
        "commit": _git("rev-parse", "--short", "HEAD") + ("-dirty" if _git("status", "--porcelain", "-uno") else ""),
        **versions("jax", "jaxlib"),
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "machine": _processor(),
        "num_cores": os.cpu_count(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of installed packages."""
    try:
        return {package: version(package) for package in packages}
    except PackageNotFoundError as error:
        sys.exit(f"error: {error}. The comparisons need benchmarks/requirements-peers.txt: make bench-peers.")


def append(name: str, record: dict[str, Any]) -> None:
    """Appends a record to `results/NAME.jsonl`."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def of_overrides(overrides: Sequence[str]) -> str:
    """Returns the name of a folder that runs with these overrides have for themselves."""
    return hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:8] if overrides else "default"


def with_training_seconds(entries: Iterable[dict], tokens_per_step: int) -> Iterator[tuple[dict, float]]:
    """Yields the entries of `metrics.jsonl`, in order, each with the seconds of all steps until then.

    They are those of the steps alone, without compiling, evaluating and saving; every step counts as many as half of
    the steps took at most, so that neither a pause of the run nor other work on the machine counts.
    """
    entries = list(entries)
    rates = [entry["tokens_per_second"] for entry in entries if "tokens_per_second" in entry]
    seconds_per_step = tokens_per_step / statistics.median(rates) if rates else 0.0  # of the first step nobody knows
    for entry in entries:
        yield entry, entry["step"] * seconds_per_step


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def seconds(run: Callable) -> float:
    """Returns the time of a call, by the clock, when all that it returns is there."""
    import jax

    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def in_fresh_process(function: Callable, *args, **kwargs) -> Any:
    """Returns function(*args, **kwargs), run in a process of its own, whose peak memory is then that of the call."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        return pool.submit(function, *args, **kwargs).result()


def _end_with_parent() -> None:
    """Ends this process when the one that started it ends: a benchmark that is killed leaves no training behind."""

    def watch():
        wait([parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def axial_shape(length: int) -> tuple[int, int]:
    """Returns two factors whose product is at least `length`, near its root; exact for powers of two."""
    first = 2 ** (length.bit_length() // 2)
    return first, -(-length // first)


def peak_resident_bytes() -> int:
    """Returns the most memory that this process has held, by Linux's account.

    Not `ru_maxrss`, which a new process inherits from the one that started it.
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return run.stdout.strip() if run.returncode == 0 else "unknown"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return names[0] if names else platform.machine()
