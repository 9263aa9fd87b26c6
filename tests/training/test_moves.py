"""A run that moves to other devices, or to another number of processes, goes on with the same batches and losses."""

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest

from benchmarks import kills
from reformer import sharding
from reformer.training import loop, stopping
from tests.processes import Processes, small_run
from tests.training.runs import records, stop_at_batch


def run_on(num_devices, config, workdir, fsdp=1):
    """Makes or continues a run on the first devices."""
    prepared = loop.prepare(config, str(workdir))
    mesh = sharding.make_mesh(fsdp=fsdp, devices=jax.devices()[:num_devices])
    return loop.train(dataclasses.replace(prepared, mesh=mesh))


def assert_same_losses(one, other):
    """Equal journals but for the order in which numbers were added."""
    for first, second in zip(records(one), records(other), strict=True):
        assert first.keys() == second.keys() and (first["split"], first["step"]) == (second["split"], second["step"])
        if "bits_per_byte" in first:
            np.testing.assert_allclose(first["bits_per_byte"], second["bits_per_byte"], rtol=1e-5)


@pytest.mark.slow
def test_from_one_device_to_eight_and_back_the_losses_are_the_same(config, tmp_path, monkeypatch):
    run_on(1, config, tmp_path / "unmoved")
    for num_devices, fsdp in ((1, 1), (8, 2)):
        stop_at_batch(monkeypatch, "training", 2)
        with pytest.raises(stopping.Stopped):
            run_on(num_devices, config, tmp_path / "moved", fsdp)
        monkeypatch.undo()
    run_on(1, config, tmp_path / "moved")
    assert_same_losses(tmp_path / "moved", tmp_path / "unmoved")


def said(ended):
    """Returns the JSON object that the program printed last."""
    assert ended.code == 0, ended.err
    return json.loads(ended.out.splitlines()[-1])


@pytest.mark.slow
def test_from_one_process_to_two_through_signals_and_a_kill_the_losses_are_the_same(text_file, tmp_path):
    flags = small_run(text_file, training__num_steps=12, checkpoint__every_steps=2, evaluation__every_steps=6)

    def start(name, number, num_processes=1, kill=""):
        workdir, logs = f"--workdir={tmp_path / name}", tmp_path / f"{name}_{number}"
        environment = {kills.VARIABLE: kill, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
        devices = {"program": "benchmarks/kills.py", "num_processes": num_processes, "num_devices": num_processes}
        return Processes(logs, *flags, workdir, environment=environment, **devices)

    with start("unmoved", 0) as processes:
        said(*processes.wait())
    with start("moved", 0, kill="train:3:TERM") as processes:  # a signal to the only process
        (ended,) = processes.wait()
    first = said(ended)["step"]
    assert f"stopped after step {first}; the same command continues from there" in ended.out and first in (3, 4)
    with start("moved", 1, 2) as processes:  # a signal to one of two
        processes.wait_for("compiling the training step")
        processes.signal(1, signal.SIGTERM)
        ended = processes.wait()
    assert [each.code for each in ended] == [0, 0], ended
    second = said(ended[0])["step"]
    assert first < second < 12
    assert f"continuing after step {first}" in ended[0].out
    with start("moved", 2, 2, "save_commit:1") as processes:  # the writer is killed in the first save
        killed, other = processes.wait()
    assert f"continuing after step {second}" in killed.out
    assert killed.code == -signal.SIGKILL
    assert other.code > 0 and "error: " in other.err and "Traceback" not in other.err
    with start("moved", 3, 2) as processes:
        ended, _ = processes.wait()
    assert f"continuing after step {second}" in ended.out
    assert said(ended)["step"] == 12
    assert_same_losses(tmp_path / "moved", tmp_path / "unmoved")
