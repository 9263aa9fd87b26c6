"""A run on subwords from the first step to its last use, when the file of its vocabulary is gone."""

import json

import numpy as np
import pytest

from reformer.commands import evaluate, generate
from reformer.commands import train as train_command
from reformer.data import text_tokens
from reformer.inspection import __main__ as inspection
from reformer.training import loop, settings
from tests.training.runs import save_untrained


@pytest.fixture
def subword_config(config, text_file, tmp_path):
    """Learned subwords in a file of the user's, documents packed and kept apart."""
    tokens = text_tokens.learn(text_file.read_bytes(), 290, tmp_path / "cache")
    (tmp_path / "own.model").write_bytes(tokens.vocabulary.content)
    (tmp_path / "lines.jsonl").write_text("".join(f'{{"t": "the tree {i} in the wind"}}\n' for i in range(300)))
    config.data.update(path=str(tmp_path / "lines.jsonl"), text_field="t", tokens="subwords")
    config.data.update(subwords=str(tmp_path / "own.model"), pack_documents=True, separate_documents=True)
    config.model.vocab_size = 293
    config.training.num_steps = 2
    return config


@pytest.mark.slow
def test_a_run_trains_and_evaluates_and_writes_without_the_file_of_its_vocabulary(subword_config, tmp_path, capsys):
    workdir = tmp_path / "run"
    run = loop.prepare(subword_config, workdir)
    result = loop.train(run)
    assert 0 < result["bits_per_byte"] < result["bits_per_token"]
    train_command.say_what_was_learned(run, result)
    printed = capsys.readouterr().out
    assert "bits/byte" in printed and "order-2 counts" in printed and "a sample:" in printed

    (tmp_path / "own.model").unlink()
    loop.prepare(subword_config, workdir)  # it may continue
    evaluate.main([f"--workdir={workdir}"])
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["bits_per_byte"] == pytest.approx(result["bits_per_byte"], rel=1e-6)
    assert record["bits_per_token"] == pytest.approx(result["bits_per_token"], rel=1e-6)
    generate.main([f"--workdir={workdir}", "--prompt=the tree  in", "--num_tokens=8", f"--out={tmp_path / 'out'}"])
    assert (tmp_path / "out").read_bytes().startswith(b"the tree  in")
    first = inspection.parse([f"--workdir={workdir}"]).tokens
    tokens = text_tokens.read(str(workdir / "subwords.model"))
    assert first[0] == tokens.begin_id and tokens.decode(first).startswith(b"the tree")
    given = inspection.parse([f"--workdir={workdir}", "--text=the wind"])
    assert given.of_text.decode(given.tokens) == b"the wind"


def test_generation_stops_at_the_end_of_a_document_or_at_one_subword(subword_config, tmp_path):
    workdir = save_untrained(subword_config, tmp_path / "run")
    (workdir / "subwords.model").write_bytes((tmp_path / "own.model").read_bytes())
    job = generate.parse([f"--workdir={workdir}", "--prompt=the wind"])
    assert (job.generation.sampling.stop_id, job.generation.sampling.num_ids) == (290, 291)
    assert job.generation.prompts[0].tolist()[0] == 291
    assert job.generation.of_text.decode(np.asarray(job.generation.prompts[0])) == b"the wind"
    with pytest.raises(ValueError, match=r"--stop='the wind' must be one subword of the run; it is \d"):
        generate.parse([f"--workdir={workdir}", "--stop=the wind"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.vocab_size": 259}, r"model\.vocab_size=259 is too small.*need 293\. Raise vocab_size"),
        ({"data.tokens": "bytes"}, r"data\.subwords=.* is not read by data\.tokens='bytes'.*tokens='subwords'"),
        (
            {"task.name": "masked", "model.causal": False},
            r"data\.pack_documents=True is for .*language.*masked",
        ),
        ({"model.attention_implementation": "pallas"}, r"separate_documents=True needs .*'plain'"),
        ({"data.name": "duplication", "data.path": ""}, r"data\.tokens='subwords' is not read by .*'duplication'"),
    ],
)
def test_what_does_not_fit_is_named(subword_config, changes, message):
    for name, value in changes.items():
        group, _, field = name.partition(".")
        subword_config[group][field] = value
    with pytest.raises(ValueError, match=message):
        settings.validate(subword_config)
