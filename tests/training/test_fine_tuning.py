"""A run begins with the parameters of another, or of a Hugging Face checkpoint, and says which; or it says why not."""

import dataclasses
import shutil
import sys
import types

import jax
import numpy as np
import pytest
from flax import traverse_util

from reformer import ReformerConfig, ReformerLM
from reformer.interop import huggingface
from reformer.tasks import registry
from reformer.training import checkpoint, fine_tuning, loop, settings, workdir
from reformer.training.step import make_programs
from tests.training.runs import run, save_untrained


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of text, the labels."""
    root = tmp_path_factory.mktemp("folders")
    for name in ("left", "right"):
        (root / name).mkdir()
        for number in range(8):
            (root / name / str(number)).write_bytes(f"{name} and {name} ".encode() * 20)
    return root


@pytest.fixture(scope="module")
def make_masked(make_config):
    """Returns configs of a masked language model."""

    def make():
        config = make_config()
        config.task.name = "masked"
        config.model.update(causal=False, attention_pattern=("local",), num_layers=1)
        return config

    return make


@pytest.fixture(scope="module")
def make_classifier(make_masked, folders):
    """Returns configs of a classifier of the same size, with another seed."""

    def make(init_from=""):
        config = make_masked()
        config.task.update(name="classification", num_labels=2)
        config.data.update(name="packages", path=str(folders), valid_fraction=0.2, test_fraction=0.2)
        config.training.update(num_steps=2, init_from=str(init_from))
        config.evaluation.every_steps = 2
        config.checkpoint.every_steps = 1
        config.seed = 1
        return config

    return make


@pytest.fixture(scope="module")
def pretrained(make_masked, tmp_path_factory):
    """The workdir of a masked language model."""
    return save_untrained(make_masked(), tmp_path_factory.mktemp("pretrained") / "run")


def find(config):
    return fine_tuning.find(config, registry.load_data(config, settings.window_length(config)))


def leaves(params):
    return traverse_util.flatten_dict(params, sep="/")


def test_what_fits_is_copied_and_the_rest_is_new(pretrained, make_classifier, tmp_path):
    origin, found, random = begin(make_classifier(pretrained), tmp_path / "run")
    expected = leaves(checkpoint.load(pretrained)[1]["params"])
    for path in found:
        is_copied = not path.startswith("head")
        assert (path in origin.copied) == is_copied
        np.testing.assert_array_equal(found[path], (expected if is_copied else random)[path])
        assert found[path].sharding == random[path].sharding
    assert (found["embeddings/token"] != random["embeddings/token"]).any()


def test_what_was_copied_and_what_is_new_is_said(pretrained, make_classifier):
    config = make_classifier(pretrained)
    config.model.num_hashes = 7
    text = find(config).describe()
    assert text.startswith(f"begins with embeddings, norm, stack of {pretrained}, step 1; new: head, head_hidden\n")
    assert text.endswith("model.num_hashes: 2 -> 7")


def test_nothing_is_read_where_nothing_is_named(make_classifier):
    assert find(make_classifier()) is None


@pytest.mark.slow
def test_a_run_that_continues_needs_its_origin_no_more(pretrained, make_classifier, tmp_path, capsys):
    origin = shutil.copytree(pretrained, tmp_path / "origin")
    config = make_classifier(origin)
    config.training.frozen = ("embeddings", "stack")
    whole = run(config, tmp_path / "unbroken")
    assert "parameters, of which" in (printed := capsys.readouterr().out) and "begins with embeddings" in printed
    config.training.num_steps = 1
    run(config, tmp_path / "run")
    shutil.rmtree(origin)
    config.training.num_steps = 2
    assert run(config, tmp_path / "run")["bits_per_window"] == whole["bits_per_window"]
    params = [leaves(checkpoint.load(tmp_path / "run", "latest")[1]["params"])]
    params += [leaves(checkpoint.load(tmp_path / "unbroken", "latest")[1]["params"])]
    source = leaves(checkpoint.load(pretrained)[1]["params"])
    for path in params[0]:
        np.testing.assert_array_equal(params[0][path], params[1][path])
        if path.startswith(("embeddings", "stack")):
            np.testing.assert_array_equal(params[0][path], source[path])


def test_a_hugging_face_checkpoint_is_a_place_to_begin(make_classifier, tmp_path):
    config = make_classifier(tmp_path / "theirs")
    config.model.semantics = "huggingface"
    model = settings.model_config(config)
    params = ReformerLM(model).init(jax.random.key(3), method="create")
    huggingface.save(tmp_path / "theirs", model, params)
    origin = find(config)
    assert origin.describe() == f"begins with embeddings, norm, stack of {tmp_path / 'theirs'}; new: head, head_hidden"
    found = origin.read(None)
    np.testing.assert_array_equal(found["embeddings/token"], params["params"]["embeddings"]["token"])


@pytest.mark.slow
def test_a_name_on_the_hub_is_a_place_to_begin(make_classifier, tmp_path, monkeypatch):
    config = make_classifier("someone/theirs")
    config.model.semantics = "huggingface"
    model = settings.model_config(config)
    shapes = jax.eval_shape(lambda: ReformerLM(model).init(jax.random.key(3), method="create"))
    huggingface.save(tmp_path / "cache", model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = lambda name, allow_patterns: str(tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert find(config).describe() == "begins with embeddings, norm, stack of someone/theirs; new: head, head_hidden"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ValueError, match=r"init_from: 'someone/theirs' is no folder here, .* hf download someone/theirs"
    ):
        find(config)


def test_ids_that_mean_something_else_are_refused(make_classifier, tmp_path):
    config = make_classifier(tmp_path / "theirs")
    config.model.semantics = "huggingface"
    model = settings.model_config(config)
    huggingface.save(tmp_path / "theirs", model, ReformerLM(model).init(jax.random.key(3), method="create"))
    (tmp_path / "theirs" / "spiece.model").write_bytes(b"pieces")
    with pytest.raises(ValueError, match=r"the ids of .*theirs are other subwords than those of the data"):
        find(config)


def test_labels_that_mean_something_else_are_refused(make_classifier, tmp_path):
    config = make_classifier()
    data = registry.load_data(config, settings.window_length(config))
    (tmp_path / "labels.txt").write_bytes(data.assets["labels.txt"])
    workdir.check_assets(tmp_path, data)
    (tmp_path / "labels.txt").write_text("bottom\nleft\n")
    with pytest.raises(ValueError, match=r"labels\.txt is not the one of .* mean other labels\. Name data that have"):
        workdir.check_assets(tmp_path, data)


def test_processes_with_other_configs_or_data_are_refused(make_classifier, monkeypatch):
    config = make_classifier()
    data = registry.load_data(config, settings.window_length(config))
    workdir.check_others(config, data)
    config.optimizer.learning_rate = 0.25
    of_process_0 = settings.flatten(settings.as_json(config)) | {"the data": "abc", "data.path": "/elsewhere"}
    monkeypatch.setattr(workdir.distributed, "on_process_0", lambda _: of_process_0)
    config.optimizer.learning_rate = 0.5
    message = (
        r"another run than process 0: optimizer\.learning_rate=0\.5 instead of 0\.25, the data=.* instead of 'abc'"
    )
    with pytest.raises(ValueError, match=message):
        workdir.check_others(config, data)


def test_a_part_of_a_model_is_a_place_to_begin():
    shapes = {"generator/head/bias": (1,), "discriminator/stack/kernel": (2, 3), "discriminator/norm/scale": (4,)}
    found = fine_tuning._Found(
        "runs/x, step 3", ReformerConfig(), None, shapes, lambda mesh: {path: path for path in shapes}
    )
    part = found.part("discriminator")
    assert part.shapes == {"stack/kernel": (2, 3), "norm/scale": (4,)}
    assert part.read(None) == {name: f"discriminator/{name}" for name in part.shapes}
    assert part.name == "discriminator of runs/x, step 3"
    with pytest.raises(ValueError, match="runs/x, step 3 has no part 'encoder', only generator, discriminator"):
        found.part("encoder")
    fine_tuning._require(found, shapes, {})  # the same parts in both
    whole = dataclasses.replace(found, shapes={"stack/kernel": (2, 3)})
    with pytest.raises(ValueError, match=r"is one model, and this one consists of generator, discrim"):
        fine_tuning._require(whole, shapes, {})
    with pytest.raises(ValueError, match=r"consists of generator, discriminator\. Name a part.*DIR:PART"):
        fine_tuning._require(found, {"embeddings/token": (1,)}, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"embed_dim": 32},
            r"embeddings/axial_0 of .* is \(4, 4\) and would have to be \(4, 8\)\. Give the model the same fields; "
            r"they differ in model\.axial_dims: \[4, 12\] -> \[8, 24\], model\.embed_dim: 16 -> 32",
        ),
        ({"share_query_key": True}, r"stack/depth_0/attention/.* is absent .*share_query_key: False -> True"),
        ({"num_layers": 2}, r"stack/depth_1/.* is absent and would have to be \(16, .*model\.num_layers: 1 -> 2"),
        (
            {"attention_pattern": ("lsh",), "mlp_dim": 16},
            r"stack/depth_0/feed_forward/.* would have to be .*attention_pattern: \['local'\] -> \['lsh'\]",
        ),
        ({"vocab_size": 300}, r"embeddings/token of .* is \(259, 16\) and would have to be \(300, 16\)"),
    ],
)
def test_another_size_is_refused_with_the_fields_that_differ(pretrained, make_classifier, changes, message):
    config = make_classifier(pretrained)
    config.model.update(changes)
    with pytest.raises(ValueError, match=message):
        find(config)


def begin(config, directory):
    """The origin of a run and its parameters before the first step, and those that it would have without."""
    prepared = loop.prepare(config, str(directory))
    with jax.set_mesh(prepared.mesh):
        programs = make_programs(prepared.config, prepared.mesh)
        begun = prepared.origin.begin(programs.init(), programs.target, prepared.mesh)
        return prepared.origin, leaves(begun.params), leaves(programs.init().params)


@pytest.mark.parametrize("patterns", [(("full",), ("local", "lsh")), (("local", "lsh"), ("full",))], ids=str)
def test_layers_of_another_pattern_begin_with_those_of_the_same_depth(make_config, tmp_path, patterns):
    configs = [make_config(), make_config()]
    for seed, (config, pattern) in enumerate(zip(configs, patterns, strict=True)):
        config.seed = seed
        config.model.update(num_layers=4, attention_pattern=pattern, look_ahead=False)
    configs[1].training.init_from = str(save_untrained(configs[0], tmp_path / "there"))
    origin, begun, fresh = begin(configs[1], tmp_path / "here")
    there = leaves(checkpoint.load(tmp_path / "there")[1]["params"])

    def row(params, pattern, depth, name):
        return params[f"stack/layer_{depth % len(pattern)}/{name}"][depth // len(pattern)]

    for depth in range(4):
        for name in ("attention/value/kernel", "attention/norm/scale"):
            copied = row(there, patterns[0], depth, name)
            np.testing.assert_array_equal(row(begun, patterns[1], depth, name), copied)
        is_lsh = depth % 2
        if patterns[1] == ("full",):  # which has projections that LSH layers do not have
            found, random = (row(params, patterns[1], depth, "attention/key/kernel") for params in (begun, fresh))
            expected = random if is_lsh else row(there, patterns[0], depth, "attention/key/kernel")
            np.testing.assert_array_equal(found, expected)
    projections = ("key", "query") if patterns[1] == ("full",) else ("query_key",)
    number = 0 if patterns[1] == ("full",) else 1
    assert origin.new == tuple(f"stack/layer_{number}/attention/{name}/kernel" for name in projections)
    assert f"new: {', '.join(origin.new)}\n" in origin.describe()


def test_what_is_no_model_is_refused(make_classifier, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        with pytest.raises(ValueError, match=r"init_from='.*' is neither the workdir of a run with checkpoints nor"):
            find(make_classifier(tmp_path / name))
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "reformer", "attn_layers": ["local"]}')
    with pytest.raises(ValueError, match=r"init_from: .*model\.safetensors does not exist"):
        find(make_classifier(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (("embeddings", "stakc"), r"frozen: 'stakc' matches no parameter"),
        (("(",), r"config\.training\.frozen=\('\(',\) must be a tuple of regular expressions"),
    ],
)
def test_a_wrong_pattern_is_refused_before_anything_is_read(make_classifier, tmp_path, value, message):
    config = make_classifier()
    config.training.frozen = value
    with pytest.raises(ValueError, match=message):
        loop.prepare(config, str(tmp_path / "run"))
