"""The tasks of the bidirectional heads: they learn, they continue exactly, and what does not fit is refused."""

import math
import random

import pytest

from reformer.training import loop, settings
from tests.training.runs import assert_same_run, run

WORDS = {
    "birds": b"the robin sang and the finch flew over the old nest in the tall tree ",
    "trains": b"a late engine pulls four long wagons slowly past every station here ",
    "numbers": b"31415926 27182818 16180339 14142135 17320508 22360679 26457513 0000 ",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three folders of text that say which they are."""
    root = tmp_path_factory.mktemp("folders")
    for name, words in WORDS.items():
        (root / name).mkdir()
        for number in range(12):
            start = 5 * number
            (root / name / str(number)).write_bytes((words[start:] + words) * 4)
    return root


def _masked(config):
    config.task.name = "masked"
    config.model.update(causal=False, local_num_chunks_after=1, dropout_rate=0.0)
    config.optimizer.update(name="adamw", learning_rate=0.01, warmup_steps=10)
    return config


def _classification(config, folders):
    config = _masked(config)
    config.task.update(name="classification", num_labels=3)
    config.data.update(name="packages", path=str(folders), valid_fraction=0.2, examples_per_label=20)
    return config


@pytest.mark.slow
def test_a_masked_model_learns_to_fill_in_what_stands_around(config, tmp_path):
    letters = random.Random(0).choices(range(ord("a"), ord("m") + 1), k=300)
    path = tmp_path / "letters.txt"
    path.write_bytes(b"".join(bytes([letter]) * 64 for letter in letters))
    config = _masked(config)
    config.model.update(num_layers=2, attention_pattern=("local", "lsh"))
    config.data.path = str(path)
    config.task.mask_rate = 0.3
    config.training.update(num_steps=60, batch_size=16, log_every_steps=20)
    config.evaluation.update(every_steps=60, max_examples=24)
    config.checkpoint.every_steps = 60
    result = run(config, tmp_path / "run")
    # That all of the 13 letters are equally frequent costs 3.7 bits.
    assert result["bits_per_byte"] < 1 and result["accuracy"] > 0.9


@pytest.mark.slow
def test_a_classifier_learns_the_folder_of_a_window(config, folders, tmp_path):
    config = _classification(config, folders)
    config.training.update(num_steps=60, log_every_steps=20)
    config.evaluation.update(every_steps=60)
    config.checkpoint.every_steps = 60
    result = run(config, tmp_path / "run")
    assert result["bits_per_window"] < 0.3 < math.log2(3) and result["accuracy"] > 0.9


@pytest.mark.slow
def test_a_run_in_two_parts_hides_the_same_as_an_unbroken_one(make_config, tmp_path):
    def make(num_steps):
        config = _masked(make_config())
        config.model.update(dropout_rate=0.1, attention_pattern=("local",))
        config.optimizer.schedule = "constant"
        config.evaluation.every_steps = 2
        config.training.num_steps = num_steps
        return config

    run(make(4), tmp_path / "unbroken")
    for num_steps in (2, 4):
        run(make(num_steps), tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda config: config.model.update(causal=True),
            r"causal=True hides from each token what stands after it. config\.task\.name='masked' needs causal=False",
        ),
        (
            lambda config: config.data.update(name="duplication"),
            r"data\.name='duplication' is nothing for config\.task\.name='masked'. Choose from stdlib, enwik8, text\.",
        ),
        (
            lambda config: config.task.update(mask_rate=1.5),
            r"task\.mask_rate=1\.5 must be a number above 0 and below 1",
        ),
        (lambda config: config.model.update(vocab_size=258), r"vocab_size=258 is too small.*need 259"),
        (lambda config: config.task.update(name="bert"), r"task\.name='bert' must be one of language, masked"),
    ],
)
def test_what_does_not_fit_a_masked_model_is_refused(config, change, message):
    config = _masked(config)
    change(config)
    with pytest.raises(ValueError, match=message):
        settings.validate(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.model.update(causal=True), r"config\.task\.name='classification' needs causal=False"),
        (lambda config: config.data.update(name="text"), r"data\.name='text' is nothing for .*Choose from packages"),
        (lambda config: config.task.update(pooling="last"), r"task\.pooling='last' must be one of first, mean"),
        (lambda config: config.task.update(num_labels=0), r"task\.num_labels=0 must be an integer of at least 1"),
        (
            lambda config: config.task.update(num_labels=2),
            r"label 2 \('trains'\) is out of range: config\.task\.num_labels=2, but there are 3 labels",
        ),
        (lambda config: config.data.update(path="nowhere"), r"data\.path='nowhere' is no folder"),
    ],
)
def test_what_does_not_fit_a_classifier_is_refused(config, folders, tmp_path, change, message):
    config = _classification(config, folders)
    change(config)
    with pytest.raises(ValueError, match=message):
        loop.prepare(config, str(tmp_path / "run"))
