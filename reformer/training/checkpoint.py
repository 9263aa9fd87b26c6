"""Checkpoints of a run: the state, the position in the data and the config, written by Orbax and verified by us."""

import contextlib
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.host import paths
from reformer.training import distributed, manifest, memory, settings
from reformer.training.state import TrainState, abstract_params

NAME = "checkpoints"
METRIC = "bits"
_METRIC_WITHOUT_RANK = "bits_without_rank"
# Orbax moves what it no longer keeps here, which a kill cannot leave half-done; we delete it.
BIN = "deleted"


def _metric(metrics: dict[str, float]) -> float:
    # A checkpoint between two evaluations has no loss: it is never the best.
    return metrics.get(METRIC, float("inf"))


def _alone() -> ocp.options.MultiprocessingOptions:
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Says no: `stopping` asks, and an older step from Orbax's own thread would make JAX choose a passed one."""
        del step
        return False


class Checkpoints:
    """The checkpoints in `workdir/checkpoints`: the latest few, the one with the lowest loss, and every n-th step."""

    def __init__(
        self, workdir: Path, keep_latest: int = 1, keep_every_steps: int | None = None, read_only: bool = False
    ):
        """Opens the directory; unless `read_only`, removes what a kill left there and sets damaged checkpoints aside.

        Raises:
          ValueError: If `read_only` and there is no such directory.
          OSError: If there are checkpoints and none is intact.
        """
        self.directory = workdir.absolute() / NAME
        if read_only and not self.directory.is_dir():
            raise ValueError(f"workdir={workdir} has no checkpoints. Train first, until the first one is saved.")
        self._verified: set[int] = set()
        if not read_only:
            manifest.silence_echoes()
            intact = distributed.on_process_0(self._repair)
            self._verified.update([] if intact is None else [intact])
        managers = ocp.checkpoint_managers
        preserve = [managers.LatestN(keep_latest), managers.BestN(get_metric_fn=_metric, reverse=True, n=1)]
        if keep_every_steps is not None:
            preserve.append(managers.EveryNSteps(keep_every_steps))
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=managers.FixedIntervalPolicy(1),
            preservation_policy=managers.AnyPreservationPolicy(preserve),
            best_fn=_metric,
            best_mode="min",
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            # A reader looks into nothing that it has not verified, and waits for no other process.
            lightweight_initialize=read_only,
            multiprocessing_options=_alone() if read_only else ocp.options.MultiprocessingOptions(),
            temporary_path_class=manifest.ManifestedPath,
            todelete_subdir=BIN,
        )
        self._manager = _Manager(epath.Path(self.directory), options=options)

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Waits until what was saved is complete."""
        try:
            self.wait()
        except OSError as error:
            if kind is None:
                raise
            print(f"error: {error}", file=sys.stderr)  # beside the error that is on its way
        finally:
            with contextlib.suppress(Exception):  # it repeats what `wait` has raised
                self._manager.close()

    def wait(self) -> None:
        """Waits until what was saved is complete.

        Raises:
          OSError: If it could not be saved.
        """
        with self._saving():
            self._manager.wait_until_finished()
        self._empty_bin()

    def raise_if_failed(self) -> None:
        """Raises an OSError if what was saved last could not be; waits for nothing that is still being written."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Explains what goes wrong, and puts the checkpoint back that was to be replaced."""
        try:
            with manifest.explained_save(self.directory):
                yield
        except Exception:
            if distributed.is_writer():
                manifest.put_back(self.directory, self.directory / BIN)
            raise

    def _repair(self) -> int | None:
        manifest.put_back(self.directory, self.directory / BIN)
        self._empty_bin()
        return manifest.set_aside(self.directory)

    def _empty_bin(self) -> None:
        if distributed.is_writer() and (self.directory / BIN).exists():
            shutil.rmtree(self.directory / BIN, ignore_errors=True)

    @property
    def steps(self) -> list[int]:
        """Steps of all checkpoints."""
        return sorted(self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        """Step of the latest checkpoint, None if there is none."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the lowest loss, the latest if none was evaluated."""
        return next((step for step in self.from_best() if not self.problem(step, ["metrics"])), None)

    def from_best(self) -> list[int]:
        """Returns the steps from the lowest loss to the highest, then those without, the latest first.

        Those whose loss is damaged come before all others: each may be the best.
        """
        return sorted(self.steps, key=lambda step: (self._rank(step), -step))

    def _rank(self, step: int) -> float:
        return -float("inf") if self.problem(step, ["metrics"]) else _metric(self.metrics(step))

    def metrics(self, step: int) -> dict[str, float]:
        """Returns {name: validation loss} of a checkpoint, or nothing if that was not measured."""
        return self._manager.metrics(step) or {}

    def problem(self, step: int, items: list[str] | None = None) -> str | None:
        """Returns what is wrong with a checkpoint, None if it is intact; `items` as in `manifest.problem`."""
        if step in self._verified:
            return None
        found = manifest.problem(self.directory / str(step), items)
        if found is None and items is None:
            self._verified.add(step)
        return found

    def save(self, state: TrainState, data_state: dict, meta: dict, bits: float | None, ranks: bool = True) -> None:
        """Starts to write a checkpoint, which appears whole or not at all; replaces one of the same step.

        Args:
          state: Of all processes.
          data_state: Position in the data.
          meta: What else to keep, with the number of the step as `step`.
          bits: Validation loss, finite; None if it was not measured.
          ranks: Whether the lowest of these losses is the best; else the latest is.

        Raises:
          OSError: If this or the save before could not be done.
        """
        self.wait()
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(state.optimizer),
            data=ocp.args.JsonSave(data_state),
            meta=ocp.args.JsonSave(meta),
        )
        metrics = {} if bits is None else {METRIC if ranks else _METRIC_WITHOUT_RANK: bits}
        with self._saving():
            if meta["step"] in self.steps:
                self._manager.delete(meta["step"])
            self._manager.save(meta["step"], args=items, metrics=metrics)

    def meta(self, step: int) -> dict:
        """Returns what `save` was given as `meta`."""
        return self._restore(step, ["meta"], meta=ocp.args.JsonRestore())["meta"]

    def restore(self, step: int, target: TrainState) -> tuple[TrainState, dict]:
        """Returns the state and the position in the data.

        Args:
          step: Of the checkpoint.
          target: A state of `jax.ShapeDtypeStruct`s with shardings; a checkpoint fits any mesh.
        """
        items = self._restore(
            step,
            None,
            params=ocp.args.StandardRestore(target.params),
            optimizer=ocp.args.StandardRestore(target.optimizer),
            data=ocp.args.JsonRestore(),
        )
        count = jax.device_put(jax.numpy.asarray(step, target.step.dtype), target.step.sharding)
        return TrainState(step=count, params=items["params"], optimizer=items["optimizer"]), items["data"]

    def restore_params(self, step: int, target: Any) -> Any:
        """Returns the parameters alone."""
        return self._restore(step, None, params=ocp.args.StandardRestore(target))["params"]

    def _restore(self, step: int, verified_items: list[str] | None, **items: Any) -> Any:
        problem = self.problem(step, verified_items)
        if problem:
            raise OSError(manifest.sentence(self.directory / str(step), problem))
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax raises a bare Exception for a damaged array
            if memory.is_exhausted(error) or (isinstance(error, OSError) and error.errno):
                raise
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise OSError(
                f"checkpoint {self.directory / str(step)} cannot be read as {', '.join(items)}: {reason}. "
                "It is not a checkpoint of this model."
            ) from error
        return restored


