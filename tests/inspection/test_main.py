"""What a user can type, and what is printed and drawn."""

import json

import matplotlib.image
import numpy as np
import pytest

from configs import base
from reformer.inspection.__main__ import main, parse
from reformer.training import settings
from tests.training.runs import save_untrained

PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of an untrained model of bytes."""
    path = tmp_path_factory.mktemp("run")
    (path / "words.txt").write_bytes(b"the tree of a forest and its leaves in wind or rain. " * 100)
    config = base.get_config()
    sizes = {"max_length": 64, "num_layers": 2, "embed_dim": 16, "mlp_dim": 16, "num_heads": 2, "head_dim": 8}
    config.model.update(**sizes, lsh_chunk_length=8, local_chunk_length=8)
    config.data.update(name="text", path=str(path / "words.txt"), valid_fraction=0.1)
    return save_untrained(config, path, step=3)


def files(path):
    return sorted(file.relative_to(path) for file in path.rglob("*"))


@pytest.mark.slow
def test_the_first_validation_example_is_measured_and_drawn(workdir, tmp_path, capsys):
    main([f"--workdir={workdir}", f"--out={tmp_path}/pictures", "--num_hashes=3", "--length=40"])
    lines = capsys.readouterr().out.splitlines()
    record = json.loads(lines[-1])
    assert (record["step"], record["length"]) == (3, 40)
    local, lsh = record["layers"]
    assert local["kind"] == "local" and "occupancy" not in local
    assert list(lsh["seen"]) == ["1", "2", "3", "4", "8"] and lsh["occupancy"].keys() == {"min", "median", "max"}
    assert any(line.startswith("1 lsh") for line in lines)
    names = ["attention", "buckets", "coverage", "occupancy", "story"]
    assert files(tmp_path / "pictures") == [type(tmp_path)(f"{name}.png") for name in names]
    for path in record["pictures"]:
        assert path in lines
        check_picture(path)


def check_picture(path):
    with open(path, "rb") as file:
        assert file.read(len(PNG)) == PNG
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 200 and np.std(pixels) > 0.05


def test_text_and_files_are_inputs_behind_the_begin_id(workdir, tmp_path):
    (tmp_path / "input").write_bytes(b"\xff\x00abc")
    of_file = parse([f"--workdir={workdir}", f"--file={tmp_path}/input", "--length=4"])
    of_text = parse([f"--workdir={workdir}", "--text=é", "--checkpoint=3"])
    assert of_file.tokens.tolist() == [257, 255, 0, 97]
    assert of_text.tokens.tolist() == [257, 0xC3, 0xA9]
    assert of_text.out == workdir / "inspection" and of_text.step == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--length=65"], "--length=65 must be from 1 to the model's max_length=64."),
        (["--length=0"], "--length=0 must be from 1 to the model's max_length=64."),
        (["--text="], "The input is empty. Give at least one byte."),
        (["--text=a", "--file=b"], "not allowed with argument"),
        (["--file=/nothing/here"], "/nothing/here"),
        (["--checkpoint=4"], "checkpoint='4' does not exist. Choose best, latest or one of [3]."),
        (["--num_hashes=0"], "num_hashes=0 must be an integer of at least 1."),
        (["--hash_seed=-1"], "--hash_seed=-1 must be from 0 to 2147483647."),
        (["--num_processes=2"], "--num_processes=2: this program runs in one process."),
        (["--workdir=/nothing/here"], "is not the workdir of a training run"),
        (["--out={workdir}/words.txt"], "words.txt is a file. Name a directory."),
        (["--config.model.num_hashes=2"], "there is no such flag, and no overrides here"),
    ],
)
def test_bad_input_ends_with_code_1_in_one_sentence_and_writes_nothing(arguments, message, workdir, capsys):
    before = files(workdir)
    with pytest.raises(SystemExit) as end:
        main([f"--workdir={workdir}", *(argument.format(workdir=workdir) for argument in arguments)])
    error = capsys.readouterr().err
    assert end.value.code == 1
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert files(workdir) == before


def test_the_folder_of_another_program_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "reformer"}')
    with pytest.raises(SystemExit):
        main([f"--workdir={tmp_path}"])
    assert "config.json is not the config of a training run. Name a workdir" in capsys.readouterr().err


@pytest.fixture
def not_text(workdir, tmp_path):
    """The same parameters in a run on examples of 64 symbols."""
    stored = settings.read(workdir)
    stored["data"].update(name="duplication", num_symbols=20, path="")
    (tmp_path / "config.json").write_text(json.dumps(stored))
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    return tmp_path


def test_an_example_that_is_not_text_is_cut_to_the_length(not_text):
    whole, part = (parse([f"--workdir={not_text}", *more]).tokens for more in ([], ["--length=9"]))
    assert whole.shape == (64,)
    np.testing.assert_array_equal(part, whole[:9])


def test_a_model_of_other_data_takes_no_text(not_text, capsys):
    with pytest.raises(SystemExit):
        main([f"--workdir={not_text}", "--text=a"])
    assert "data.name='duplication' is not text. Leave out --text and --file." in capsys.readouterr().err
