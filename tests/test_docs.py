"""Every example of the README and of docs runs as it is printed, after the commands that its page names."""

import contextlib
import pathlib
import re

import pytest

from reformer.commands import command_line
from tests.training.runs import save_untrained

ROOT = pathlib.Path(__file__).parents[1]
TESTED_ELSEWHERE = {"heads.md", "huggingface.md"}  # by test_heads_docs.py and test_huggingface_docs.py
# The runs that examples read. Their parameters need not be trained: what counts is that they are those of the preset.
RUNS = {
    ("library.md", "runs/mine"): ["configs/text.py:tiny"],
    ("electra.md", "runs/electra"): ["configs/electra.py", "configs/electra.py:tiny"],
}


def pages():
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {page.name: page.read_text() for page in found}


def examples():
    for name, page in pages().items():
        found = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        for number, example in enumerate(found if name not in TESTED_ELSEWHERE else []):
            runs = [(workdir, config) for (of, workdir), configs in RUNS.items() if of == name for config in configs]
            runs = [run for run in runs if run[0] in example]
            for run in runs or [None]:
                yield pytest.param(example, run, id=f"{name}-{number}" + (f"-{run[1]}" if run else ""))


@pytest.mark.slow
@pytest.mark.parametrize(("example", "run"), list(examples()))
def test_an_example_runs_by_itself_as_it_is_printed(example, run, tmp_path):
    with contextlib.chdir(tmp_path):
        if run is not None:
            workdir, config = run
            save_untrained(command_line.load_config(f"{ROOT}/{config}"), tmp_path / workdir)
        exec(compile(example, "example", "exec"), {})


def test_the_runs_of_the_examples_are_those_of_the_commands_on_their_pages():
    for (name, workdir), configs in RUNS.items():
        page = pages()[name]
        for config in configs[:1]:
            assert re.search(rf"train\.py --config={re.escape(config)} .*--workdir={re.escape(workdir)}\b", page)


def commands():
    """The arguments of the commands with a config that the pages print: the config, and the fields that they set."""
    for name, page in pages().items():
        for command in re.findall(r"train\.py (--config=configs/[^\n|`]*)", page):
            yield pytest.param(re.findall(r"--config\S*?=(?:\"[^\"]*\"|\S+)", command), id=f"{name} {command[:60]}")


@pytest.mark.parametrize("arguments", list(commands()))
def test_a_command_of_the_pages_names_a_config_and_fields_that_exist(arguments):
    config, *overrides = (argument.replace('"', "").replace("=N", "=3") for argument in arguments)
    loaded = command_line.load_config(f"{ROOT}/{config.removeprefix('--config=')}")
    command_line.override(loaded, overrides)


def test_every_page_of_docs_is_in_the_navigation_of_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2].partition("\n\n")[0]
    named = re.findall(r": (\S+\.(?:md|ipynb))$", navigation, re.MULTILINE)
    there = [path.name for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".ipynb")]
    assert sorted(named) == sorted([*there, "index.md"])  # the README


def test_every_link_of_the_pages_leads_to_a_file():
    for name, page in pages().items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        for target in re.findall(r"\]\((?!https?:|#)([^)\s#]+)", page):
            assert (folder / target).exists(), f"{name}: {target}"
