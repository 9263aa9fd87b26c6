"""One run in several processes: how they find each other, which one writes, what one finds out for all, how they end.

JAX's coordination service connects the processes. When one dies, JAX aborts the others with a dump of the C++ stack
(measured in docs/running.md). So process 0 has a connection with each of the others, over which both give signs of
life: who is lost is known at once, and everybody says so and ends.
"""

import argparse
import contextlib
import itertools
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import AuthenticationError, connection
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import clusters, distributed  # the key-value store and the detected cluster have no public name
from jax.experimental import multihost_utils

EXIT_LOST_PROCESS = 75  # EX_TEMPFAIL of sysexits.h: the same command may succeed when it is started again
POLL_SECONDS = 1
SILENT_SECONDS = 30
CONNECT_SECONDS = 300  # as long as JAX waits
_ALIVE, _DONE = "alive", "done"  # any other message is why the run ends
_AGREED_BYTES = 2**16
_START_AGAIN = "Start all processes again with the same command: the run continues from its last checkpoint."


def add_flags(parser: argparse.ArgumentParser, is_hidden: bool = False) -> None:
    """Adds the flags that `initialize` takes; hidden, of a program that refuses them."""
    if is_hidden:
        parser.add_argument("--num_processes", type=int, help=argparse.SUPPRESS)
        return
    group = parser.add_argument_group(
        "several processes", "the same command in each; SLURM, Open MPI, TPU pods and Kubernetes need none of these"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="a free port of process 0, the same for all")
    group.add_argument("--num_processes", type=int, help="how many there are")
    group.add_argument("--process_id", type=int, help="which one this is, from 0")
    silent = "a process without a sign of life for so long is dead"
    group.add_argument("--silent_seconds", type=int, default=SILENT_SECONDS, help=silent)


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    silent_seconds: int = SILENT_SECONDS,
) -> None:
    """Connects the processes of a run; does nothing where there is only one. Must come before any use of a device.

    Args:
      coordinator: host:port on which process 0 listens; None, with the next two, = what the cluster says.
      num_processes: Of the run.
      process_id: Of this process, from 0.
      silent_seconds: A process without a sign of life for so long ends the run.

    Raises:
      ValueError: If arguments are missing or wrong.
      ConnectionError: If the processes do not find each other.
    """
    arguments = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    missing = [name for name, value in arguments.items() if value is None]
    if silent_seconds < 5:
        raise ValueError(f"--silent_seconds={silent_seconds} must be at least 5.")
    if len(missing) == 3:
        if _num_detected_processes() > 1:
            _connect({}, silent_seconds)
    elif missing:
        raise ValueError(
            f"{' and '.join(missing)} missing: --coordinator, --num_processes and --process_id belong together. "
            "Give all three, or none where the cluster knows them (SLURM, Open MPI, TPU pods, Kubernetes)."
        )
    else:
        _check(coordinator, num_processes, process_id)
        chosen = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
        _connect(chosen | {"cluster_detection_method": "deactivate"}, silent_seconds)


def refuse(num_processes: int | None) -> None:
    """Raises a ValueError for more than one process, of a program that has no use for them."""
    if num_processes not in (None, 1):
        raise ValueError(
            f"--num_processes={num_processes}: this program runs in one process. Start it once for each part of the "
            "work."
        )


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator={coordinator} must be the HOST:PORT of process 0, such as 10.0.0.1:1234.")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id={process_id} must be from 0 to one less than --num_processes={num_processes}, "
            "which must be positive."
        )


def _num_detected_processes() -> int:
    """Asks JAX's own detection: a laptop, or a job of a single task, starts as it is."""
    try:  # everything but the number is given, and is not looked for
        _, count, _, _ = clusters.ClusterEnv.auto_detect_unset_distributed_params("", None, 0, [], None, None)
        return count or 1
    except Exception as error:  # a pod of Kubernetes that is no job, for example
        print(f"the cluster does not tell the number of processes ({error}): one is assumed.", file=sys.stderr)
        return 1


def _connect(arguments: dict, silent_seconds: int) -> None:
    global _group
    try:
        # JAX's own time-out counts seconds, so that a machine that slept would lose everybody: ours takes its place.
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=24 * 3600)
        state = distributed.global_state
        peers = _connect_peers(state)
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConnectionError(
            f"the processes of the run did not find each other ({reason}). Check that process 0 runs, that its port is "
            "free, that the others reach that port and a second one which it chooses, and that all have the same "
            "--coordinator and --num_processes."
        ) from error
    _group = Group(peers, state.process_id, state.num_processes, silent_seconds)


def _connect_peers(state: distributed.State) -> dict[int, Connection]:
    """Connects process 0 with each of the others; JAX's key-value store says where it listens."""
    if state.process_id:
        port, password = state.client.blocking_key_value_get("reformer/watch", 1000 * CONNECT_SECONDS).split()
        host = state.coordinator_address.rpartition(":")[0].strip("[]")
        to_first = connection.Client((host, int(port)), authkey=password.encode())
        to_first.send(state.process_id)
        return {0: to_first}
    peers: dict[int, Connection] = {}
    password = secrets.token_hex(16)
    with socket.create_server(("", 0), backlog=state.num_processes) as server:
        # A peer that cannot reach this port ends with an error, which nobody else would hear of.
        server.settimeout(CONNECT_SECONDS)
        state.client.key_value_set("reformer/watch", f"{server.getsockname()[1]} {password}")
        while len(peers) < state.num_processes - 1:
            with contextlib.suppress(AuthenticationError, EOFError, ConnectionError):  # somebody else knocked
                peer = Connection(server.accept()[0].detach())
                connection.deliver_challenge(peer, password.encode())
                connection.answer_challenge(peer, password.encode())
                peers[peer.recv()] = peer
    return peers


