"""What a user can type, and what the programs answer."""

import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import base
from reformer.commands import command_line, train

ROOT = Path(__file__).parents[2]


def override(*arguments):
    return command_line.override(base.get_config(), arguments)


def test_overrides_have_the_types_of_their_fields():
    config = override(
        "--config.model.num_hashes=4",
        "--config.model.num_buckets=(8, 16)",
        "--config.model.mlp_chunk_length=128",
        "--config.model.attention_pattern=('lsh','local')",
        "--noconfig.model.causal",
        "--config.optimizer.learning_rate=1",
        "--config.data.length=64",
    )
    assert config.model.num_hashes == 4
    assert config.model.num_buckets == (8, 16)
    assert config.model.mlp_chunk_length == 128
    assert config.model.attention_pattern == ("lsh", "local")
    assert config.model.causal is False
    assert config.optimizer.learning_rate == 1.0
    assert config.data.length == 64


def test_a_field_that_may_be_none_can_be_set_to_none():
    config = base.get_config()
    config.model.mlp_chunk_length = 64
    assert command_line.override(config, ["--config.model.mlp_chunk_length=None"]).model.mlp_chunk_length is None


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.model.num_hash=4", r"no field config.model.num_hash. Did you mean --config.model.num_hashes\?"),
        ("--config.modle.num_hashes=4", r"no field config.modle.num_hashes. Did you mean --config.model.num_hashes\?"),
        ("--config.model.num_hashes=2.5", r"^config.model.num_hashes='2.5' must be an integer.$"),
        ("--config.model.causal=maybe", r"^config.model.causal='maybe' must be True or False.$"),
        ("--config.model.reversible=no", r"must be True or False. Did you mean --config.model.reversible=False\?$"),
        (
            "--config.training.num_steps=1e3",
            r"^config.training.num_steps='1e3' must be an integer of at least 1 and at most 2147483647. "
            r"Did you mean --config.training.num_steps=1000\?$",
        ),
        (
            "--config.optimizer.learning_rate=fast",
            r"learning_rate='fast' must be a positive number that float32 holds.",
        ),
        ("--model.num_layers=2", r"there is no flag --model.num_layers. Did you mean --config.model.num_layers=2\?$"),
        ("--num_layer=2", r"there is no flag --num_layer. Did you mean --config.model.num_layers=2\?$"),
        ("--config.model=3", r"--config.model=3"),
        ("--steps=3", r"--steps=3: there is no flag --steps"),
        ("steps", r"unknown arguments: steps. Overrides look like"),
    ],
)
def test_a_wrong_override_is_one_sentence(argument, message):
    with pytest.raises(ValueError, match=message) as error:
        override(argument)
    assert "\n" not in str(error.value)


def test_a_misspelt_flag_of_the_program_is_named_with_the_right_one():
    with pytest.raises(ValueError, match=r"there is no flag --dryrun. Did you mean --dry_run\?"):
        train.parse(["--workdir=w", "--dryrun"])


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_standard_output_cannot_show_is_replaced(encoding, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    command_line.Parser("Writes.", may_be_many=False).parse([])
    print("a\ufffd\udce9z", flush=True)
    assert written.getvalue().decode(encoding).strip().strip("a\ufffd?z") == ""
    monkeypatch.undo()


def test_a_missing_config_file_is_named():
    with pytest.raises(ValueError, match=r"there is no file .*configs/nothing.py. Give its path from here"):
        command_line.load_config("configs/nothing.py:tiny")


def test_our_experiments_are_found_from_anywhere_and_ones_own_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command_line.load_config("configs/text.py:tiny").data.name == "text"
    (tmp_path / "configs").mkdir()
    own = "from reformer.configs import base\n\ndef get_config(preset):\n    return base.get_config()\n"
    (tmp_path / "configs" / "text.py").write_text(own)
    assert command_line.load_config("configs/text.py:tiny") == base.get_config()


def test_an_unknown_preset_lists_the_presets():
    with pytest.raises(ValueError, match=r"stdlib.py:huge: preset='huge' does not exist. Choose one of tiny, or none"):
        command_line.load_config(f"{ROOT}/configs/stdlib.py:huge")


def test_too_little_memory_is_one_sentence(capsys):
    with pytest.raises(SystemExit), command_line.user_errors():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nmore")
    error = capsys.readouterr().err
    assert error.startswith("error: the memory of a device does not suffice. Lower") and error.count("\n") == 1
    with pytest.raises(jax.errors.JaxRuntimeError), command_line.user_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_a_missing_workdir_is_named():
    with pytest.raises(ValueError, match=r"required: --workdir"):
        train.parse([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.data.path={tmp}/nothing"], r"nothing"),
        (["--config.data.length=100000"], r"config.data.length=100000 exceeds"),
        (["--config.model.num_layers=3"], r"num_layers=3 is not a multiple"),
        (["--config.sharding.tensor=3"], r"3"),
        (["--config.training.batch_size=7", "--config.sharding.fsdp=2"], r"7"),
    ],
)
def test_a_wrong_experiment_is_refused_and_nothing_is_written(arguments, message, text_file, tmp_path):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    defaults = [f"--config={ROOT}/configs/text.py:tiny", f"--workdir={tmp_path}/run", f"--config.data.path={text_file}"]
    with pytest.raises(ValueError, match=message):
        train.parse([*defaults, *arguments])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("program", ["train.py", "eval.py"])
def test_a_user_error_ends_with_code_1_and_without_traceback(program, tmp_path):
    command = [sys.executable, str(ROOT / program), f"--workdir={tmp_path}/nothing", "--config.model.num_hash=4"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    assert not (tmp_path / "nothing").exists()
