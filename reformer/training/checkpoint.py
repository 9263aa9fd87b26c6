"""Checkpoints of a run: the state, the position in the data and the config, written by Orbax."""

import functools
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.training import settings
from reformer.training.state import TrainState, abstract, init_params

METRIC = "bits"


def _metric(metrics: dict[str, float]) -> float:
    # A checkpoint between two evaluations has no loss: it is never the best.
    return metrics.get(METRIC, float("inf"))


def _alone() -> ocp.options.MultiprocessingOptions:
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )


class Checkpoints:
    """The checkpoints in `workdir/checkpoints`: the latest few and the one with the lowest loss."""

    def __init__(self, workdir: Path, keep_latest: int = 1, read_only: bool = False):
        """Opens the directory and, unless `read_only`, removes what an interrupted save left there.

        Raises:
          ValueError: If `read_only` and there is no such directory.
        """
        self.directory = workdir.absolute() / "checkpoints"
        if read_only and not self.directory.is_dir():
            raise ValueError(f"workdir={workdir} has no checkpoints. Train first, until the first one is saved.")
        managers = ocp.checkpoint_managers
        preserve = [managers.LatestN(keep_latest), managers.BestN(get_metric_fn=_metric, reverse=True, n=1)]
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=managers.FixedIntervalPolicy(1),
            preservation_policy=managers.AnyPreservationPolicy(preserve),
            best_fn=_metric,
            best_mode="min",
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            # A reader waits for no other process.
            multiprocessing_options=_alone() if read_only else ocp.options.MultiprocessingOptions(),
        )
        self._manager = ocp.CheckpointManager(epath.Path(self.directory), options=options)

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Waits until what was saved is complete."""
        self.wait()
        self._manager.close()

    def wait(self) -> None:
        """Waits until what was saved is complete."""
        self._manager.wait_until_finished()

    @property
    def steps(self) -> list[int]:
        """Steps of all checkpoints."""
        return sorted(self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        """Step of the latest checkpoint, None if there is none."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the lowest loss, the latest if none was evaluated."""
        evaluated = [step for step in self.steps if METRIC in (self._manager.metrics(step) or {})]
        return self._manager.best_step() if evaluated else self.latest

    def save(self, state: TrainState, data_state: dict, meta: dict, bits: float | None) -> None:
        """Starts to write a checkpoint, which appears whole or not at all; `bits` is its validation loss, finite."""
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(state.optimizer),
            data=ocp.args.JsonSave(data_state),
            meta=ocp.args.JsonSave(meta),
        )
        metrics = {} if bits is None else {METRIC: bits}
        self._manager.save(meta["step"], args=items, metrics=metrics)

    def meta(self, step: int) -> dict:
        """Returns what `save` was given as `meta`."""
        return self._restore(step, meta=ocp.args.JsonRestore())["meta"]

    def restore(self, step: int, target: TrainState) -> tuple[TrainState, dict]:
        """Returns the state and the position in the data.

        Args:
          step: Of the checkpoint.
          target: A state of `jax.ShapeDtypeStruct`s with shardings; a checkpoint fits any mesh.
        """
        items = self._restore(
            step,
            params=ocp.args.StandardRestore(target.params),
            optimizer=ocp.args.StandardRestore(target.optimizer),
            data=ocp.args.JsonRestore(),
        )
        count = jax.device_put(jax.numpy.asarray(step, target.step.dtype), target.step.sharding)
        return TrainState(step=count, params=items["params"], optimizer=items["optimizer"]), items["data"]

    def restore_params(self, step: int, target: Any) -> Any:
        """Returns the parameters alone."""
        return self._restore(step, params=ocp.args.StandardRestore(target))["params"]

    def _restore(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax raises a bare Exception for a damaged array
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise OSError(
                f"checkpoint {self.directory / str(step)} cannot be read as {', '.join(items)}: {reason}. "
                "It is damaged or not a checkpoint of this program."
            ) from error


def choose(checkpoints: Checkpoints, wanted: int | str) -> int:
    """Returns the step of the checkpoint `wanted`: 'best', 'latest' or a step.

    Raises:
      ValueError: If there is no such checkpoint.
    """
    steps = checkpoints.steps
    if not steps:
        raise ValueError(f"{checkpoints.directory} holds no checkpoint. Train first, until the first one is saved.")
    if wanted == "latest":
        return steps[-1]
    if wanted == "best":
        return checkpoints.best or steps[-1]
    if str(wanted) not in map(str, steps):
        raise ValueError(f"checkpoint={wanted!r} does not exist. Choose best, latest or one of {steps}.")
    return int(wanted)


def load(
    workdir: str | Path, step: int | str = "best", mesh: jax.sharding.Mesh | None = None
) -> tuple[ReformerConfig, dict[str, Any]]:
    """Returns a trained model.

    Args:
      workdir: The directory given to train.py.
      step: 'best' (lowest validation loss), 'latest', or the number of a kept checkpoint.
      mesh: Of devices that share the variables, from `sharding.make_mesh`; None = the default device.

    Returns:
      The config and the variables of `ReformerLM(config)`.

    Raises:
      ValueError: If the directory is not the workdir of a run, or has no such checkpoint.
    """
    workdir = Path(workdir)
    config = settings.model_config(settings.read(workdir))
    mesh = mesh or sharding.make_mesh(devices=jax.local_devices()[:1])
    with Checkpoints(workdir, read_only=True) as checkpoints:
        params = checkpoints.restore_params(choose(checkpoints, step), abstract_params(config, mesh))
    return config, {"params": params}


def abstract_params(config: ReformerConfig, mesh: jax.sharding.Mesh) -> Any:
    """Returns the shapes, dtypes and shardings of a model's parameters."""
    with jax.set_mesh(mesh):
        return abstract(functools.partial(init_params, config, 0), mesh)


def param_shapes(config: ReformerConfig) -> dict[str, tuple[int, ...]]:
    """Returns {'path/to/parameter': shape} of a model."""
    params = jax.eval_shape(functools.partial(init_params, config, 0))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(entry.key for entry in path): leaf.shape for path, leaf in leaves}