def is_writer() -> bool:
    """Returns whether this process prints, logs and writes the files that only one may write."""
    return jax.process_index() == 0


class Group:
    """The processes of a run, as one of them sees the others: process 0 all, and each of them process 0."""

    def __init__(self, peers: dict[int, Connection], process_id: int, num_processes: int, silent_seconds: int):
        """Starts to give signs of life, and to watch for those of the peers."""
        self._peers, self._process_id, self._num_processes = peers, process_id, num_processes
        self._max_silent = silent_seconds  # a poll takes a second
        self._running = set(peers)  # those that have not said that they are done
        self._lock, self._has_failed, self._is_done = threading.Lock(), False, False
        self._thread = threading.Thread(target=self._watch, name="watch other processes", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Waits for the others and ends the watch."""
        meet("end")
        self._tell(_DONE)
        self._thread.join(10 * POLL_SECONDS)

    def fail(self, code: int) -> None:
        """Ends this process and tells the others; an ordinary exit would wait for them."""
        self._has_failed = True
        self._tell(f"process {self._process_id} of {self._num_processes} failed; its own output says why.")
        self._exit(code)

    def _watch(self) -> None:
        # Polls are counted and not seconds: a machine that slept as a whole has lost nobody.
        silent, next_poll = dict.fromkeys(self._peers, 0), time.monotonic()
        while self._running and not self._has_failed:
            if time.monotonic() >= next_poll:
                next_poll = time.monotonic() + POLL_SECONDS
                self._tell(_ALIVE)
                silent = {i: silent[i] + 1 for i in self._running}
            heard = connection.wait([self._peers[i] for i in self._running], max(0.0, next_poll - time.monotonic()))
            for i in list(self._running):
                name = f"process {i} of {self._num_processes}"
                if self._peers[i] in heard:
                    silent[i] = 0
                    self._hear(i, name)
                elif silent[i] > self._max_silent:
                    self._end(f"{name} gave no sign of life for {self._max_silent} seconds. {_START_AGAIN}")

    def _hear(self, i: int, name: str) -> None:
        try:
            message = self._peers[i].recv()
        except (EOFError, OSError):
            return self._end(f"{name} died. {_START_AGAIN}")
        if message == _DONE:
            self._running.remove(i)  # its connection stays open: it still has to read that this process is done
        elif message != _ALIVE:
            self._end(message)

    def _tell(self, message: str) -> None:
        with self._lock:
            if self._is_done:  # a message that a process leaves unread when it ends destroys those it sent
                return
            self._is_done = message == _DONE
            for peer in self._peers.values():
                with contextlib.suppress(OSError):  # one that died is noticed where it is heard
                    peer.send(message)

    def _end(self, reason: str) -> None:
        if self._has_failed:  # and the others end because of it
            return
        print(f"error: {reason}", file=sys.stderr)
        self._tell(reason)
        self._exit(EXIT_LOST_PROCESS)

    def _exit(self, code: int) -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        if self._process_id == 0:
            time.sleep(2 * POLL_SECONDS)  # without it JAX aborts the others, possibly before they have read the reason
        os._exit(code)


_group: Group | None = None  # None = the only process
_num_agreed = itertools.count()  # every process makes these calls in the same order


def end_at_sigterm() -> None:
    """Lets SIGTERM end this process at once, for programs that have nothing to save: JAX only takes note of it."""
    if _group is not None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def meet(place: str) -> None:
    """Waits until all processes of the run are at `place`, a name that is used once."""
    if _group is not None:
        week = 7 * 24 * 3600 * 1000  # that one of them died ends the wait earlier
        distributed.global_state.client.wait_at_barrier(f"reformer/{place}", timeout_in_ms=week)


def on_process_0(action: Callable[[], Any]) -> Any:
    """Calls `action` on process 0 and returns its result on every process.

    Args:
      action: Returns what JSON can hold.

    Raises:
      ValueError: On every process, if `action` raises one.
      OSError: Likewise.
    """
    if jax.process_count() == 1:
        return action()
    outcome: dict[str, Any] = {}
    if is_writer():
        try:
            outcome = {"result": action()}
        except (ValueError, OSError) as error:
            outcome = {"error": str(error)[: _AGREED_BYTES // 8], "is_value": isinstance(error, ValueError)}
    meet(f"agreement {next(_num_agreed)}")  # which may take long; JAX's first broadcast waits for 30 s only
    message = np.frombuffer(json.dumps(outcome).encode()[:_AGREED_BYTES].ljust(_AGREED_BYTES, b"\0"), np.uint8)
    shared = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(message)).tobytes().rstrip(b"\0"))
    if "error" in shared:
        raise (ValueError if shared["is_value"] else OSError)(shared["error"])
    return shared["result"]


def run(main: Callable[[list[str]], None]) -> None:
    """Calls `main` with the command line. Where it fails in one of several processes, all of them end."""
    try:
        main(sys.argv[1:])
    except BaseException as error:
        if _group is None:
            raise
        if isinstance(error, SystemExit) and not error.code:
            _group.finish()
            raise
        if isinstance(error, Exception):
            # A collective or a checkpoint breaks when another process dies: the watch hears of it and ends this one.
            time.sleep(5 * POLL_SECONDS)
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        _group.fail(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
    if _group is not None:
        _group.finish()
