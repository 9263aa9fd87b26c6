"""Learning-rate schedules and optimizers, from optax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def make_schedule(settings: ConfigDict, num_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates done before.

    With t = that number + 1, c = learning_rate, w = warmup_steps, n = num_steps:

    * constant: c * min(1, t / w)
    * rsqrt:    c * min(1, t / w) / sqrt(max(t, w)), which peaks at c / sqrt(w) when t = w
    * cosine:   c * min(1, t / w) * (1 + cos(pi * p)) / 2 with p = (t - w) / (n - w), clipped to [0, 1],
                which reaches 0 at the last update

    Source: trax, `learning_rate_schedules.py` (constant * linear_warmup * rsqrt_decay); its cosine restarts, ours is
    one half period.

    Args:
      settings: The `optimizer` group.
      num_steps: Updates of the whole run.
    """

    def schedule(num_updates: jax.Array | int) -> jax.Array:
        step = jnp.asarray(num_updates, jnp.float32) + 1
        warmup = float(settings.warmup_steps)
        rate = settings.learning_rate * jnp.minimum(1.0, step / max(warmup, 1.0))
        if settings.schedule == "rsqrt":
            return rate / jnp.sqrt(jnp.maximum(step, warmup))
        if settings.schedule == "cosine":
            progress = jnp.clip((step - warmup) / max(num_steps - warmup, 1.0), 0, 1)
            return rate * (1 + jnp.cos(jnp.pi * progress)) / 2
        return rate

    return schedule


def make_optimizer(settings: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns clipping by global norm, the update rule, weight decay and the learning rate, in this order.

    Weight decay is decoupled: the rate times `weight_decay` times the parameter.

    Args:
      settings: The `optimizer` group.
      schedule: The learning rate.
    """
    rules = {"adafactor": _adafactor, "adamw": _adamw}
    return optax.chain(
        optax.identity() if settings.clip_norm is None else optax.clip_by_global_norm(settings.clip_norm),
        rules[settings.name](settings),
        optax.add_decayed_weights(settings.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(schedule),
    )


def decay_mask(params: Any) -> Any:
    """Returns True for the kernels and embeddings, which decay, and False for norms and biases.

    By path and not by rank: a bias under `stack/` has two axes.
    """

    def decays(path: tuple, _: Any) -> bool:
        names = [entry.key for entry in path]
        return "embeddings" in names or names[-1] == "kernel"

    return jax.tree_util.tree_map_with_path(decays, params)


def _adamw(settings: ConfigDict) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=settings.b1, b2=settings.b2, eps=settings.epsilon)


def _adafactor(settings: ConfigDict) -> optax.GradientTransformation:
    """Returns Adafactor without momentum.

    Source: Shazeer and Stern, Adafactor, arXiv 1804.04235, Algorithm 4 and Section 9.
    """
    rule = optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=settings.factored_decay, min_dim_size_to_factor=settings.min_factored_dim
        ),
        optax.clip_by_block_rms(settings.update_clip),
        optax.scale_by_param_block_rms(),
    )
    return optax.partition({"single": rule, "stacked": _over_layers(rule)}, _stacked_or_single)


def _over_layers(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    # Factoring, clipping and scaling depend on a parameter's shape and root mean square: each layer has its own.
    def of_each_layer(function: Callable[..., Any]) -> Callable[..., Any]:
        # Where the whole stack is frozen, there is no axis of layers to map over.
        return lambda *trees: (jax.vmap(function) if jax.tree.leaves(trees[0]) else function)(*trees)

    return optax.GradientTransformation(of_each_layer(rule.init), of_each_layer(rule.update))


def _stacked_or_single(params: Any) -> Any:
    """Labels whole sub-trees; a model of several has its stacks one level deeper."""
    labels: dict[str, Any] = {}
    for name, tree in params.items():
        has_parts = isinstance(tree, dict) and "stack" in tree
        labels[name] = _stacked_or_single(tree) if has_parts else "stacked" if name == "stack" else "single"
    return labels
