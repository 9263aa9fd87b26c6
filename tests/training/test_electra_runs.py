"""Replaced-token detection as a task: it learns, resumes, accumulates, and says what cannot be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer.data import source
from reformer.models import flops
from reformer.tasks import registry
from reformer.training import evaluation, fine_tuning, loop, settings, step
from tests.small_models import TINY
from tests.training import runs


def electra_config(config):
    """Turns the small language model into a discriminator, with a generator of half its width."""
    config.task.update(name="electra", generator_scale=0.5)
    config.model.update(causal=False, local_num_chunks_after=1, lsh_num_chunks_after=1, num_heads=2, dropout_rate=0.0)
    return config


@pytest.fixture(scope="module")
def config(make_config):
    return electra_config(make_config())


@pytest.fixture(scope="module")
def unbroken(config, tmp_path_factory):
    """A run of 6 steps and its result."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    return workdir, runs.run(config, workdir)


@pytest.mark.slow
def test_an_evaluation_tells_how_good_both_models_are(unbroken):
    _, result = unbroken
    expected = {"generator_nats", "generator_accuracy", "discriminator_nats", "unreplaced_share", "detection_recall"}
    assert expected <= result.keys() and "bits_per_token" in result
    nats = result["generator_nats"] + 50 * result["discriminator_nats"]
    assert result["bits_per_token"] * np.log(2) == pytest.approx(nats, rel=1e-5)
    assert 0.8 < result["unreplaced_share"] < 0.9  # of 15 % nearly all are wrong
    assert result["best_step"] == 6  # the latest, whatever the losses


@pytest.mark.slow
def test_a_run_that_failed_and_continues_equals_an_unbroken_one(unbroken, config, tmp_path, monkeypatch):
    original, calls = loop.batches.to_mesh, iter(range(100))

    def to_mesh_until_the_fourth(batch, mesh):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return original(batch, mesh)

    monkeypatch.setattr(loop.batches, "to_mesh", to_mesh_until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        runs.run(config, tmp_path / "run")
    monkeypatch.undo()
    assert runs.run(config, tmp_path / "run") == unbroken[1]
    runs.assert_same_run(tmp_path / "run", unbroken[0])


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_as_in_training_whatever_the_batch(unbroken, config):
    workdir, result = unbroken
    config = config.copy_and_resolve_references()
    config.evaluation.batch_size = 16
    found = evaluation.evaluate(evaluation.prepare(config, workdir, "latest", "valid"))
    assert found["bits_per_token"] == pytest.approx(result["bits_per_token"], rel=1e-6)
    assert found["num_tokens"] == 2000  # the bytes of the split


@pytest.mark.slow
def test_the_discriminator_beats_the_share_of_unreplaced_tokens(config, tmp_path):
    """With draws that are far off, which are found soon; with good ones that takes more steps than a test has."""
    config = config.copy_and_resolve_references()
    config.task.temperature = 4.0
    config.model.attention_pattern = ("local",)
    config.optimizer.update(name="adamw", learning_rate=0.01, warmup_steps=10)
    config.training.update(num_steps=100, batch_size=16, log_every_steps=50)
    config.evaluation.every_steps = config.checkpoint.every_steps = 100
    result = runs.run(config, tmp_path / "run")
    assert result["accuracy"] > result["unreplaced_share"] + 0.05, result
    assert result["generator_nats"] < 3.2, result  # the frequencies of the bytes alone give about 2.6


@pytest.mark.slow
def test_a_classifier_begins_with_the_discriminator(config, tmp_path):
    workdir = runs.save_untrained(config, tmp_path / "run")
    tuned = config.copy_and_resolve_references()
    tuned.task.name, tuned.training.init_from = "classification", f"{workdir}:discriminator"
    data = registry.load_data(config, settings.window_length(config))
    origin = fine_tuning.find(tuned, data)
    assert {path.split("/")[0] for path in origin.copied} == {"embeddings", "stack", "norm"}
    assert {path.split("/")[0] for path in origin.new} == {"head_hidden", "head"}
    tuned.training.init_from = str(workdir)
    with pytest.raises(ValueError, match=r"consists of discriminator, generator\. Name a part"):
        fine_tuning.find(tuned, data)


@pytest.mark.slow
def test_micro_batches_have_the_gradient_of_one_large_batch(config):
    model = settings.make_model(config)
    params = model.init(jax.random.key(0), method="create")["params"]
    data = registry.load_data(config, 32)
    rows = next(source.training_batches(data, length=32, batch_size=4, seed=0))
    gradients = jax.jit(step.accumulate_gradients, static_argnums=(0, 4))
    one, other = (gradients(model, params, rows, step.step_rngs(0, jnp.array(0)), n) for n in (1, 4))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3), one, other)