def choose(checkpoints: Checkpoints, wanted: int | str) -> int:
    """Returns the step of the intact checkpoint `wanted`: 'best', 'latest' or a step.

    In place of a damaged best or latest one comes the next in that order; each damaged one is named on stderr.

    Raises:
      ValueError: If there is no such checkpoint.
      OSError: If it is damaged, and for 'best' and 'latest' all others are as well.
    """
    steps = checkpoints.steps
    if not steps:
        raise ValueError(f"{checkpoints.directory} holds no checkpoint. Train first, until the first one is saved.")
    if wanted not in ("best", "latest"):
        if str(wanted) not in map(str, steps):
            raise ValueError(f"checkpoint={wanted!r} does not exist. Choose best, latest or one of {steps}.")
        return _first_intact(checkpoints, [int(wanted)])
    return _first_intact(checkpoints, checkpoints.from_best() if wanted == "best" else reversed(steps))


def _first_intact(checkpoints: Checkpoints, steps: Iterable[int]) -> int:
    problems: dict[int, str] = {}
    for step in steps:
        problem = checkpoints.problem(step)
        if problem is None:
            manifest.report(checkpoints.directory, problems, f"using checkpoint {step}")
            return step
        problems[step] = problem
    raise OSError(manifest.none_is_intact(checkpoints.directory, problems))


def load(
    workdir: str | Path, step: int | str = "best", mesh: jax.sharding.Mesh | None = None
) -> tuple[ReformerConfig, dict[str, Any]]:
    """Returns a trained model.

    Args:
      workdir: The directory given to train.py.
      step: 'best' (lowest validation loss, of ELECTRA the latest), 'latest', or the number of a kept checkpoint.
      mesh: Of devices that share the variables, from `sharding.make_mesh`; None = the default device.

    Returns:
      The config and the variables of the model, such as `ReformerLM(config)`.

    Raises:
      ValueError: If the directory is not the workdir of a run, or has no such checkpoint.
      OSError: If the checkpoint is damaged; 'best' and 'latest' fall back to the next one that is not.
    """
    workdir = paths.local(workdir)
    config = settings.read(workdir)
    mesh = mesh or sharding.make_mesh(devices=jax.local_devices()[:1])
    with Checkpoints(workdir, read_only=True) as checkpoints:
        target = abstract_params(settings.make_model(config), mesh)
        params = checkpoints.restore_params(choose(checkpoints, step), target)
    return settings.model_config(config), {"params": params}
