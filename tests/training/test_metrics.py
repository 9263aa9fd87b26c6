"""Records: what they hold, when they are read, and how a resumed run continues them."""

import json
import math
import time

import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from reformer.training import memory, metrics, writers
from reformer.training.guards import Guard
from reformer.training.metrics import Progress


class KeptJournal(metrics.Journal):
    """Keeps the records it is given in place of writing them."""

    def __init__(self):
        self.records = []

    @property
    def steps(self):
        return [record["step"] for record in self.records]

    def write(self, record):
        self.records.append(record)


class KeptProgress(Progress):
    """Keeps the steps and the lines it is given in place of showing them."""

    def __init__(self):
        self.steps, self.lines = [], []

    def say(self, line):
        self.lines.append(line)

    def update(self, record):
        self.steps.append(record["step"])


def journal_in(workdir, resumed_step=0, **options):
    return metrics.Journal(writers.Opening(workdir, resumed_step, {"seed": 0}), ("tensorboard",), **options)


def values(nats=8.0):
    names = ("gradient_norm", "update_norm", "learning_rate")
    scalars = {"nats": jnp.array(nats), "weight": jnp.array(4.0), **dict.fromkeys(names, jnp.array(1.0))}
    return scalars | {"finite_gradients": jnp.array([math.isfinite(nats)])}


def make_reader(log_every_steps, max_skipped=0):
    guard = Guard("byte", ["head/kernel"], max_skipped)
    return metrics.StepReader(KeptJournal(), KeptProgress(), guard, 4, log_every_steps)


def test_a_step_is_read_after_the_next_one_was_dispatched():
    reader = make_reader(log_every_steps=2)
    journal, progress = reader._journal, reader._progress
    seen = []
    for number in range(1, 5):
        reader.push(number, values())
        seen.append(list(progress.steps))
    assert seen == [[], [1], [1, 2], [1, 2, 3]]
    reader.flush()
    assert progress.steps == [1, 2, 3, 4]
    assert journal.steps == [2, 4]


def test_a_loss_that_is_not_finite_stops_with_the_step_range():
    reader = make_reader(log_every_steps=10)
    reader.push(6, values())
    reader.push(7, values(float("nan")))
    with pytest.raises(FloatingPointError, match=r"nats=nan at step 7: training broke down between steps 6 and 7"):
        reader.push(8, values())


def test_a_skipped_update_is_recorded_as_such_and_not_as_a_loss():
    reader = make_reader(log_every_steps=1, max_skipped=1)
    for step, nats in ((1, 8.0), (2, float("nan")), (3, 8.0)):
        reader.push(step, values(nats))
    reader.flush()
    assert reader._progress.steps == [1, 3]
    assert [(record["split"], record["step"]) for record in reader._journal.records] == [
        ("train", 1),
        ("skipped", 2),
        ("train", 3),
    ]
    assert "step 2: update skipped, 1 in a row. nats=nan. Gradients of 1 of 1" in reader._progress.lines[-1]


def test_the_time_of_the_first_step_is_said_once():
    reader = make_reader(log_every_steps=1)
    reader.start()
    for step in (1, 2, 3):
        reader.push(step, values())
    assert [line.split(" ")[:4] for line in reader._progress.lines] == [["the", "first", "step", "took"]]


def test_every_training_record_holds_the_time_of_a_step():
    reader = make_reader(log_every_steps=1)
    reader.start()
    for step in (1, 2):
        reader.push(step, values())
    reader.flush()  # for an evaluation
    reader.push(3, values())
    reader.flush()
    of_steps = [record["seconds_per_step"] for record in reader._journal.records]
    assert len(of_steps) == 3 and min(of_steps) > 0
    assert of_steps[2] == of_steps[1]  # it was not measured, for the evaluation was in between
    for record in reader._journal.records:
        assert record["tokens_per_second"] == pytest.approx(4 / record["seconds_per_step"], rel=0.1)


def test_every_record_holds_the_time_of_day(tmp_path):
    began, journal = time.time(), journal_in(tmp_path)
    for split in ("train", "valid", "lsh", "skipped"):
        journal.write({"split": split, "step": 1})
    journal.close()
    times = [record["time"] for record in metrics.read_records(tmp_path / "metrics.jsonl")]
    assert len(times) == 4 and began - 1 < min(times) <= max(times) < time.time() + 1


def test_a_record_of_the_journal_holds_the_peak_of_memory():
    reader = make_reader(log_every_steps=1)
    ballast = np.ones(2**20)
    reader.push(1, values())
    reader.flush()
    assert reader._journal.records[0]["peak_memory_bytes"] > ballast.nbytes
    assert memory.peak_bytes() >= reader._journal.records[0]["peak_memory_bytes"]


def test_a_record_holds_nats_and_bits_of_one_step():
    scalars = {name: float(value) for name, value in values().items() if name != "finite_gradients"}
    record = metrics.step_record(3, scalars, "byte")
    assert record["loss"] == 2.0
    assert record["bits_per_byte"] == 2 / math.log(2)


def test_a_resumed_journal_drops_later_records_and_a_torn_line(tmp_path):
    journal = journal_in(tmp_path)
    for step in (1, 2, 3):
        journal.write({"split": "train", "step": step, "loss": 1.0 / step})
    journal.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "st')
    journal = journal_in(tmp_path, 2)
    journal.write({"split": "train", "step": 3, "loss": 0.25})
    journal.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(record["step"], record["loss"]) for record in records] == [(1, 1.0), (2, 0.5), (3, 0.25)]


def test_a_journal_drops_scores_that_are_made_up_for(tmp_path):
    journal = journal_in(tmp_path)
    for split, step in (("train", 1), ("valid", 1), ("train", 2), ("valid", 2)):
        journal.write({"split": split, "step": step})
    journal.close()
    journal_in(tmp_path, 2, is_evaluated=False).close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(record["split"], record["step"]) for record in records] == [("train", 1), ("valid", 1), ("train", 2)]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    journal = journal_in(tmp_path)
    journal.write({"split": "valid", "step": 1, "bits_per_byte": 2.0, "reason": "words are left out"})
    journal.close()
    assert b"valid/bits_per_byte" in b"".join(path.read_bytes() for path in (tmp_path / "events").iterdir())


def test_event_files_are_named_in_the_order_of_the_starts_and_lose_nothing_in_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", iter([3e9, *[2e9] * 100]).__next__)  # the clock was set back
    first = journal_in(tmp_path)
    first.write({"split": "valid", "step": 1, "bits_per_byte": 2.0})
    (file,) = (tmp_path / "events").iterdir()
    assert b"valid/bits_per_byte" in file.read_bytes()  # and it was not closed
    journal_in(tmp_path, 1).close()
    assert sorted((tmp_path / "events").iterdir())[0] == file
    first.close()


def test_without_a_terminal_progress_is_plain_lines(capsys):
    training = base.get_config().training
    training.update(num_steps=40, log_every_steps=10)
    progress = Progress(0, training, "byte")
    for step in (9, 10):
        progress.update({"step": step, "bits_per_byte": 2.5, "tokens_per_second": 1234.0, "seconds_per_step": 2.0})
    progress.close()
    assert capsys.readouterr().out == "step 10/40: 2.500 bits/byte, 1,234 tokens/s, 0:01:00 left\n"
