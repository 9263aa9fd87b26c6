"""What is installed, what a part of it needs, and what is said where a package is missing."""

import ast
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

import reformer
from reformer.commands import command_line
from reformer.host import extras
from reformer.training import writers

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Not in requirements.txt: the tests have stand-ins for these services, and accelerators are not on every machine.
APART = {"wandb", "mlflow", "hub", "cuda12", "tpu", "docs", "dev"}


def requirements(lines):
    """Requirements in one spelling."""
    return {str(Requirement(line)) for line in lines if line and not line.startswith("#")}


def listed_in(name):
    return requirements((ROOT / name).read_text().splitlines())


def test_requirements_are_the_base_and_the_extras():
    parts = PROJECT["optional-dependencies"]
    everything = [line for extra in parts.keys() - APART for line in parts[extra]]
    assert listed_in("requirements.txt") == requirements([*PROJECT["dependencies"], *everything])
    assert listed_in("requirements-dev.txt") == requirements(parts["dev"])
    assert listed_in("requirements-docs.txt") == requirements(parts["docs"])


def test_the_base_has_none_of_the_large_packages():
    names = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert not names & {"tensorflow-datasets", "scikit-learn", "sacrebleu", "sentencepiece", "tensorboard"}


@pytest.mark.parametrize("extra", sorted(PROJECT["optional-dependencies"]))
def test_a_missing_package_is_named_with_the_command_that_installs_it(extra):
    message = rf"BLEU needs the package 'nowhere'.*'reformer\[{extra}\]'"
    with pytest.raises(extras.MissingPackageError, match=message), extras.needed_for("BLEU", extra):
        import nowhere  # noqa: F401


def test_a_missing_module_of_our_own_is_a_defect():
    with pytest.raises(ModuleNotFoundError, match=r"reformer\.nowhere") as error, extras.needed_for("it", "images"):
        import reformer.nowhere  # noqa: F401
    assert not isinstance(error.value, extras.MissingPackageError)


def test_the_programs_say_it_in_one_line(capsys):
    with pytest.raises(SystemExit), command_line.user_errors(), extras.needed_for("data.name='digits'", "images"):
        import nowhere  # noqa: F401
    error = capsys.readouterr().err
    assert error.startswith("error: data.name='digits' needs the package 'nowhere'") and error.count("\n") == 1


def test_the_extras_that_errors_name_exist():
    calls = [
        node
        for path in (ROOT / "reformer").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "needed_for"
    ]
    named = {call.args[1].value for call in calls if isinstance(call.args[1], ast.Constant)}
    assert {"images", "translation", "tfds", "export"} <= named <= PROJECT["optional-dependencies"].keys()
    assert writers.WRITERS.keys() <= PROJECT["optional-dependencies"].keys()  # where the name is that of the writer


def test_every_command_is_a_function_of_the_package():
    assert set(PROJECT["scripts"]) == {
        f"reformer-{name}" for name in ("train", "eval", "generate", "translate", "inspect")
    }
    for target in PROJECT["scripts"].values():
        module, _, function = target.partition(":")
        path = ROOT / (module.replace(".", "/") + ".py")
        assert f"def {function}() -> None:" in path.read_text()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder in which a wheel of this clone is installed."""
    folder = tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT / "reformer", folder / "source" / "reformer", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, folder / "source"], check=True)
    (wheel,) = folder.glob("reformer-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


@pytest.mark.slow
def test_an_installed_wheel_trains_and_evaluates_outside_the_clone(installed, tmp_path):
    (tmp_path / "words.txt").write_bytes(b"the tree of a forest and its leaves in wind or rain. " * 200)
    variables = os.environ | {
        "PYTHONPATH": str(installed),
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
    }
    small = ["--config.model.max_length=32", "--config.model.embed_dim=16", "--config.model.mlp_dim=16"]
    small += ["--config.model.attention_pattern=('local',)", "--config.model.num_layers=1"]
    small += ["--config.training.num_steps=2", "--config.evaluation.batch_size=8", "--config.evaluation.max_examples=8"]
    data = ["--config=configs/text.py:tiny", "--config.data.path=words.txt"]

    def last_line(command, *arguments):
        command = [installed / "bin" / command, "--workdir=run", *arguments]
        ended = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout.splitlines()[-1])

    assert last_line("reformer-train", *data, *small)["step"] == 2
    assert last_line("reformer-eval")["split"] == "valid"
    program = "import reformer; print(reformer.__file__, reformer.__version__)"
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True).stdout
    assert printed.split() == [str(installed / "reformer" / "__init__.py"), reformer.__version__]
