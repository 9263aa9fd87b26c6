"""Whatever happens to the bytes of a checkpoint, it is named, and nothing wrong is ever restored."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from reformer.training import checkpoint, manifest
from reformer.training.checkpoint import Checkpoints
from tests.training.runs import assert_same, restored, save, state_of

KINDS = {
    "flip": lambda content, place: content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :],
    "truncate": lambda content, place: content[:place],
    "empty": lambda content, place: b"",
    "delete": lambda content, place: None,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A workdir with the checkpoints 1 and 2."""
    workdir = tmp_path_factory.mktemp("written")
    with Checkpoints(workdir, keep_latest=2) as checkpoints:
        save(checkpoints, 1, 2.0)
        save(checkpoints, 2, 1.0)
    return workdir


@pytest.fixture
def workdir(written, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(written, tmp_path / "run"))


def files_of(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def replace(path, content):
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def test_the_manifest_lists_every_file_of_a_checkpoint(written):
    directory = written / "checkpoints" / "2"
    listed = json.loads((directory / manifest.NAME).read_text())["files"]
    assert set(listed) == {str(path.relative_to(directory)) for path in files_of(directory)} - {manifest.NAME}
    assert {"params", "optimizer", "data", "meta", "metrics"} <= {name.split("/")[0] for name in listed}
    assert manifest.problem(directory) is None


def test_only_what_is_asked_for_is_read(written, monkeypatch):
    read = []
    monkeypatch.setattr(manifest, "_checksum", lambda path: read.append(path.name) or 0)
    directory = written / "checkpoints" / "2"
    manifest.problem(directory, ["metrics"])
    assert read == [path.name for path in files_of(directory / "metrics")][:1]


def places(content):
    """Returns 40 places spread over the content, with the first and the last."""
    return sorted({number * (len(content) - 1) // 39 for number in range(40)})


@pytest.mark.slow
def test_a_bit_that_is_flipped_anywhere_in_any_file_is_noticed(workdir):
    directory = workdir / "checkpoints" / "2"
    for path in set(files_of(directory)) - {directory / manifest.NAME}:
        content = path.read_bytes()
        for place in places(content):
            path.write_bytes(KINDS["flip"](content, place))
            assert manifest.problem(directory).startswith(str(path.relative_to(directory))), (path, place)
        path.write_bytes(content)
    assert manifest.problem(directory) is None


def test_a_bit_that_is_flipped_in_the_manifest_is_noticed_unless_it_says_the_same(workdir):
    directory = workdir / "checkpoints" / "2"
    path = directory / manifest.NAME
    content = path.read_bytes()
    for place in range(0, len(content), 5):
        path.write_bytes(KINDS["flip"](content, place))
        assert manifest.problem(directory) is not None or json.loads(path.read_bytes()) == json.loads(content)


@pytest.mark.parametrize("kind", ["truncate", "empty", "delete"])
def test_a_file_that_is_cut_or_lost_is_noticed(workdir, kind):
    directory = workdir / "checkpoints" / "2"
    for path in files_of(directory):
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            replace(path, KINDS[kind](content, place))
            assert manifest.problem(directory) is not None, (path, place)
            path.write_bytes(content)
    assert manifest.problem(directory) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("item", ["params", "optimizer", "data", "meta", "metrics", manifest.NAME])
def test_a_run_names_a_damaged_checkpoint_sets_it_aside_and_uses_the_one_before(workdir, kind, item, capsys):
    directory = workdir / "checkpoints"
    path = max(files_of(directory / "2" / item) or [directory / "2" / item], key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    replace(path, KINDS[kind](content, len(content) // 2))
    left = files_of(directory / "2")
    with Checkpoints(workdir, keep_latest=2) as checkpoints:
        assert (checkpoints.steps, checkpoints.latest, checkpoints.best) == ([1], 1, 1)
        assert_same(restored(checkpoints, 1), state_of(1))
        save(checkpoints, 2, 1.0)
    assert f"checkpoint {directory}/2 is damaged: " in capsys.readouterr().err
    assert len(files_of(directory / manifest.DAMAGED / "2")) == len(left)
    with Checkpoints(workdir) as checkpoints:
        assert_same(restored(checkpoints, 2), state_of(2))


@pytest.mark.parametrize("wanted", ["best", "latest"])
@pytest.mark.parametrize("item", ["params", "metrics"])
def test_a_reader_names_it_uses_the_next_and_moves_nothing(workdir, wanted, item, capsys):
    path = files_of(workdir / "checkpoints" / "2" / item)[0]
    path.write_bytes(path.read_bytes()[:-1])
    before = files_of(workdir)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoint.choose(checkpoints, wanted) == 1
        assert "checkpoints/2 is damaged" in capsys.readouterr().err
        with pytest.raises(OSError, match=r"no checkpoint .* is intact \(2: .* has \d+ bytes instead of \d+\)"):
            checkpoint.choose(checkpoints, 2)
    assert files_of(workdir) == before


def test_if_none_is_intact_nothing_is_moved_and_the_run_does_not_start_anew(workdir):
    for step in ("1", "2"):
        (workdir / "checkpoints" / step / manifest.NAME).unlink()
    before = files_of(workdir)
    for read_only in (False, True):
        with pytest.raises(OSError, match=r"2: it has no manifest.json; 1: .*start anew in another workdir"):  # noqa: SIM117
            with Checkpoints(workdir, read_only=read_only) as checkpoints:
                checkpoint.choose(checkpoints, "latest")
    assert files_of(workdir) == before


def test_a_checkpoint_without_manifest_is_accepted_by_hand(workdir, monkeypatch):
    directory = workdir / "checkpoints" / "2"
    (directory / manifest.NAME).unlink()
    monkeypatch.setattr(sys, "argv", ["manifest", str(directory)])
    manifest.main()
    assert manifest.problem(directory) is None
    with pytest.raises(SystemExit):  # never over an existing one
        manifest.main()


def test_damaged_checkpoints_of_the_same_step_are_all_kept(workdir):
    for number in ("2", "2.1"):
        (workdir / "checkpoints" / "2" / "data" / "metadata").unlink()
        with Checkpoints(workdir) as checkpoints:
            save(checkpoints, 2)
        assert (workdir / "checkpoints" / manifest.DAMAGED / number).is_dir()


def test_an_older_checkpoint_that_lost_its_loss_does_not_stop_a_run(workdir, capsys):
    files_of(workdir / "checkpoints" / "1" / "metrics")[0].write_bytes(b"}")
    with Checkpoints(workdir) as checkpoints:
        assert (checkpoints.steps, checkpoints.best) == ([2], 2)
    assert "checkpoints/1 is damaged" in capsys.readouterr().err
