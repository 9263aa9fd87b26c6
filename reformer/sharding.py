"""Where arrays live on a mesh of devices: one table of logical axes for parameters and activations.

The mesh has the axes 'data' (examples), 'fsdp' (examples, and parameters along the embedding) and
'tensor' (heads and hidden units). Code names what an axis of an array *is*; this file says where
that goes. Everything is a plain constant, so nothing depends on when it was set.
"""

import re
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. The layers axis must not be split: a scan slices it.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "vocab": None,
    "replicated": None,
    "act_batch": ("data", "fsdp"),
    "act_length": None,
    "act_embed": None,
    "act_heads": "tensor",
    "act_head_dim": None,
    "act_mlp": "tensor",
    "act_vocab": None,
}

# Path of a parameter (regular expression, matched at the end) -> logical axes, layers axis aside.
PARAMETER_AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"embeddings/token", ("vocab", "embed")),
    (r"embeddings/(axial_\d+|position)", ("replicated", "replicated")),
    (r"norm/(scale|bias)", ("replicated",)),
    (r"attention/(query_key|query|key|value)/kernel", ("embed", "heads", "head_dim")),
    (r"attention/output/kernel", ("heads", "head_dim", "embed")),
    (r"feed_forward/hidden/kernel", ("embed", "mlp")),
    (r"feed_forward/hidden/bias", ("mlp",)),
    (r"feed_forward/output/kernel", ("mlp", "embed")),
    (r"feed_forward/output/bias", ("replicated",)),
    (r"head/kernel", ("embed", "vocab")),
    (r"head/bias", ("vocab",)),
)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """Arranges devices in a mesh; one size may be -1, the devices that remain.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    unknown = [name for name, size in sizes.items() if size == -1]
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    described = ", ".join(f"sharding.{name}={size}" for name, size in sizes.items())
    if len(unknown) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"{described}: sizes must be positive; at most one may be -1, meaning the remaining devices.")
    if (unknown and len(devices) % known) or (not unknown and known != len(devices)):
        raise ValueError(
            f"{described} do not fit {len(devices)} devices. Their product must be the number of devices; "
            "use -1 for one of them."
        )
    if unknown:
        sizes[unknown[0]] = len(devices) // known
    shape = tuple(sizes.values())
    return jax.make_mesh(shape, MESH_AXES, devices=devices, axis_types=(AxisType.Auto,) * 3)


def validate(config, batch_size: int, mesh_shape: Mapping[str, int]) -> None:
    """Raises ValueError where a size of the model or the batch does not divide over the mesh."""
    examples = mesh_shape["data"] * mesh_shape["fsdp"]
    checks = (
        ("batch_size", batch_size, "sharding.data * sharding.fsdp", examples),
        ("model.embed_dim", config.embed_dim, "sharding.fsdp", mesh_shape["fsdp"]),
        ("model.num_heads", config.num_heads, "sharding.tensor", mesh_shape["tensor"]),
        ("model.mlp_dim", config.mlp_dim, "sharding.tensor", mesh_shape["tensor"]),
    )
    for name, size, over, parts in checks:
        if size % parts:
            raise ValueError(f"{name}={size} does not divide over {over}={parts}. Change one of them.")


def _spec(names: tuple[str, ...]) -> PartitionSpec:
    for name in names:
        if name not in RULES:
            raise ValueError(f"Unknown logical axis {name!r}. Known: {', '.join(RULES)}.")
    return PartitionSpec(*(RULES[name] for name in names))


def constrain(x: jax.Array, *names: str) -> jax.Array:
    """Tells the compiler where an activation lives; does nothing outside a mesh.

    Raises:
      ValueError: an unknown name, or not one name for each axis of `x`.
    """
    spec = _spec(names)
    if len(names) != x.ndim:
        raise ValueError(f"{len(names)} logical axes {names} for an array of shape {x.shape}. Name every axis.")
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, spec)


# Prefixes of arrays that attention keeps apart by example and by head.
BATCH = _spec(("act_batch",))
BATCH_HEADS = _spec(("act_batch", "act_heads"))
HEADS = _spec(("act_heads",))


def shard_map(fn: Callable, in_specs, out_specs, *, check_axes: bool = True) -> Callable:
    """`jax.shard_map` over the current mesh; `fn` itself outside one.

    Args:
      fn: what every device does with its parts.
      in_specs: as `jax.shard_map` has them.
      out_specs: likewise.
      check_axes: False where `fn` holds a Pallas kernel, whose interpreter cannot tell over which axes its values vary.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return fn
    return jax.shard_map(fn, in_specs=in_specs, out_specs=out_specs, check_vma=check_axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples over the axes data and fsdp."""
    return NamedSharding(mesh, BATCH)


def parameter_shardings(tree, mesh: Mesh):
    """Shardings of a tree whose key paths end in those of parameters: parameters or optimizer states.

    A leaf that mirrors no parameter (a counter, a factored moment) is replicated.

    Raises:
      ValueError: `tree` is a parameter tree with a path that the table does not know.
    """

    def place(path, leaf):
        sharding = NamedSharding(mesh, _leaf_spec(path, leaf))
        return sharding if _divides(leaf.shape, sharding) else NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, tree)


def _divides(shape: tuple[int, ...], sharding: NamedSharding) -> bool:
    """False for a leaf that only looks like a parameter: Adafactor's placeholders of one element."""
    try:
        sharding.shard_shape(shape)
    except ValueError:
        return False
    return True


def _leaf_spec(path, leaf) -> PartitionSpec:
    keys = [str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", "")))) for entry in path]
    for pattern, names in PARAMETER_AXES:
        if re.search(rf"(^|/){pattern}$", "/".join(keys)):
            names = ("layers", *names) if "stack" in keys else names
            return _spec(names) if len(names) == len(leaf.shape) else PartitionSpec()
    if keys and "optimizer" not in keys and "step" not in keys:
        raise ValueError(f"Parameter {'/'.join(keys)} has no logical axes. Add it to sharding.PARAMETER_AXES.")
    return PartitionSpec()
