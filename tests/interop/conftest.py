"""Checkpoints that a test may damage, and one in memory."""

import pathlib
import shutil

import pytest
from checkpoints import FIXTURES

from reformer.interop.huggingface import load


@pytest.fixture
def copy(tmp_path):
    """Makes copies of checkpoints that a test may damage."""
    return lambda case: pathlib.Path(shutil.copytree(FIXTURES / case, tmp_path / "checkpoint"))


@pytest.fixture
def checkpoint(copy):
    """A copy of a language model."""
    return copy("causal_repeated")


@pytest.fixture
def model():
    """A configuration and its variables, in float64."""
    return load(FIXTURES / "causal_repeated", dtype="float64")
