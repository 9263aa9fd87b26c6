"""Paths as people write them, in flags, configs and calls."""

import argparse
from pathlib import Path

import pytest

import reformer
from configs import base
from reformer.commands import command_line, evaluate, generate, train, translate
from reformer.host import paths
from reformer.inspection import __main__ as inspection
from reformer.training import settings

ROOT = Path(__file__).parents[2]
PROGRAMS = [train, evaluate, generate, translate, inspection]
SENTENCE = "must be a path on a file system: addresses such as gs:// and s3:// can neither be read nor written. Mount"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Makes an empty folder the home, and another one the place to be."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_a_tilde_is_the_home(home):
    assert paths.local("~/runs/x") == home / "runs" / "x"
    assert paths.local(Path("~/runs/x")) == home / "runs" / "x"
    assert paths.local("runs/~x") == Path("runs/~x")


def test_the_home_of_nobody_is_named():
    with pytest.raises(ValueError, match=r"'~no_such_user/x' begins with the home of a user who does not exist. Write"):
        paths.local("~no_such_user/x")


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run", Path("gs://bucket/run"), "file:///tmp/x"])
def test_an_address_is_refused_by_name(address):
    with pytest.raises(ValueError, match=f"'{address}' {SENTENCE}"):
        paths.local(address)


def test_a_preset_and_a_part_are_no_addresses():
    assert not paths.is_address("configs/stdlib.py:tiny")
    assert not paths.is_address("runs/electra:discriminator")
    assert not paths.is_address("C:/runs")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_every_program_refuses_a_remote_workdir_before_anything_is_made(program, home):
    with pytest.raises(ValueError, match=f"--workdir: 'gs://bucket/run' {SENTENCE}"):
        program.parse(["--workdir=gs://bucket/run", "--split=test"][: 2 if program is translate else 1])
    assert not list(home.iterdir()) and not list(Path.cwd().iterdir())


@pytest.mark.parametrize("program", PROGRAMS[1:], ids=lambda program: program.__name__)
def test_every_program_finds_a_workdir_in_the_home(program, home):
    with pytest.raises(ValueError, match=f"workdir={home}/nothing has no config.json"):
        program.parse(["--workdir=~/nothing", "--split=test"][: 2 if program is translate else 1])


def test_training_writes_into_the_home_and_reads_from_it(home):
    (home / "text").write_bytes(b"to be or not to be " * 100)
    (home / "mine.py").write_text((ROOT / "configs" / "text.py").read_text())
    overrides = ["--config.data.path=~/text", "--config.training.batch_size=8"]
    run, _ = train.parse(["--config=~/mine.py:tiny", "--workdir=~/runs/x", *overrides])
    assert run.workdir == home / "runs" / "x"
    assert len(run.data.train) == 1710
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("field", ["data.path", "data.cache_dir", "data.subwords", "training.init_from"])
def test_an_address_in_a_field_is_refused_by_name(field):
    config = command_line.override(base.get_config(), [f"--config.{field}=s3://bucket/x"])
    with pytest.raises(ValueError, match=f"config.{field}='s3://bucket/x' must be text in quotes, and a path on"):
        settings.validate(config)


def test_a_library_call_finds_the_home(home):
    with pytest.raises(ValueError, match=f"{home}/runs/mine has no config.json"):
        reformer.load("~/runs/mine")
    with pytest.raises(ValueError, match=r"gs://bucket/run"):
        reformer.load("gs://bucket/run")


def test_argparse_shows_the_whole_sentence():
    with pytest.raises(argparse.ArgumentTypeError, match=r"or copy it here and back$"):
        paths.argument("gs://bucket/run")


def test_paths_are_expanded_in_one_place():
    programs = [*ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("reformer/**/*.py")]
    for path in programs:
        assert "type=Path" not in path.read_text(), path
        assert path.name == "paths.py" or "expanduser" not in path.read_text(), path
