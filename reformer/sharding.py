"""Where arrays live on a mesh of devices: one table of logical axes for parameters and activations.

The mesh has the axes 'data' (examples), 'fsdp' (examples, and parameters along the embedding) and
'tensor' (heads and hidden units). For few long sequences the third is named 'length' instead: it
splits the length of everything that is position-wise, and the heads of attention. Code names what
an axis of an array *is*; this file says where that goes on the current mesh. The tables are plain
constants and the mesh is part of what JAX compiles for, so nothing depends on when it was set.
"""

import contextlib
import functools
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor", "length")  # of a mesh; the last two exclude each other
EVERYWHERE = PartitionSpec()  # the same on every device

# Logical axis -> the mesh axes that split it, where the mesh has them and no axis of the array before it took them. The
# layers axis must not be split: a scan slices it.
RULES: dict[str, tuple[str, ...]] = {
    "layers": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": (),
    "replicated": (),
    "act_batch": ("data", "fsdp"),
    "act_length": ("length",),
    "act_embed": (),
    "act_heads": ("tensor", "length"),
    "act_head_dim": (),
    "act_mlp": ("tensor",),
    "act_vocab": (),
}

# Path of a parameter (regular expression, matched at the end) -> logical axes, layers axis aside.
PARAMETER_AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"embeddings/token", ("vocab", "embed")),
    (r"generator/projection/kernel", ("embed", "replicated")),
    (r"generator/projection/bias", ("replicated",)),
    (r"embeddings/(axial_\d+|position)", ("replicated", "replicated")),
    (r"embeddings/patch/kernel", ("replicated", "replicated")),
    (r"embeddings/class_token", ("replicated",)),
    (r"norm/(scale|bias)", ("replicated",)),
    (r"(cross_)?attention/(query_key|query|key|value)/kernel", ("embed", "heads", "head_dim")),
    (r"attention/taps", ("heads", "replicated")),
    (r"(cross_)?attention/output/kernel", ("heads", "head_dim", "embed")),
    (r"feed_forward/hidden/kernel", ("embed", "mlp")),
    (r"feed_forward/hidden/bias", ("mlp",)),
    (r"feed_forward/output/kernel", ("mlp", "embed")),
    (r"feed_forward/output/bias", ("replicated",)),
    (r"head_hidden/kernel", ("embed", "replicated")),
    (r"head_hidden/bias", ("replicated",)),
    (r"head/kernel", ("embed", "vocab")),
    (r"head/bias", ("vocab",)),
    (r"head/.+", ()),  # a head of one's own: whole on every device
)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, split_length: bool = False, devices=None) -> Mesh:
    """Arranges devices in a mesh; one size may be -1, the devices that remain.

    Args:
      data: parts of the batch.
      fsdp: parts of the batch that also divide the parameters.
      tensor: parts of heads and hidden units.
      split_length: the `tensor` devices hold parts of the length instead, and of the heads within attention.
      devices: None = all.

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
    axes = ("data", "fsdp", "length" if split_length else "tensor")
    return jax.make_mesh(shape, axes, devices=devices, axis_types=(AxisType.Auto,) * 3)


def target_platform() -> str:
    """Returns 'cpu', 'gpu' or 'tpu': of the devices for which what is traced now will be compiled.

    They are those of the current mesh or of `compiling_for`, else the default device. The host's own devices say
    nothing about it: programs are compiled and exported for machines that are elsewhere.
    """
    known: Any = jax.config  # its attributes are made at run time
    device = jax.sharding.get_abstract_mesh().abstract_device or known.jax_default_device
    platform = getattr(device, "platform", device) or jax.default_backend()
    return "gpu" if platform in ("cuda", "rocm") else platform


def on_cpu() -> bool:
    """Whether the program is for CPUs."""
    return target_platform() == "cpu"


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Within it programs are traced, and lowered, for devices that need not be there.

    Args:
      platform: 'cpu', 'cuda', 'rocm' or 'tpu', as `jax.export` has them.
    """
    device = jax.sharding.AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    # The mesh, even an empty one, is part of what JAX keeps a traced program by; a variable of our own would not be.
    with jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh().update(abstract_device=device)):
        yield


