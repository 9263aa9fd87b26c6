"""Who gets the records of a run: services by stand-ins that keep what they are given, and one's own writer."""

import json
import sys
import types

import pytest

from reformer.host import extras
from reformer.training import loop, metrics, settings, workdir, writers

RECORDS = [
    {"split": "train", "step": 10, "loss": 2.5, "seconds_per_step": 0.5},
    {"split": "skipped", "step": 11, "updates_in_a_row": 1, "reason": "words are no curve"},
    {"split": "valid", "step": 20, "bits_per_byte": 3.0},
]
CURVES = [
    ({"train/loss": 2.5, "train/seconds_per_step": 0.5}, 10),
    ({"skipped/updates_in_a_row": 1.0}, 11),
    ({"valid/bits_per_byte": 3.0}, 20),
]


class FakeService(types.ModuleType):
    """Both packages at once, as far as they are used."""

    def __init__(self):
        super().__init__("service")
        self.begun, self.files, self.logged, self.num_ended = [], [], [], 0
        self.error = None

    def init(self, **arguments):
        return self._begin(arguments, arguments["id"])

    def start_run(self, run_id, run_name):
        return self._begin({"id": run_id, "name": run_name}, run_id)

    def _begin(self, arguments, known):
        if self.error:
            raise self.error
        self.begun.append(arguments)
        name = known or f"run{len(self.begun)}"
        info = types.SimpleNamespace(run_id=name)
        return types.SimpleNamespace(id=name, info=info, log=self.log_metrics, finish=self.end_run)

    def log_dict(self, values, name):
        self.files.append((name, values))

    def log_metrics(self, values, step):
        if self.error:
            raise self.error
        self.logged.append((values, step))

    def end_run(self):
        self.num_ended += 1


@pytest.fixture
def service(monkeypatch):
    """A stand-in for both packages."""
    fake = FakeService()
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, fake)
    return fake


def write(folder, *names, resumed_step=0):
    journal = metrics.Journal(writers.Opening(folder, resumed_step, {"seed": 7}), names)
    for record in RECORDS:
        journal.write(record)
    journal.close()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_gets_every_number_and_continues_its_run(name, service, tmp_path):
    write(tmp_path, name)
    write(tmp_path, name, resumed_step=5)
    assert service.logged == CURVES * 2 and service.num_ended == 2
    assert [begun["id"] for begun in service.begun] == [None, "run1"]
    assert service.begun[0]["name"] == tmp_path.name


def test_a_service_gets_the_config(service, tmp_path):
    write(tmp_path, "wandb", "mlflow")
    assert service.begun[0]["config"] == {"seed": 7} and service.files == [("config.json", {"seed": 7})]


def test_the_project_of_wandb_is_its_own_variable(service, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    write(tmp_path, "wandb")
    assert service.begun[0]["project"] == "mine"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_that_fails_later_does_not_end_the_run(name, service, tmp_path, capsys):
    journal = metrics.Journal(writers.Opening(tmp_path, 0, {}), [name])
    service.error = RuntimeError("no connection\nat all")
    for record in RECORDS:
        journal.write(record)
    journal.close()
    expected = f"{name} does not take the metrics (RuntimeError: no connection at all): the run goes on, and"
    error = capsys.readouterr().err
    assert error.startswith(expected) and error.count("\n") == 1
    assert [record["step"] for record in metrics.read_records(tmp_path / "metrics.jsonl")] == [10, 11, 20]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_that_cannot_begin_ends_the_run_in_a_sentence(name, service, tmp_path):
    service.error = RuntimeError("not logged in")
    with pytest.raises(OSError, match=rf"config.training.writers: '{name}' cannot begin \(RuntimeError: not logged in"):
        write(tmp_path, name)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_found_before_any_work(name, config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    config.training.writers = (name,)
    with pytest.raises(extras.MissingPackageError, match=rf"'{name}' needs the package '{name}'.*reformer\[{name}\]"):
        loop.prepare(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


class Kept:
    """A writer of one's own."""

    last = None

    def __init__(self, opening):
        self.opening, self.records, self.is_closed = opening, [], False
        Kept.last = self

    def write(self, record):
        self.records.append(record)

    def close(self):
        self.is_closed = True


def test_a_writer_of_ones_own_gets_whole_records(tmp_path):
    write(tmp_path, f"{__name__}:Kept")
    assert Kept.last.opening.config == {"seed": 7} and Kept.last.is_closed
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert Kept.last.records == [json.loads(line) for line in lines]
    assert [{k: v for k, v in record.items() if k != "time"} for record in Kept.last.records] == RECORDS


@pytest.mark.parametrize("name", ["nowhere:Writer", "json:Nothing", ":Kept"])
def test_a_writer_that_does_not_exist_is_named(name):
    with pytest.raises(ValueError, match=rf"config.training.writers: '{name}' cannot be found"):
        writers.find([name])


@pytest.mark.parametrize("value", ["wandb", ("tensorbord",), (3,), None])
def test_what_is_no_tuple_of_writers_is_refused(value, config):
    with config.unlocked(), config.ignore_type():
        config.training.writers = value
    with pytest.raises(ValueError, match=r"config.training.writers=.* must be a tuple of tensorboard, wandb, mlflow"):
        settings.validate(config)


def test_a_run_may_change_its_writers(config, tmp_path):
    settings.write(tmp_path / "config.json", config)
    config.training.writers = ()
    workdir.check(tmp_path, config)