def test_the_generator_sees_the_mask_id_and_no_other_wrong_token(config):
    data = registry.load_data(config, 32)
    rows = next(source.training_batches(data, length=32, batch_size=64, seed=0))
    np.testing.assert_array_equal(rows["tokens"], np.where(rows["weights"] > 0, data.source.mask_id, rows["targets"]))
    assert data.baselines("valid", 32) == {} and isinstance(data, source.Source)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.causal", True, r"^config.model.causal=True hides from each token .* ELECTRA needs causal=False"),
        ("task.share", "heads", r"^config.task.share='heads' must be one of embeddings, all, none"),
        ("task.share", "all", r"^config.task.share='all' needs a generator of the same size, generator_scale=1"),
        ("task.generator_scale", 2.0, r"^config.task.generator_scale=2.0 must be above 0 and at most 1"),
        ("task.generator_scale", 0.0, r"^config.task.generator_scale=0.0 must be a positive number"),
        ("task.discriminator_weight", -1.0, r"^config.task.discriminator_weight=-1.0 must be a positive number"),
        ("task.temperature", 0.0, r"^config.task.temperature=0.0 must be a positive number"),
        ("data.name", "duplication", r"^config.data.name='duplication' is nothing for config.task.name='electra'"),
        ("model.vocab_size", 256, r"^config.model.vocab_size=256 is too small"),
    ],
)
def test_what_cannot_be_is_named_with_its_rule(config, field, value, message):
    config = config.copy_and_resolve_references()
    group, name = field.split(".")
    config[group][name] = value
    with pytest.raises(ValueError, match=message):
        settings.validate(config)


def test_a_generator_that_does_not_divide_over_the_mesh_is_refused(config, tmp_path):
    config = config.copy_and_resolve_references()
    config.sharding.tensor = 2
    with pytest.raises(ValueError, match=r"^The generator's num_heads=1 does not divide over config.sharding.tensor=2"):
        loop.prepare(config, str(tmp_path / "run"))


@pytest.mark.slow
def test_the_summary_lists_the_parameters_of_each_model(config, tmp_path):
    lines = loop.dry_run(loop.prepare(config, str(tmp_path / "run"))).table.splitlines()
    assert max(map(len, lines)) <= 80
    groups = [line.split("  ")[0] for line in lines if line.startswith(("generator", "discriminator"))]
    assert groups == [
        *(f"discriminator: {part}" for part in ("embeddings", "lsh attention", "feed-forward", "norm", "head")),
        *(f"generator: {part}" for part in ("projection", "lsh attention", "feed-forward", "norm", "head")),
    ]


def test_operations_are_those_of_both_models_the_projection_and_the_draw():
    task = {"name": "electra", "generator_scale": 0.5, "share": "embeddings"}
    model = dataclasses.replace(TINY, causal=False)
    generator = registry.companions(task, model)["generator"]
    assert (generator.embed_dim, generator.mlp_dim, generator.num_heads, generator.head_dim) == (4, 8, 1, 4)
    found = registry.flops_per_token(task, model, 16)
    draw, projection = 2 * (2 * 4) * 10, 3 * (2 * 8 * 4)
    discriminator = flops.flops_per_token(model, 16) - 3 * 2 * (2 * 8) * (10 - 1)
    assert found == flops.flops_per_token(generator, 16) + discriminator + draw + projection
    assert registry.flops_per_token({"name": "masked"}, model, 16) == flops.flops_per_token(model, 16)


@pytest.mark.parametrize("name", registry.TASKS)
def test_only_electra_is_not_ranked_by_its_loss(name):
    assert registry.lowest_loss_is_best({"name": name}) == (name != "electra")
