"""Loss and accuracy: every target once, and other configs only where the parameters allow."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import sharding
from reformer.commands import evaluate as eval_program
from reformer.data import load, source
from reformer.models.language import ReformerLM
from reformer.training import evaluation, loop, settings
from tests.training.runs import initial_params


def data_of(config, num_bytes):
    """The text of the config with a validation split of its first bytes."""
    data = load.load(config.data, 32)
    return dataclasses.replace(data, valid=data.valid[:num_bytes])


def measure(config, params, data):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        evaluator = evaluation.make_evaluator(config, data, "valid", mesh)
        return evaluator.measure(params, hash_seed=0)


@pytest.mark.slow
def test_scores_are_those_of_the_logits_over_all_windows(config):
    model_config = settings.model_config(config)
    params, data = initial_params(config), data_of(config, 75)
    bits = right = 0.0
    for window in source.evaluation_batches(data, "valid", length=32, batch_size=1):
        logits = ReformerLM(model_config).apply(
            {"params": params},
            jnp.asarray(window["tokens"]),
            mask=jnp.asarray(window["mask"]),
            rngs={"hash": jax.random.key(0)},
        )
        log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
        targets = np.take_along_axis(log_probs, np.where(window["mask"], window["targets"], 0)[..., None], -1)[..., 0]
        bits -= (targets * window["weights"]).sum() / math.log(2)
        right += ((np.argmax(log_probs, -1) == window["targets"]) * window["weights"]).sum()
    np.testing.assert_allclose(measure(config, params, data)[:3], (bits / 75, right / 75, 75), rtol=1e-5)


@pytest.mark.slow
def test_scores_do_not_depend_on_the_batch_size(config):
    params, data = initial_params(config), data_of(config, 333)
    results = []
    for batch_size in (1, 4, 16):
        config.evaluation.batch_size = batch_size
        results.append(measure(config, params, data)[:3])
    np.testing.assert_allclose(results, [results[0]] * 3, rtol=1e-5)


@pytest.fixture(scope="module")
def workdir(make_config, tmp_path_factory):
    """A finished run of local layers that share queries and keys, and LSH layers."""
    config = make_config()
    config.model.update(num_layers=2, attention_pattern=("local", "lsh"), share_query_key=True)
    config.training.num_steps = 2
    directory = tmp_path_factory.mktemp("run") / "workdir"
    loop.train(loop.prepare(config, str(directory)))
    return directory


def run_eval(workdir, capsys, *arguments):
    eval_program.main([f"--workdir={workdir}", *arguments])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_the_last_line_is_the_stored_result(workdir, capsys):
    record = run_eval(workdir, capsys)
    assert (record["split"], record["step"], record["num_bytes"]) == ("valid", 2, 2000)
    stored = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    trained = next(entry for entry in stored if entry["split"] == "valid" and entry["step"] == 2)
    np.testing.assert_allclose(record["bits_per_byte"], trained["bits_per_byte"], rtol=1e-6)
    assert json.loads((workdir / "evaluations.jsonl").read_text().splitlines()[-1]) == record


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        "--config.model.num_hashes=3",
        "--config.model.num_buckets=4",
        "--config.model.lsh_chunk_length=4",
        "--config.model.attention_pattern=('full','lsh')",
        "--config.model.dtype=bfloat16",
        "--split=test",
        "--checkpoint=latest",
        "--config.evaluation.max_examples=2",
    ],
)
def test_what_leaves_the_parameters_as_they_are_can_be_changed(workdir, capsys, change):
    assert math.isfinite(run_eval(workdir, capsys, change)["bits_per_byte"])


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"fsdp": 4, "tensor": 2}, {"data": 4, "tensor": 2, "split_length": True}])
def test_other_devices_measure_the_same(workdir, capsys, sizes):
    changes = [f"--config.sharding.{name}={size}" for name, size in ({"data": 1} | sizes).items()]
    one, eight = (run_eval(workdir, capsys, *some)["bits_per_byte"] for some in ([], changes))
    assert eight == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--config.model.num_heads=4", r"num_heads: 2 -> 4: the trained parameters do not allow this; stack/"),
        (
            "--config.model.share_query_key=False",
            r"share_query_key: True -> False: the trained parameters do not allow",
        ),
        ("--config.model.causal=False", r"causal=False would show the model what it predicts"),
        ("--config.optimizer.learning_rate=1", r"this has no effect here. Leave it out"),
        ("--checkpoint=99", r"checkpoint='99' does not exist"),
        ("--split=train2", r"invalid choice: 'train2'"),
    ],
)
def test_what_the_parameters_do_not_allow_is_named(workdir, capsys, change, message):
    with pytest.raises(ValueError, match=message):
        eval_program.parse([f"--workdir={workdir}", change])
