"""A run: it resumes exactly, stops when the loss is broken, and never touches what is not its own."""

import contextlib
import json
import shutil

import pytest

from reformer.training import checkpoint, continuation, loop, metrics, settings, writers
from tests.training.runs import assert_same_run, records, run


@pytest.fixture(scope="module")
def unbroken(make_config, tmp_path_factory):
    """A run of 6 steps and its result."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    return workdir, run(make_config(), workdir)


def test_a_run_records_every_step_once_and_every_evaluation(unbroken):
    workdir, result = unbroken
    steps = {split: [r["step"] for r in records(workdir) if r["split"] == split] for split in ("train", "valid", "lsh")}
    assert steps == {"train": [1, 2, 3, 4, 5, 6], "valid": [4, 6], "lsh": [4, 6]}
    assert result["split"] == "valid" and result["step"] == 6
    buckets = [r for r in records(workdir) if r["split"] == "lsh"][-1]
    assert buckets["num_buckets"] == 8 and 1 / 8 < buckets["layer_0_largest_share"] < 1
    assert result["bits_per_byte"] == [r for r in records(workdir) if r["split"] == "valid"][-1]["bits_per_byte"]
    assert result["hash_spread"]["lowest"] <= result["bits_per_byte"] <= result["hash_spread"]["highest"]


def test_the_resolved_config_lies_beside_the_checkpoints(unbroken, config):
    workdir, _ = unbroken
    assert json.loads((workdir / "config.json").read_text()) == settings.as_json(config)
    assert {"checkpoints", "config.json", "metrics.jsonl", "events"} <= {path.name for path in workdir.iterdir()}


@pytest.mark.slow
def test_a_run_that_failed_and_continues_equals_an_unbroken_one(unbroken, config, tmp_path, monkeypatch):
    original = loop.batches.to_mesh
    calls = iter(range(100))

    def to_mesh_until_the_fifth(batch, mesh):
        if "weights" not in batch and next(calls) == 4:
            raise KeyboardInterrupt
        return original(batch, mesh)

    monkeypatch.setattr(loop.batches, "to_mesh", to_mesh_until_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    monkeypatch.undo()
    result = run(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", unbroken[0])
    assert result == unbroken[1]


def test_a_finished_run_is_evaluated_again_and_not_changed(unbroken, config):
    workdir, result = unbroken
    before = records(workdir)
    assert run(config, workdir) == result
    assert records(workdir) == before


def test_a_finished_run_says_that_nothing_is_trained_and_keeps_its_config(unbroken, config, capsys):
    workdir, _ = unbroken
    before = (workdir / "config.json").read_bytes(), records(workdir)
    config.optimizer.learning_rate, config.training.num_steps = 0.1, 5
    run(config, workdir)
    assert ((workdir / "config.json").read_bytes(), records(workdir)) == before
    assert checkpoint.Checkpoints(workdir, read_only=True).meta(6)["config"] == json.loads(before[0])
    said = capsys.readouterr().out
    assert "nothing is left to train: 6 steps are done, and config.training.num_steps=5\n" in said
    assert "optimizer.learning_rate 0.05 -> 0.1 trains nothing; config.json stays as it is\n" in said


@pytest.mark.slow
def test_a_run_that_goes_on_says_and_journals_what_changed(unbroken, config, tmp_path, capsys):
    shutil.copytree(unbroken[0], tmp_path / "run")
    config.optimizer.learning_rate, config.training.num_steps = 0.1, 7
    changes = {"optimizer.learning_rate": [0.05, 0.1], "training.num_steps": [6, 7]}
    run(config, tmp_path / "run")
    assert [r for r in records(tmp_path / "run") if r["split"] == "changed"] == [
        {"split": "changed", "step": 7, "changes": changes}
    ]
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == settings.as_json(config)
    said = capsys.readouterr().out
    assert "optimizer.learning_rate 0.05 -> 0.1 from step 7\n" in said
    run(config, tmp_path / "run")
    assert " -> " not in capsys.readouterr().out


def test_changes_of_a_run_killed_before_its_next_checkpoint_are_journalled_again(unbroken, config, tmp_path):
    shutil.copytree(unbroken[0], tmp_path / "run")
    config.optimizer.learning_rate, config.training.num_steps = 0.1, 7
    finished = loop.prepare(config, str(tmp_path / "run"))
    for _ in range(2):
        opening = writers.Opening(tmp_path / "run", 6, {})
        with contextlib.closing(metrics.Journal(opening)) as journal, _checkpoints(finished) as checkpoints:
            continuation.keep(finished.workdir, finished.config, checkpoints, journal, 6)
    assert [r["step"] for r in records(tmp_path / "run") if r["split"] == "changed"] == [7]


@pytest.mark.parametrize(("num_steps", "rate"), [(12, "0.025"), (6, None)])
def test_an_extended_cosine_schedule_warns_of_the_rate_that_jumps(unbroken, config, num_steps, rate):
    config.training.num_steps = num_steps
    finished = loop.prepare(config, str(unbroken[0]))
    with _checkpoints(finished) as checkpoints:
        said = "\n".join(continuation.describe(finished.config, checkpoints, 6))
    expected = (
        f"cosine schedule was one of 6 steps and is one of 12: the learning rate of step 7 is {rate} instead of 0."
    )
    assert (expected in said) == (rate is not None)


def _checkpoints(finished):
    return checkpoint.Checkpoints(finished.workdir, read_only=True)


def test_another_model_in_the_same_workdir_is_refused_with_both_values(unbroken, config):
    config.model.num_hashes = 1
    with pytest.raises(ValueError, match=r"another config \(model.num_hashes: 2 -> 1\). Use the same config"):
        loop.prepare(config, str(unbroken[0]))


def test_losses_of_other_examples_would_not_be_compared(unbroken, config):
    config.evaluation.batch_size *= 2
    loop.prepare(config, str(unbroken[0]))
    config.evaluation.max_examples = 1
    with pytest.raises(ValueError, match=r"another config \(evaluation.max_examples: None -> 1\)"):
        loop.prepare(config, str(unbroken[0]))


def test_another_seed_in_the_same_workdir_is_refused(unbroken, config):
    config.seed = 1
    with pytest.raises(ValueError, match=r"seed: 0 -> 1"):
        loop.prepare(config, str(unbroken[0]))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"something else " * 1000,
        lambda text: text[:-1],
        lambda text: text[: len(text) // 2],
        lambda text: text + b".",
        lambda text: text[:5000] + b"X" + text[5001:],
    ],
    ids=["replaced", "a byte shorter", "truncated", "lengthened", "a byte changed"],
)
def test_data_that_changed_between_runs_are_refused(unbroken, config, text_file, tmp_path, change):
    (tmp_path / "words.txt").write_bytes(change(text_file.read_bytes()))
    config.data.path = str(tmp_path / "words.txt")
    with pytest.raises(ValueError, match=r"are not those that workdir=.* was trained on"):
        loop.prepare(config, str(unbroken[0]))


def test_a_directory_with_other_files_is_left_alone(config, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds files but no config.json"):
        loop.prepare(config, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_a_broken_loss_stops_the_run_and_is_never_saved(config, tmp_path):
    config.optimizer.update(name="adamw", learning_rate=1e38, warmup_steps=0, clip_norm=None)
    config.model.update(attention_pattern=("local",), num_layers=1)
    config.checkpoint.every_steps = 1
    with pytest.raises(FloatingPointError, match=r"at step \d+: training broke down between steps"):
        run(config, tmp_path / "run")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoint.load(tmp_path / "run")
