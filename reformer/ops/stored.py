"""What ordinary autodiff stores of a residual function: what costs a matrix product or a sort to compute again.

Everything else (normalised rows, activations, dropout masks) is cheaper to compute again than to write to memory and to
read back. Without a name nothing is stored; a name without `checkpoint` does nothing.
"""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

_NAME = "stored"


def store(tree):
    """Marks arrays to be stored."""
    return jax.tree.map(lambda x: checkpoint_name(x, _NAME), tree)


def checkpoint(fn: Callable) -> Callable:
    """`fn`, which keeps for its gradient only its arguments and what `store` marked inside."""
    # A scan runs the function and its gradient in bodies of their own: nothing there could be merged by mistake.
    return jax.checkpoint(fn, prevent_cse=False, policy=jax.checkpoint_policies.save_only_these_names(_NAME))
