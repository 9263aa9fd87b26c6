"""Three of the fifty kills of `make soak`."""

import subprocess
import sys

import pytest

from benchmarks import kills, soak
from tests.training.runs import ROOT


def test_a_process_is_killed_where_a_test_asks_for_it_and_nowhere_else():
    code = "from benchmarks import kills\nkill = kills.Kill('here:2')\n"
    code += "for i in range(3): print(i, flush=True); kill.passes('here')"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert (process.returncode, process.stdout.split()) == (-9, [b"0", b"1"])
    nowhere = kills.Kill("")
    for _ in range(3):
        nowhere.passes("here")


def test_the_soak_kills_each_phase_at_least_five_times_and_every_point_of_a_save():
    points = [kill.split(":")[0] for chain in soak.chains(5) for kill in chain]
    assert len(points) == 50
    assert all(points.count(phase) >= 5 for phase in ("compile", "train", "restore", "evaluate"))
    assert sum(points.count(point) for point in soak.SAVE_POINTS) >= 5
    assert set(soak.SAVE_POINTS) < set(points)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_comes_to_the_same_bits(tmp_path):
    records = soak.Soak(tmp_path, num_steps=12).chain("killed", ["save_some:2", "restore:3", "evaluate:2"])
    assert [record["saved"] for record in records][:2] == [2, 2]