def validate(
    config, mesh: Mesh, batch_sizes: Mapping[str, int], length: int, companions: Mapping[str, Any] | None = None
) -> None:
    """Checks that everything that is split divides over the mesh.

    Args:
      config: the model's.
      mesh: from `make_mesh`.
      batch_sizes: examples that go through the model at once, by name.
      length: tokens of an example.
      companions: configs of smaller models that run beside it, by name.

    Raises:
      ValueError: sizes that do not divide, a line for each; or a mesh with other axes.
    """
    if mesh.axis_names[:2] != AXES[:2] or mesh.axis_names[2:] not in (("tensor",), ("length",)):
        raise ValueError(
            f"A mesh with the axes {mesh.axis_names} must have data, fsdp and tensor, or data, fsdp and length. Make "
            "it by reformer.sharding.make_mesh."
        )
    fsdp, parts = mesh.shape["fsdp"], mesh.devices.shape[2]
    checks = [(name, size, "sharding.data * fsdp", mesh.shape["data"] * fsdp) for name, size in batch_sizes.items()]
    if "length" in mesh.shape:
        checks.append(("config.data.length", length, "sharding.tensor", parts))
    for name, model in {"config.model.": config, **{f"The {n}'s ": c for n, c in (companions or {}).items()}}.items():
        checks.append((f"{name}embed_dim", model.embed_dim, "sharding.fsdp", fsdp))
        checks.append((f"{name}num_heads", model.num_heads, "sharding.tensor", parts))
        if "length" not in mesh.shape:
            checks.append((f"{name}mlp_dim", model.mlp_dim, "sharding.tensor", parts))
    problems = [
        f"{name}={size} does not divide over config.{over}={parts} devices. Change one of them."
        for name, size, over, parts in checks
        if size % parts
    ]
    if problems:
        raise ValueError("\n".join(problems))


def spec(*names: str) -> PartitionSpec:
    """Where an array with these logical axes lies on the current mesh.

    Raises:
      ValueError: an unknown name, or a mesh that cannot be used.
    """
    return _spec(names, _usable(jax.sharding.get_abstract_mesh()).axis_names)


def _usable(mesh):
    """The mesh itself; a warning, once, of axes that split nothing because no rule knows them.

    Raises:
      ValueError: axes of the type Explicit, which `jax.make_mesh` makes unless told otherwise.
    """
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if explicit := [name for name, kind in types.items() if kind == AxisType.Explicit]:
        raise ValueError(
            f"Mesh axes of type Explicit ({', '.join(explicit)}) must be of type Auto. Make the mesh by "
            "reformer.sharding.make_mesh, or pass axis_types=(jax.sharding.AxisType.Auto,) * number to jax.make_mesh."
        )
    foreign = [name for name, kind in types.items() if kind == AxisType.Auto and name not in AXES]
    if foreign := [f"{name}={mesh.shape[name]}" for name in foreign if mesh.shape[name] > 1]:
        _warn_once(
            f"Mesh axes {', '.join(foreign)} split nothing: every device along them computes the same. Axes are known "
            f"by the names {', '.join(AXES)}: make the mesh by reformer.sharding.make_mesh, or rename them."
        )
    return mesh


def check_is_set(x: jax.Array) -> None:
    """Warns, once, where an array lies on a mesh and none is set.

    Raises:
      ValueError: axes of the type Explicit.
    """
    mesh = jax.typeof(x).sharding.mesh
    if jax.sharding.get_abstract_mesh().empty and mesh.size > 1:
        sizes = ", ".join(f"{name}={size}" for name, size in _usable(mesh).shape.items())
        _warn_once(
            f"Arrays lie on a mesh ({sizes}) that is not set: the devices gather whole sequences from each other. "
            "Compute within `with jax.set_mesh(mesh):`, and take the mesh of reformer.sharding.make_mesh."
        )


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def _spec(names: tuple[str, ...], mesh_axes: tuple[str, ...]) -> PartitionSpec:
    for name in names:
        if name not in RULES:
            raise ValueError(f"Unknown logical axis {name!r}. Known: {', '.join(RULES)}.")
    unused, places = list(mesh_axes), []
    for name in names:
        places.append(tuple(axis for axis in RULES[name] if axis in unused) or None)
        unused = [axis for axis in unused if axis not in RULES[name]]
    return PartitionSpec(*places)


