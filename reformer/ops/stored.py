"""What ordinary autodiff stores of a residual function: what costs a matrix product or a sort to compute again.

Everything else (normalised tokens, activations, dropout masks) is cheaper to compute again than to write to memory and
to read back. Without a mark nothing is stored; a mark without `checkpoint`, as in a reversible stack, does nothing.
"""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

_NAME = "costly"


def mark_costly(tree):
    """Marks all arrays of a pytree as costly to compute again, and returns them.

    Args:
      tree: pytree of arrays of any shape and type.
    """
    return jax.tree.map(lambda x: checkpoint_name(x, _NAME), tree)


def checkpoint(fn: Callable) -> Callable:
    """`fn`, which keeps for its gradient only its arguments and what `mark_costly` marked inside."""
    # A scan runs the function and its gradient in bodies of their own: nothing there could be merged by mistake.
    return jax.checkpoint(fn, prevent_cse=False, policy=jax.checkpoint_policies.save_only_these_names(_NAME))
