"""Two hundred malformed configs: each is a sentence that names the field, before anything is compiled or written."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from configs import base
from reformer.training import loop
from reformer.training.settings import flatten

ROOT = Path(__file__).parents[2]

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), -2),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(st.one_of(st.none(), st.floats(), st.text(max_size=3), st.booleans()), max_size=3),
    st.lists(st.one_of(st.none(), st.floats(), st.text(max_size=3), st.booleans()), max_size=3).map(tuple),
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(), max_size=2),
    st.sampled_from([10**400, -0.5, 1.5, 2**31, ("lsh,local",), [64.0], (0, 4), (True,), object(), int, b"", math.inf]),
)
# Fields whose type the default does not tell: None, or a number that stands for itself.
MAY_BE_NONE = {name for name, value in flatten(base.get_config()).items() if value is None} | {"training.stall_seconds"}
POSITIVE_NUMBERS = {"optimizer.clip_norm", "training.stall_seconds"}
RATES = {"model.attention_dropout_rate", "model.lsh_attention_dropout_rate"}
AUTOMATIC = {"model.look_ahead", "model.share_query_key"}
TUPLES = {"model.num_buckets", "model.axial_shape", "model.axial_dims"}


def is_wrong_type(name, default, value):
    """Whether `value` can never stand in a field; written from the types, not from the rules."""
    if name in MAY_BE_NONE and value is None:
        return False
    if name in TUPLES and isinstance(value, (tuple, list)):
        return not value or any(type(size) is not int or size <= 0 for size in value)
    if isinstance(default, bool) or name in AUTOMATIC:
        return type(value) is not bool
    if isinstance(default, float) and (isinstance(value, bool) or value == 10**400):
        return False  # ConfigDict makes a float of it, or fails to
    if isinstance(default, float) or name in POSITIVE_NUMBERS | RATES:
        return type(value) not in (int, float) or not 0 <= value < 1e300
    if isinstance(default, int) or name in MAY_BE_NONE:
        return type(value) is not int or value < -1 or value >= 2**31
    if isinstance(default, tuple):
        return value not in ((), [])
    return type(value) is not str or not (name.startswith("data.") and name != "data.name")


@st.composite
def wrong_fields(draw):
    """One to three fields with values that can never stand there."""
    defaults = flatten(base.get_config())
    names = draw(st.lists(st.sampled_from(sorted(defaults)), min_size=1, max_size=3, unique=True))
    return {name: draw(JUNK.filter(lambda value, n=name: is_wrong_type(n, defaults[n], value))) for name in names}


def misspell(config, name):
    group, _, field = name.rpartition(".")
    holder = config[group] if group else config
    holder[field + "_x"] = holder[field]
    del holder[field]


# What is right by itself and wrong together: changes, and what the message must name.
COMBINATIONS = [
    ({"model.num_layers": 3}, "num_layers"),
    ({"model.max_length": 100, "data.length": 101}, "data.length"),
    ({"model.axial_shape": (4, 4)}, "axial_shape"),
    ({"model.axial_dims": (8, 9)}, "axial_dims"),
    ({"model.axial_dims": (4, 4, 8)}, "axial_dims"),
    ({"model.num_buckets": 7}, "num_buckets"),
    ({"model.num_buckets": (2**20, 2**20)}, "num_buckets"),
    ({"model.vocab_size": 258}, "vocab_size"),
    ({"model.causal": False}, "causal"),
    ({"model.position_embedding": "sinusoidal", "model.embed_dim": 15}, "embed_dim"),
    ({"model.semantics": "huggingface", "model.lsh_within_bucket": True}, "lsh_within_bucket"),
    ({"model.attention_implementation": "pallas", "model.semantics": "huggingface"}, "attention_implementation"),
    ({"model.dtype": "float64"}, "dtype"),
    ({"training.accumulation_steps": 3}, "accumulation_steps"),
    ({"data.valid_fraction": 0.6, "data.test_fraction": 0.6}, "valid_fraction"),
    ({"evaluation.hash_seed": 2**31 - 2, "evaluation.num_hash_seeds": 3}, "hash_seed"),
    ({"data.path": ""}, "data.path"),
    ({"data.path": "/nowhere/at/all"}, "data.path"),
    ({"data.name": "duplication", "data.length": 31}, "data.length"),
    ({"data.name": "images", "data.length": 30}, "data.length"),
    ({"data.name": "duplication", "data.num_symbols": 1}, "num_symbols"),
    ({"sharding.data": -1, "sharding.fsdp": -1}, "sharding.fsdp"),
    ({"sharding.data": 0}, "sharding.data"),
    ({"sharding.tensor": 3}, "sharding.tensor"),
    ({"sharding.fsdp": 16}, "sharding.fsdp"),
    ({"sharding.data": 1, "sharding.fsdp": 1, "sharding.tensor": 8}, "num_heads"),
    ({"sharding.data": 8, "training.batch_size": 4}, "batch_size"),
    ({"sharding.data": 8, "evaluation.batch_size": 3}, "batch_size"),
]


@pytest.fixture(scope="module")
def refuse(make_config, tmp_path_factory):
    """Returns a function that prepares a run with a changed `small_config` and returns why it was refused."""
    workdir = tmp_path_factory.mktemp("malformed") / "run"

    def refuse(changes, misspelt=None):
        config = make_config()
        config.model.update(num_layers=2, attention_pattern=("local", "lsh"))
        with config.unlocked(), config.ignore_type():
            for name, value in changes.items():
                group, _, field = name.rpartition(".")
                (config[group] if group else config)[field] = value
            if misspelt:
                misspell(config, misspelt)
        with pytest.raises(ValueError) as error:
            loop.prepare(config, str(workdir))
        assert not workdir.exists()
        return str(error.value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_programs", None)  # whoever compiles, fails
        yield refuse


@pytest.mark.slow
@settings(
    max_examples=170,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(changes=wrong_fields())
def test_values_that_cannot_be_are_all_named_at_once(refuse, changes):
    message = refuse(changes)
    for name in changes:
        assert name.removeprefix("model.") in message
    assert message.count("\n") + 1 >= len(changes)


@pytest.mark.parametrize(("changes", "named"), COMBINATIONS, ids=lambda part: part if isinstance(part, str) else "")
def test_values_that_do_not_fit_together_are_named(refuse, changes, named):
    message = refuse(changes)
    assert named in message and message.rstrip().endswith((".", ")"))


def test_combinations_are_named_at_once(refuse):
    message = refuse({"model.num_layers": 3, "model.causal": False, "training.accumulation_steps": 3, "data.path": ""})
    assert "num_layers=3 is not a multiple" in message
    message = refuse({"model.causal": False, "training.accumulation_steps": 3, "data.path": ""})
    assert [line.split("=")[0].split(" ")[0] for line in message.splitlines()] == [
        "config.training.batch_size",
        "config.data.path",
        "config.model.causal",
    ]


@pytest.mark.parametrize("name", ["seed", "model.num_hashes", "training.num_steps", "data.path", "sharding.fsdp"])
def test_a_misspelt_field_of_a_file_that_starts_from_nothing_is_named_with_its_repair(refuse, name):
    message = refuse({}, misspelt=name)
    assert f"config.{name}_x=" in message and f"Did you mean --config.{name}?" in message
    assert f"config.{name} is missing" in message


def test_a_number_in_place_of_a_group_is_named(refuse):
    message = refuse({"training": 3})
    assert "config.training=3: there is no such field" in message and "config.training.num_steps is missing" in message


def test_a_list_of_the_command_line_without_quotes_is_repaired(refuse):
    message = refuse({"model.attention_pattern": ("lsh,local",)})
    assert "--config.model.attention_pattern=\"('local','lsh')\"" in message


COMMAND_LINES = [
    (["--config.model.num_layers=3", "--config.model.num_streams=1"], ["num_layers=3", "num_streams=1"]),
    (["--config.model.attention_pattern=lsh,local"], ["attention_pattern=('lsh,local',)", "quote each name"]),
    (["--config.training.num_steps=0", "--config.checkpoint.keep_latest=0"], ["num_steps=0", "keep_latest=0"]),
    (["--config.training.num_steps=1e3", "--config.seed=x"], ["config.training.num_steps='1e3'", "config.seed='x'"]),
    (["--config.model.num_hash=4", "--config.modle.causal=0"], ["config.model.num_hashes?", "config.modle.causal"]),
    (["--config.optimizer.learning_rate=nan"], ["config.optimizer.learning_rate=nan must be a positive number"]),
    (["--config.sharding.tensor=3"], ["sharding.tensor=3"]),
    (["--config.data.path=/nowhere/at/all"], ["/nowhere/at/all"]),
    (["--profile_steps=15:10"], ["--profile_steps=15:10 must name steps from 1 to"]),
    (["--config.model.num_buckets=6.5"], ["num_buckets=6.5 must be None, an even positive integer"]),
]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [pytest.param(*line, marks=pytest.mark.slow if i else (), id=line[0][0]) for i, line in enumerate(COMMAND_LINES)],
)
def test_a_malformed_command_line_ends_with_code_1_one_message_and_nothing_written(
    arguments, named, text_file, tmp_path
):
    command = [sys.executable, str(ROOT / "train.py"), f"--config={ROOT}/configs/text.py:tiny"]
    command += [f"--workdir={tmp_path}/run", f"--config.data.path={text_file}", *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    assert all(name in result.stderr for name in named), result.stderr
    assert not list(tmp_path.iterdir())