def length_spec(axis: int) -> PartitionSpec:
    """Where an array [batch, ...] with the length at `axis` lies on the current mesh."""
    return spec("act_batch", *["replicated"] * (axis - 1), "act_length")


def splits_length() -> bool:
    """Whether the devices of the current mesh hold parts of the length, which a loop over it must respect."""
    return num_parts("act_length") > 1


def splits_tokens() -> bool:
    """Whether the devices of the current mesh hold parts of the examples or of the length."""
    return num_parts("act_batch") > 1 or splits_length()


def num_parts(name: str) -> int:
    """Into how many parts the compiler splits a logical axis on the current mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in RULES[name] if axis in _left_to_compiler(mesh))


def _left_to_compiler(mesh) -> tuple[str, ...]:
    """The axes of a mesh but for those over which `shard_map` runs: along these, arrays are the parts of a device."""
    return tuple(axis for axis in mesh.axis_names if axis not in mesh.manual_axes)


def sum_over_mesh(tree, specs):
    """Sums the parts of all devices, within `shard_map`.

    Args:
      tree: arrays.
      specs: of the sums, a pytree prefix of `tree`: over axes that split the sums themselves nothing is summed.
    """
    axes = jax.sharding.get_abstract_mesh().manual_axes

    def add(spec, part):
        split = {axis for place in spec for axis in ([place] if isinstance(place, str) else place or ())}
        return jax.lax.psum(part, tuple(axis for axis in axes if axis not in split))

    return jax.tree.map(add, specs, tree, is_leaf=lambda x: isinstance(x, PartitionSpec))


def constrain(x: jax.Array, *names: str) -> jax.Array:
    """Tells the compiler where an activation lives, along the axes of the mesh that are left to it.

    Raises:
      ValueError: an unknown name, or not one name for each axis of `x`.
    """
    mesh = _usable(jax.sharding.get_abstract_mesh())
    axes = _left_to_compiler(mesh)
    place = _spec(names, axes)
    if len(names) != x.ndim:
        raise ValueError(f"{len(names)} logical axes {names} for an array of shape {x.shape}. Name every axis.")
    check_is_set(x)
    if not axes:
        return x
    return jax.lax.with_sharding_constraint(x, place)


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


def shard_map_tokens(fn: Callable, in_specs, out_specs) -> Callable:
    """`shard_map` over the axes that split examples and the length; what others split is left to the compiler."""
    mesh, of_tokens = jax.sharding.get_abstract_mesh(), RULES["act_batch"] + RULES["act_length"]
    axes = {axis for axis in mesh.axis_names if axis in of_tokens or mesh.shape[axis] == 1}
    return jax.shard_map(fn, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples over the axes data and fsdp."""
    return NamedSharding(mesh, _spec(("act_batch",), _usable(mesh).axis_names))


def parameter_shardings(tree, mesh: Mesh):
    """Shardings of a tree whose key paths end in those of parameters: parameters or optimizer states.

    A leaf that mirrors no parameter (a counter, a factored moment) is replicated.

    Raises:
      ValueError: `tree` is a parameter tree with a path that the table does not know.
    """
    axes = _usable(mesh).axis_names

    def place(path, leaf):
        sharding = NamedSharding(mesh, _leaf_spec(path, leaf, axes))
        return sharding if _divides(leaf.shape, sharding) else NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, tree)


def _divides(shape: tuple[int, ...], sharding: NamedSharding) -> bool:
    """False for a leaf that only looks like a parameter: Adafactor's placeholders of one element."""
    try:
        sharding.shard_shape(shape)
    except ValueError:
        return False
    return True


def _leaf_spec(path, leaf, mesh_axes: tuple[str, ...]) -> PartitionSpec:
    keys = [str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", "")))) for entry in path]
    for pattern, names in PARAMETER_AXES:
        if re.search(rf"(^|/){pattern}$", "/".join(keys)):
            names = ("layers", *names) if "stack" in keys else names
            return _spec(names, mesh_axes) if len(names) == len(leaf.shape) else PartitionSpec()
    if keys and "optimizer" not in keys and "step" not in keys:
        raise ValueError(f"Parameter {'/'.join(keys)} has no logical axes. Add it to sharding.PARAMETER_AXES.")
    return PartitionSpec()
