"""Runs and checkpoints that several tests make and compare."""

import json
import os
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from reformer.training import checkpoint, loop, metrics, settings
from reformer.training.checkpoint import Checkpoints
from reformer.training.state import TrainState, init_params

ROOT = Path(__file__).parents[2]


def run(config, workdir):
    """Makes a run and returns its result."""
    return loop.train(loop.prepare(config, str(workdir)))


def records(workdir):
    """Returns the journal without what depends on the machine."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in metrics.MACHINE_DEPENDENT} for line in lines]


def assert_same(one, other):
    """Equal arrays, bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_same_run(one, other):
    """Equal journals, but for changed configs, and, bit for bit, equal parameters at the last step."""
    journals = [[line for line in records(run) if line["split"] != "changed"] for run in (one, other)]
    assert journals[0] == journals[1]
    assert_same(*(checkpoint.load(workdir, "latest")[1] for workdir in (one, other)))


def stop_at_batch(monkeypatch, kind, count):
    """Sends SIGTERM when the `count`-th training or evaluation batch goes to the devices."""
    original, seen = loop.batches.to_mesh, []

    def to_mesh(batch, mesh):
        if ("weights" in batch) == (kind == "evaluation"):
            seen.append(kind)
            if len(seen) == count:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)
        return original(batch, mesh)

    monkeypatch.setattr(loop.batches, "to_mesh", to_mesh)


def initial_params(config, seed=0):
    """Returns the initial parameters of a config's model, by one program."""
    return _init(settings.make_model(config), seed)


_init = jax.jit(init_params, static_argnums=(0, 1))


def save_untrained(config, directory, step=1):
    """Makes a workdir whose only checkpoint has the initial parameters; returns it."""
    params = initial_params(config)
    state = TrainState(step=jnp.array(step), params=params, optimizer={"count": jnp.array(step)})
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(state, {"next_index": 0}, {"step": step}, 8.0)
    settings.write(directory / "config.json", config)
    return directory


def state_of(step):
    """Returns a small state that is another at each step."""
    values = jnp.arange(6.0).reshape(2, 3) + step
    return TrainState(
        step=jnp.array(step), params={"kernel": values}, optimizer=({"moment": 2 * values}, jnp.array(step))
    )


def target():
    """Returns the shapes of `state_of`."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state_of(0))


def save(checkpoints, step, bits=None):
    """Starts to save `state_of(step)`."""
    checkpoints.save(state_of(step), {"next_index": step}, {"step": step, "data": "abc"}, bits)


def restored(checkpoints, step):
    """Returns the state of a checkpoint."""
    return checkpoints.restore(step, target())[0]
