"""Three of the fifty kills of `make soak`."""

import pytest

from benchmarks import soak


def test_the_soak_kills_each_phase_at_least_five_times_and_every_point_of_a_save():
    kills = [kill.split(":")[0] for chain in soak.chains(5) for kill in chain]
    assert len(kills) == 50
    assert all(kills.count(phase) >= 5 for phase in ("compile", "train", "restore", "evaluate"))
    assert sum(kills.count(point) for point in soak.SAVE_POINTS) >= 5
    assert set(soak.SAVE_POINTS) < set(kills)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_comes_to_the_same_bits(tmp_path):
    records = soak.Soak(tmp_path, num_steps=12).chain("killed", ["save_some:2", "restore:3", "evaluate:2"])
    assert [record["saved"] for record in records][:2] == [2, 2]
