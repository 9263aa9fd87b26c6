"""A run: what was checked before it, and what its steps need beside the state."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from reformer.config import ReformerConfig
from reformer.data.source import Source
from reformer.training.checkpoint import Checkpoints
from reformer.training.fine_tuning import Origin
from reformer.training.guards import Guard
from reformer.training.metrics import Journal
from reformer.training.profiling import Profiler, Steps
from reformer.training.progress import Progress
from reformer.training.stopping import Stopping
from reformer.training.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class Run:
    """An experiment whose config, data, devices and workdir were checked."""

    config: ConfigDict
    model_config: ReformerConfig
    data: Source
    mesh: jax.sharding.Mesh
    workdir: Path
    profile_steps: Steps | None = None
    origin: Origin | None = None  # of the parameters of a run that begins; None = random


@dataclasses.dataclass(frozen=True)
class Machinery:
    """What the steps of a run need beside its state."""

    batches: Any  # training batches of this process, with get_state and set_state
    checkpoints: Checkpoints
    journal: Journal
    progress: Progress
    profiler: Profiler
    guard: Guard
    watchdog: Watchdog
    stopper: Stopping
