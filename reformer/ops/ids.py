"""Ids and labels that do not exist: a lookup and a loss would take any integer and go on with a plausible number.

Outside `jit` they are refused by name. Compiled code cannot refuse a value; there they become NaN.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer


def check_ids(
    name: str, ids: Any, num_ids: int, limit: str = "vocab_size", counting: Sequence[Any] = (), repair: str = "it"
) -> None:
    """Raises a ValueError that names the first id that does not exist; no word of arrays whose values are not known.

    Those are what `jit` traces, and what lies on the devices of other processes.

    Args:
      name: they are called in the message.
      ids: integers, on the host or a device.
      num_ids: those from 0 to `num_ids` - 1 exist.
      limit: what `num_ids` is called.
      counting: weights or masks; an id does not count where one of them is 0. None, and one of another shape, which is
        refused elsewhere, have no effect.
      repair: what to correct.
    """
    arrays = [ids, *(x for x in counting if x is not None and x.shape == ids.shape)]
    if not all(_is_known(x) for x in arrays):
        return
    ids, *counting = map(np.asarray, jax.device_get(arrays))
    is_wrong = (ids < 0) | (ids >= num_ids)
    for weights in counting:
        is_wrong &= weights != 0
    if is_wrong.any():
        place = np.unravel_index(is_wrong.argmax(), is_wrong.shape)
        where = f"[{', '.join(map(str, place))}]" if place else ""
        raise ValueError(
            f"{name}{where}={ids[place]} is out of range: {limit}={num_ids} allows 0 to {num_ids - 1}. Correct "
            f"{repair} or raise {limit}."
        )


def exist(ids: Integer[Array, "*shape"], num_ids: int) -> Bool[Array, "*shape"]:
    """Whether ids are from 0 to `num_ids` - 1."""
    return (ids >= 0) & (ids < jnp.int32(num_ids))  # of a type: 259 itself does not fit beside uint8


def spoil_missing(
    x: Float[Array, "*rows features"], ids: Integer[Array, "*rows"], mask: Bool[Array, "*rows"] | None, num_ids: int
) -> Float[Array, "*rows features"]:
    """The vectors of ids, NaN where the id of a real token (`mask` is True or None) does not exist."""
    is_right = exist(ids, num_ids) if mask is None else exist(ids, num_ids) | ~mask
    # x + -0.0 is x to the last bit; unlike a choice, a sum keeps nothing for the backward pass.
    return x + jnp.where(is_right, -0.0, jnp.nan).astype(x.dtype)[..., None]


def _is_known(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer) and getattr(x, "is_fully_addressable", True)
