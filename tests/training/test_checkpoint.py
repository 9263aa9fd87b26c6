"""What is kept, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer.training import checkpoint, settings
from reformer.training.checkpoint import Checkpoints
from reformer.training.state import TrainState
from tests.training.runs import initial_params, save, state_of, target


def test_everything_that_is_saved_is_restored(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 3)
    with Checkpoints(tmp_path) as checkpoints:
        state, data_state = checkpoints.restore(3, target())
        assert checkpoints.meta(3) == {"step": 3, "data": "abc"}
    assert data_state == {"next_index": 3}
    jax.tree.map(np.testing.assert_array_equal, state, state_of(3))


def test_the_latest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        for step, bits in ((1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, None), (6, None)):
            save(checkpoints, step, bits)
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        assert checkpoints.steps == [2, 5, 6]
        assert (checkpoints.best, checkpoints.latest) == (2, 6)


def test_losses_that_do_not_rank_leave_the_latest_as_the_best(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, bits in ((1, 1.0), (2, 2.0)):
            checkpoints.save(state_of(step), {}, {"step": step}, bits, ranks=False)
        checkpoints.wait()
        assert checkpoints.best == 2
        assert list(checkpoints.metrics(2).values()) == [2.0]  # it is known to be evaluated


def test_an_intact_checkpoint_that_was_to_be_deleted_replaces_damaged_ones_that_followed_it(tmp_path, capsys):
    with Checkpoints(tmp_path, keep_latest=3) as checkpoints:
        for step in (1, 2, 3):
            save(checkpoints, step)
    directory = tmp_path / "checkpoints"
    (directory / "deleted").mkdir()
    (directory / "1").rename(directory / "deleted" / "1")
    (directory / "2").rename(directory / "deleted" / "2")
    (directory / "3" / "manifest.json").unlink()
    with Checkpoints(tmp_path, keep_latest=3) as checkpoints:
        assert checkpoints.steps == [1, 2]
    assert "checkpoints/3 is damaged" in capsys.readouterr().err
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2", "damaged"]


def test_every_nth_step_is_kept_as_well(tmp_path):
    with Checkpoints(tmp_path, keep_latest=1, keep_every_steps=3) as checkpoints:
        for step in range(1, 9):
            save(checkpoints, step, 9.0 - step if step < 3 else None)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps == [2, 3, 6, 8]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3", "6", "8"]


def test_a_checkpoint_is_replaced_by_one_of_the_same_step(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 1, 2.0)
        checkpoints.wait()
        assert checkpoints.metrics(1) == {"bits": 2.0}


def test_a_checkpoint_that_was_about_to_be_replaced_when_the_run_was_killed_is_still_there(tmp_path):
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2)
    (tmp_path / "checkpoints" / "deleted").mkdir()
    (tmp_path / "checkpoints" / "2").rename(tmp_path / "checkpoints" / "deleted" / "2")
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        assert checkpoints.steps == [1, 2]


def test_what_a_kill_left_is_removed(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
    for name in ("2.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-complete", "deleted/0"):
        (tmp_path / "checkpoints" / name / "params").mkdir(parents=True)
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        save(checkpoints, 2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


def test_without_evaluations_the_latest_is_the_best(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2)
        checkpoints.wait()
        assert checkpoints.best == 2


def test_a_checkpoint_is_chosen_by_name_or_step(tmp_path):
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        save(checkpoints, 1, 1.0)
        save(checkpoints, 2, 2.0)
        checkpoints.wait()
        assert [checkpoint.choose(checkpoints, wanted) for wanted in ("best", "latest", "1", 2)] == [1, 2, 1, 2]
        with pytest.raises(ValueError, match=r"checkpoint='7' does not exist. Choose best, latest or one of \[1, 2\]"):
            checkpoint.choose(checkpoints, "7")


def test_a_run_without_checkpoints_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no checkpoints. Train first"):
        Checkpoints(tmp_path, read_only=True)


def test_a_foreign_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "checkpoints" / "5" / "weights.bin").write_bytes(b"something")
    with (
        Checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(OSError, match=r"checkpoints/5 is damaged: it has no manifest.json"),
    ):
        checkpoints.restore_params(5, target().params)


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        checkpoints.wait()
        with pytest.raises(OSError, match=r"checkpoints/1 cannot be read as params: .*not a checkpoint of this model"):
            checkpoints.restore_params(1, {"another": target().params["kernel"]})


def test_load_gives_the_config_and_the_parameters_to_library_users(config, tmp_path):
    model_config = settings.model_config(config)
    params = initial_params(config, seed=5)
    settings.write(tmp_path / "config.json", config)
    with Checkpoints(tmp_path) as checkpoints:
        state = TrainState(step=jnp.array(1), params=params, optimizer={"count": jnp.array(1)})
        checkpoints.save(state, {}, {"step": 1}, 2.0)
    loaded_config, variables = checkpoint.load(tmp_path)
    assert loaded_config == model_config
    jax.tree.map(np.testing.assert_array_equal, variables["params"], params)
