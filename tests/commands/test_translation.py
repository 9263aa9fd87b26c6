"""The task of translation: it learns, a run continues, and translate.py says what it can and cannot do."""

import itertools
import json

import numpy as np
import pytest

from configs import base
from reformer.commands import translate, translation
from reformer.data import subwords
from reformer.decoding import beam
from reformer.layers.kinds import num_buckets
from reformer.training import checkpoint, evaluation, settings
from tests.training import runs

WORDS = {"dog": "Hund", "man": "Mann", "park": "Park", "tree": "Baum", "red": "rot", "runs": "rennt"}
NUM_SUBWORDS = 310


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Four words each, translated word by word; none of the 20 to test is among the 330 to train on."""
    prefix = tmp_path_factory.mktemp("pairs") / "words"
    order = np.random.default_rng(0).permutation(list(itertools.permutations(WORDS, 4)))
    for name, rows in (("train", order[:330]), ("val", order[330:340]), ("test", order[340:])):
        for language, lines in (("en", rows), ("de", [[WORDS[word] for word in row] for row in rows])):
            text = "\n".join(" ".join(line) for line in lines)
            prefix.with_name(f"words.{name}.{language}").write_text(text + "\n")
    return prefix


@pytest.fixture(scope="module")
def make_config(prefix, tmp_path_factory):
    """A function that makes configs of 1 + 1 layers of LSH attention, width 32."""
    cache = tmp_path_factory.mktemp("cache")

    def make(**model):
        config = base.get_config()
        config.task.update(name="translation", share_embeddings=True)
        config.data.update(name="pairs", path=str(prefix), cache_dir=str(cache), num_subwords=NUM_SUBWORDS, length=24)
        config.model.update(vocab_size=NUM_SUBWORDS, max_length=32, num_layers=1, embed_dim=32, mlp_dim=64, num_heads=2)
        config.model.update(head_dim=16, attention_pattern=("lsh",), lsh_chunk_length=4, num_hashes=1, dropout_rate=0.1)
        config.model.update(cross_attention=True, merge_streams="average", position_embedding="sinusoidal")
        config.model.update(model)
        config.optimizer.update(name="adamw", schedule="constant", learning_rate=0.003, warmup_steps=10)
        config.training.update(num_steps=4, batch_size=8, log_every_steps=1)
        config.evaluation.update(every_steps=4, batch_size=8, num_hash_seeds=1)
        config.checkpoint.every_steps = 2
        return config

    return make


@pytest.fixture(scope="module")
def short_run(make_config, tmp_path_factory):
    """The workdir of a run of four steps."""
    directory = tmp_path_factory.mktemp("short") / "run"
    runs.run(make_config(), directory)
    return directory


def run(capsys, *arguments):
    """Returns the record that translate.py prints as its last line, and the lines before it."""
    translate.main(list(arguments))
    *lines, last = capsys.readouterr().out.splitlines()
    return json.loads(last), lines


def error(capsys, *arguments):
    with pytest.raises(SystemExit):
        translate.main(list(arguments))
    return capsys.readouterr().err


@pytest.mark.slow
def test_it_learns_to_translate_what_it_has_not_seen(make_config, tmp_path, capsys):
    config = make_config(dropout_rate=0.0)
    config.optimizer.learning_rate = 0.01
    config.training.update(num_steps=150, batch_size=32, log_every_steps=50)
    config.evaluation.every_steps = 150
    config.checkpoint.every_steps = 150
    result = runs.run(config, tmp_path / "run")
    assert result["bits_per_subword"] < 0.5, result
    record, _ = run(capsys, f"--workdir={tmp_path / 'run'}", "--split=test", "--batch_size=10")
    assert record["bleu"] > 60, record
    assert record["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


@pytest.mark.slow
def test_a_run_that_was_stopped_continues_as_if_it_had_not_been(make_config, short_run, tmp_path):
    config = make_config()
    config.training.num_steps = 2
    runs.run(config, tmp_path)
    config.training.num_steps = 4
    runs.run(config, tmp_path)
    runs.assert_same(*(checkpoint.load(directory, 4)[1] for directory in (tmp_path, short_run)))


@pytest.mark.slow
def test_eval_measures_a_checkpoint(make_config, short_run):
    record = evaluation.evaluate(evaluation.prepare(make_config(), short_run, "latest", "test"))
    assert 7 < record["bits_per_subword"] < 10 and record["num_subwords"] > 20 * 5


@pytest.mark.slow
def test_a_run_keeps_its_vocabulary_and_refuses_another(make_config, short_run, prefix, tmp_path):
    vocabulary = subwords.read(str(short_run / "subwords.model"))
    assert vocabulary.num_ids == NUM_SUBWORDS
    other = make_config()
    for name in ("train", "val"):
        for language in ("en", "de"):
            lines = prefix.with_name(f"words.{name}.{language}").read_text().lower().replace("man", "zebra")
            (tmp_path / f"other.{name}.{language}").write_text(lines)
    other.data.path = str(tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"subwords\.model is not the one of the data .*--config\.data\.subwords=.*mod"
    ):
        evaluation.prepare(other, short_run, "latest", "valid")
    other.data.subwords = str(short_run / "subwords.model")
    assert evaluation.prepare(other, short_run, "latest", "valid").data.vocabulary.num_ids == NUM_SUBWORDS


@pytest.mark.slow
def test_a_split_is_translated_beside_its_references(short_run, capsys, tmp_path):
    arguments = (f"--workdir={short_run}", "--split=valid", "--beam_size=2", "--batch_size=4")
    record, _ = run(capsys, *arguments, f"--output={tmp_path / 'out.txt'}")
    assert len((tmp_path / "out.txt").read_text().splitlines()) == record["texts"] == 10
    assert (record["split"], record["beam_size"], record["length_penalty"]) == ("valid", 2, 0.6)
    assert "bleu" in record and json.loads((short_run / "evaluations.jsonl").read_text().splitlines()[-1])["bleu"] >= 0
    run(capsys, *arguments, "--batch_size=3", f"--output={tmp_path / 'again.txt'}")
    assert (tmp_path / "again.txt").read_text() == (tmp_path / "out.txt").read_text()


@pytest.mark.slow
def test_lines_are_translated_in_their_order_without_the_training_texts(short_run, capsys, tmp_path, monkeypatch):
    (tmp_path / "in.txt").write_text("red dog runs\nman\n")
    monkeypatch.setattr(beam, "search", lambda model, variables, sources, how, **_: (sources, None))
    record, lines = run(capsys, f"--workdir={short_run}", f"--input={tmp_path / 'in.txt'}", "--config.data.path=gone")
    assert lines[-2:] == ["red dog runs", "man"] and record["texts"] == 2 and "bleu" not in record


@pytest.mark.slow
def test_documents_are_compared_as_one_text_and_missing_parts_are_told(
    make_config, prefix, tmp_path, capsys, monkeypatch
):
    config = make_config()
    config.data.update(join=3, length=32)
    runs.save_untrained(config, tmp_path / "run")
    vocabulary = subwords.learn(
        [line for name in ("en", "de") for line in prefix.with_name(f"words.train.{name}").read_text().splitlines()],
        NUM_SUBWORDS,
        tmp_path,
    )
    (tmp_path / "run" / "subwords.model").write_bytes(vocabulary.model)

    def translate_all_but_join_the_first(job, on_batch):
        first, *others = [list(texts.target) for texts in job.texts]
        return [[" ".join(first)], *others]

    monkeypatch.setattr(translation.Translation, "run", translate_all_but_join_the_first)
    record, _ = run(capsys, f"--workdir={tmp_path / 'run'}", "--split=test")
    assert record["bleu"] == 100 and record["share_with_all_texts"] == round(1 - 1 / record["texts"], 4)


@pytest.mark.slow
def test_blank_lines_stay_blank_and_the_record_says_what_was_changed(short_run, capsys, tmp_path, monkeypatch):
    (tmp_path / "in.txt").write_text("\nman\n  \ndog\n\n")
    monkeypatch.setattr(beam, "search", lambda model, variables, sources, how, **_: (sources, None))
    output = tmp_path / "out.txt"
    record, lines = run(
        capsys, f"--workdir={short_run}", f"--input={tmp_path / 'in.txt'}", f"--output={output}", "--seed=3",
        "--config.model.num_hashes=2",
    )  # fmt: skip
    assert output.read_text() == "\nman\n\ndog\n\n" and lines == []
    assert record["texts"] == 5 and record["seed"] == 3 and record["changes"] == {"model.num_hashes": 2}
    (tmp_path / "blank.txt").write_text("\n\n")
    message = error(capsys, f"--workdir={short_run}", f"--input={tmp_path / 'blank.txt'}")
    assert "there is nothing to translate" in message


@pytest.mark.slow
def test_ids_beyond_the_vocabulary_are_never_written(make_config, short_run, tmp_path):
    config = make_config(vocab_size=NUM_SUBWORDS + 10)
    directory = runs.save_untrained(config, tmp_path / "run")
    (directory / "subwords.model").write_bytes((short_run / "subwords.model").read_bytes())
    made = translation.prepare(config, directory, "latest", lines=["man"])
    assert set(range(NUM_SUBWORDS, NUM_SUBWORDS + 10)) < set(made.how.never)


@pytest.mark.slow
def test_the_buckets_are_those_of_the_training_rows(make_config, short_run):
    config = make_config()
    config.data.length = 32
    job = translation.prepare(config, short_run, "latest", lines=["man"])
    model = settings.model_config(config)
    buckets = num_buckets(make_config().data.length, model)
    assert job.model.config.num_buckets == job.model.encoder_config.num_buckets == buckets
    assert num_buckets(config.data.length, model) != buckets


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name either --split=test or --input=FILE"),
        (("--split=test", "--batch_size=0"), "batch_size=0 must be at least 1"),
        (("--split=test", "--seed=-1"), "--seed=-1 must be from 0 to 2147483647"),
        (("--split=test", "--beam_size=0"), "beam_size=0 must be at least 1"),
        (("--split=test", "--config.model.embed_dim=64"), "the trained parameters do not allow this"),
        (("--split=test", "--config.task.share_embeddings=False"), "this has no effect here"),
        (("--split=test", "--checkpoint=7"), "checkpoint='7' does not exist"),
        (
            ("--split=test", "--output=/nowhere/out.txt"),
            "--output=/nowhere/out.txt must be a file in a folder that exi",
        ),
        (("--split=test", "--output=/"), "--output=/ must be a file in a folder that exists"),
        (("--split=test", "--config.data.subwords=other.model"), "are always used. Leave it out"),
        (("--input=/nowhere/in.txt",), "'/nowhere/in.txt' cannot be read (No such file or directory)"),
    ],
)
def test_what_cannot_be_done_is_said(short_run, capsys, arguments, message):
    assert message in error(capsys, f"--workdir={short_run}", *arguments)


@pytest.mark.slow
def test_a_text_longer_than_the_maximum_is_refused_with_its_number(short_run, capsys, tmp_path):
    (tmp_path / "in.txt").write_text("man\n" + "dog " * 40 + "\n")
    message = error(capsys, f"--workdir={short_run}", f"--input={tmp_path / 'in.txt'}")
    assert "text 2 has" in message and "more than max_length=32 of the model: 'dog dog" in message


@pytest.mark.slow
def test_a_missing_and_a_wrong_vocabulary_are_refused(make_config, prefix, capsys, tmp_path):
    directory = runs.save_untrained(make_config(), tmp_path / "run")
    (tmp_path / "in.txt").write_text("man\n")
    arguments = (f"--workdir={directory}", f"--input={tmp_path / 'in.txt'}")
    assert "subwords.model is missing: without its subwords the model's ids mean nothing" in error(capsys, *arguments)
    lines = prefix.with_name("words.train.en").read_text().splitlines()
    (directory / "subwords.model").write_bytes(subwords.learn(lines, 280, tmp_path).model)
    assert "has 280 subwords, but the run was trained with data.num_subwords=310" in error(capsys, *arguments)


def test_runs_of_another_task_are_refused(text_file, config, capsys, tmp_path):
    directory = runs.save_untrained(config, tmp_path / "run")
    message = error(capsys, f"--workdir={directory}", "--split=test")
    assert "holds a run with task.name='language', no translation" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.cross_attention": False}, "the decoder would not see the source"),
        ({"model.causal": False}, r"task\.name='translation' needs causal=True"),
        ({"model.vocab_size": 280}, r"vocab_size=280 is too small: .* need 310"),
        ({"task.source_length": 33}, r"config\.task\.source_length=33 exceeds config\.model\.max_length=32"),
        ({"data.path": ""}, r"config\.data\.path is empty\. Name what the names of two text files begin with"),
        ({"data.name": "stdlib"}, r"config\.data\.name='stdlib' is nothing for config\.task\.name='translation'"),
        ({"data.length": 1}, "leaves no place for a subword before the end id"),
        ({"sharding.split_length": True}, "cross attention needs the whole source on every device"),
        ({"data.join": 0}, r"config\.data\.join=0 must be an integer of at least 1"),
        ({"task.name": "language", "data.name": "stdlib"}, r"task\.name='language' has no source to attend to"),
    ],
)
def test_configs_that_make_no_sense_are_refused(make_config, changes, message):
    config = make_config()
    for name, value in changes.items():
        group, field = name.split(".")
        config[group][field] = value
    with pytest.raises(ValueError, match=message):
        settings.validate(config)
