"""The data set and the task of docs/own_data.md, each in a config file elsewhere, as a user runs them."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from reformer.commands import command_line, evaluate, generate, train
from reformer.training import settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own_data.md").read_text()
FILES = dict(re.findall(r"`/elsewhere/(\w+\.py)`[^\n]*:\n\n```python\n(.*?)```", PAGE, re.DOTALL))
SMALL = [
    "--config.model.max_length=64",
    "--config.model.num_layers=1",
    "--config.model.attention_pattern=('lsh',)",
    "--config.model.embed_dim=16",
    "--config.model.mlp_dim=32",
    "--config.model.num_heads=2",
    "--config.model.head_dim=8",
    "--config.model.lsh_chunk_length=8",
    "--config.training.num_steps=2",
    "--config.training.batch_size=4",
    "--config.training.log_every_steps=1",
    "--config.evaluation.batch_size=4",
    "--config.evaluation.max_examples=8",
    "--config.evaluation.num_hash_seeds=1",
]


@pytest.fixture
def elsewhere(tmp_path):
    """A folder outside the project with the files of the page."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name, code in FILES.items():
        (folder / name).write_text(code)
    return folder


@pytest.fixture
def genome(tmp_path):
    """A FASTA file: forty sequences that repeat a few words, half of them short."""
    rng, lines = random.Random(0), []
    words = ["".join(rng.choices("ACGT", k=9)) for _ in range(3)]
    for number in range(40):
        lines += [f">sequence {number}", *("".join(rng.choices(words, k=7)) for _ in range(1 + 9 * (number % 2)))]
    path = tmp_path / "genome.fasta"
    path.write_text("\n".join(lines) + "\n")
    return path


def start(program, *arguments):
    """Runs a program as a new process does, which has not run the files of the user yet."""
    for name in [name for name in sys.modules if name.endswith(".py")]:
        del sys.modules[name]
    program.main(list(arguments))


def record(capsys, program, *arguments):
    """Returns the JSON object that a program prints as its last line."""
    start(program, *arguments)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def error(capsys, program, *arguments):
    """Returns the one line of a program that ends with code 1."""
    with pytest.raises(SystemExit, match="1"):
        start(program, *arguments)
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_examples_are_short_and_read_no_private_name_and_no_file_of_ours_knows_them():
    assert sorted(FILES) == ["dna.py", "regression.py"]
    for code in FILES.values():
        assert len([line for line in code.splitlines() if line]) <= 30
        assert not re.search(r"import _|[. ]_\w", code)
    classes = re.findall(r"^class (\w+)", "\n".join(FILES.values()), re.MULTILINE)
    assert classes == ["Fasta", "Regressor", "Regression"]
    ours = [*(ROOT / "reformer").rglob("*.py"), *(ROOT / "configs").glob("*.py")]
    touched = [path for path in ours if re.search(rf"\b({'|'.join(classes)})\b", path.read_text())]
    assert len(touched) == 0 < len(ours)


@pytest.mark.slow
def test_a_data_set_of_ones_own_trains_is_evaluated_writes_and_continues(elsewhere, genome, tmp_path, capsys):
    arguments = [f"--config={elsewhere}/dna.py", f"--workdir={tmp_path}/run", f"--config.data.path={genome}"]
    assert record(capsys, train, *arguments, *SMALL)["step"] == 2
    stored = settings.read(tmp_path / "run")["data"]
    assert stored["name"] == f"{elsewhere}/dna.py:Fasta"
    assert (stored["path"], stored["shortest"]) == (str(genome), 100)
    # Twenty sequences of 630 letters, and a line's end between them; the short ones are left out.
    whole = "--config.evaluation.max_examples=None"
    found = record(capsys, evaluate, f"--workdir={tmp_path}/run", "--split=test", whole)
    assert found["num_bytes"] == round(0.05 * (20 * 630 + 19)) and found["bits_per_byte"] > 0
    assert record(capsys, generate, f"--workdir={tmp_path}/run", "--prompt=ACGT", "--num_tokens=4")["num_tokens"] == 4
    assert record(capsys, train, *arguments, *SMALL, "--config.training.num_steps=3")["step"] == 3
    journal = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in journal if line["split"] == "train"] == [1, 2, 3]


@pytest.mark.slow
def test_a_task_of_ones_own_trains_is_evaluated_moves_and_continues(elsewhere, tmp_path, capsys):
    workdir, file = f"--workdir={tmp_path}/run", elsewhere / "regression.py"
    found = record(capsys, train, f"--config={file}", workdir, *SMALL)
    assert found["step"] == 2 and found["squared_error"] > 0 and 0 <= found["accuracy"] <= 1
    assert settings.read(tmp_path / "run")["task"]["deviation"] == 2.0
    again = record(capsys, evaluate, workdir)
    assert again["squared_error"] == pytest.approx(found["squared_error"], rel=1e-5)
    moved = file.rename(tmp_path / "regression.py")
    gone = error(capsys, evaluate, workdir)
    assert gone.startswith(f"error: config.task.name='{file}:Regression': there is no file {file}. Put it back, or say")
    there = record(capsys, evaluate, workdir, f"--config.task.name={moved}:Regression")
    assert there == again
    assert record(capsys, train, f"--config={moved}", workdir, *SMALL, "--config.training.num_steps=3")["step"] == 3
    assert record(capsys, evaluate, workdir)["step"] in (2, 3)
    assert settings.read(tmp_path / "run")["task"]["name"] == f"{moved}:Regression"


@pytest.mark.slow
def test_a_user_trains_in_a_folder_of_his_own(elsewhere, genome, tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--config=elsewhere/dna.py", "--workdir=run"]
    command += ["--config.data.path=genome.fasta", *SMALL, "--dry_run"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    environment.pop("PYTHONPATH", None)
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name for path in elsewhere.iterdir()) == ["dna.py", "regression.py"]


def test_options_of_ones_own_are_set_on_the_command_line_and_checked(elsewhere, genome, tmp_path, capsys):
    arguments = [f"--config={elsewhere}/dna.py", f"--workdir={tmp_path}/run", f"--config.data.path={genome}"]
    line = error(capsys, train, *arguments, "--config.data.shortest=0")
    assert line.startswith("error: config.data.shortest=0 must be an integer of at least 1")
    line = error(capsys, train, *arguments, "--config.data.join=4")
    assert line.startswith(f"error: config.data.join=4 is not read by config.data.name='{elsewhere}/dna.py:Fasta'")
    line = error(capsys, train, *arguments, "--config.data.shortes=4")
    assert "Did you mean --config.data.shortest?" in line
    line = error(
        capsys,
        train,
        f"--config={elsewhere}/regression.py",
        f"--workdir={tmp_path}/run",
        "--config.data.name=duplication",
    )
    assert "config.data.name='duplication' is nothing for config.task.name=" in line
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_missing_is_one_sentence(elsewhere, tmp_path, capsys):
    arguments = [f"--config={elsewhere}/dna.py", f"--workdir={tmp_path}/run", "--config.data.path=nowhere.fasta"]
    assert "nowhere.fasta" in error(capsys, train, *arguments)


def test_what_the_config_had_before_goes_back_to_its_defaults(elsewhere):
    config = command_line.load_config(f"{elsewhere}/regression.py")
    assert config.task.num_labels == 20  # 10 in configs/listops.py
    assert config.data.name == "listops" and config.is_locked and config.task.is_locked
    settings.validate(config)
