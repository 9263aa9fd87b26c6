"""What one process finds out for all of them."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from reformer.training import distributed

_KINDS = {kind.__name__: kind for kind in (ValueError, OSError)}
_MAX_BYTES = 2**16
_numbers = itertools.count()  # of the calls, which every process makes in the same order


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
    outcome = _attempt(action) if distributed.is_writer() else {}
    distributed.meet(f"agreement {next(_numbers)}")  # which may take long; JAX's first broadcast waits for 30 s only
    message = np.zeros(_MAX_BYTES, np.uint8)
    encoded = json.dumps(outcome).encode()[:_MAX_BYTES]
    message[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    shared = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(message)).tobytes().rstrip(b"\0"))
    if "error" in shared:
        raise _KINDS[shared["kind"]](shared["error"])
    return shared["result"]


def _attempt(action: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"result": action()}
    except tuple(_KINDS.values()) as error:
        kind = next(name for name, kind in _KINDS.items() if isinstance(error, kind))
        return {"error": str(error)[: _MAX_BYTES // 8], "kind": kind}
