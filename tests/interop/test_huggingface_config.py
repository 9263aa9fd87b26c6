"""The fields of a Hugging Face `config.json`: translated, translated back, or refused."""

import dataclasses
import json

import pytest

from reformer.config import ReformerConfig
from reformer.interop.huggingface_config import (
    ARCHITECTURES,
    config_from_fields,
    declared_architecture,
    fields_from_config,
    labels_from_fields,
    language_model,
    read_fields,
)
from reformer.layers.kinds import KINDS

MINIMAL = {"model_type": "reformer"}
EXPRESSIBLE = ReformerConfig(semantics="huggingface", dropout_rate=0.1, attention_dropout_rate=0.2)


def through_json(fields):
    """What a reader sees of fields that were written to a file."""
    return json.loads(json.dumps(fields))


def test_absent_fields_take_the_defaults_of_their_code():
    """Their documentation says 0.1 for both dropout rates of the attention weights; their code has 0.05 and 0."""
    assert config_from_fields(MINIMAL, "float32") == ReformerConfig(
        vocab_size=320,
        max_length=4096,
        num_layers=6,
        embed_dim=256,
        mlp_dim=512,
        num_heads=12,
        head_dim=64,
        attention_pattern=("local", "lsh"),
        causal=False,
        num_hashes=1,
        num_buckets=None,
        lsh_chunk_length=64,
        local_chunk_length=64,
        axial_shape=(64, 64),
        axial_dims=(64, 192),
        activation="relu",
        dropout_rate=0.05,
        attention_dropout_rate=0.05,
        lsh_attention_dropout_rate=0.0,
        layer_norm_epsilon=1e-12,
        semantics="huggingface",
    )


# Every field that is read.
FIELDS = {
    *fields_from_config(EXPRESSIBLE, language_model(EXPRESSIBLE)),
    *("axial_pos_shape", "axial_pos_embds_dim", "classifier_dropout", "id2label", "num_labels", "hash_seed"),
}


@pytest.mark.parametrize("name", sorted(FIELDS - {"model_type"}))
def test_a_null_field_means_its_default(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MINIMAL | {name: None}))
    assert read_fields(tmp_path) == MINIMAL
    assert config_from_fields(MINIMAL | {name: None}, "float32") == config_from_fields(MINIMAL, "float32")


def test_a_model_without_lsh_layers_needs_no_options_of_lsh():
    """As theirs writes it; more positions than the grid has would steer the automatic number of buckets."""
    without = {"attn_layers": ["local", "local"], "lsh_attn_chunk_length": None, "num_buckets": None}
    grid = {"axial_pos_shape": [8, 8], "max_position_embeddings": 65_536, "local_attn_chunk_length": 16}
    config = config_from_fields(MINIMAL | without | grid, "float32")
    assert (config.attention_pattern, config.max_length, config.local_chunk_length) == (("local",), 64, 16)


@pytest.mark.parametrize(
    ("layers", "pattern"),
    [
        (["lsh"] * 3, ("lsh",)),
        (["local", "lsh"] * 3, ("local", "lsh")),
        (["local", "local", "lsh", "local"] * 2, ("local", "local", "lsh", "local")),
        (["lsh", "local", "lsh"], ("lsh", "local", "lsh")),
    ],
)
def test_layers_become_the_shortest_pattern_that_repeats(layers, pattern):
    config = config_from_fields(MINIMAL | {"attn_layers": layers}, "float32")
    assert (config.attention_pattern, config.num_layers) == (pattern, len(layers))


@pytest.mark.parametrize(
    ("name", "activation"),
    [("relu", "relu"), ("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("silu", "silu"), ("swish", "silu")],
)
def test_activations_are_translated(name, activation):
    assert config_from_fields(MINIMAL | {"hidden_act": name}, "float32").activation == activation


def test_positions_beyond_the_axial_grid_do_not_exist():
    fields = {"axial_pos_shape": [8, 8], "max_position_embeddings": 128, "num_buckets": 8}
    assert config_from_fields(MINIMAL | fields, "float32").max_length == 64


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_pattern": ("lsh", "local", "local"), "num_layers": 9},
        {"num_buckets": (16, 8), "num_hashes": 4},
        {"num_buckets": 32, "lsh_chunk_length": 32, "lsh_num_chunks_before": 2},
        {"causal": False, "lsh_num_chunks_after": 1, "local_num_chunks_after": 2},
        {"position_embedding": "learned"},
        {"axial_shape": (4, 32, 32), "axial_dims": (64, 64, 128)},
        {"activation": "gelu_tanh", "layer_norm_epsilon": 1e-5},
        {"activation": "silu", "dropout_rate": 0.0, "lsh_attention_dropout_rate": 0.3},
        {"dtype": "float64", "param_dtype": "float64"},
    ],
    ids=str,
)
def test_configurations_survive_the_way_there_and_back(changes):
    config = dataclasses.replace(EXPRESSIBLE, **changes)
    resolved = dataclasses.replace(
        config,
        attention_dropout_rate=config.attention_weights_dropout_rate,
        lsh_attention_dropout_rate=KINDS["lsh"].dropout_rate(config),
    )
    if config.position_embedding == "axial":
        shape, dims = config.resolved_axial_shape, config.resolved_axial_dims
        resolved = dataclasses.replace(resolved, axial_shape=shape, axial_dims=dims)
    architecture = language_model(config)
    fields = through_json(fields_from_config(config, architecture))
    assert config_from_fields(fields, config.dtype) == resolved
    assert declared_architecture(fields) == architecture
    assert through_json(fields_from_config(resolved, architecture)) == fields


def test_chunks_are_not_written_since_theirs_take_only_multiples_of_them():
    config = dataclasses.replace(EXPRESSIBLE, mlp_chunk_length=64, loss_chunk_length=128)
    assert fields_from_config(config, language_model(config)) == fields_from_config(
        EXPRESSIBLE, language_model(EXPRESSIBLE)
    )


@pytest.mark.parametrize(("causal", "name"), [(True, "ReformerModelWithLMHead"), (False, "ReformerForMaskedLM")])
def test_the_architecture_of_a_language_model_follows_causality(causal, name):
    assert language_model(dataclasses.replace(EXPRESSIBLE, causal=causal)) == name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_declared_as_it_is_written(name):
    config = dataclasses.replace(EXPRESSIBLE, causal=name == "ReformerModelWithLMHead")
    fields = through_json(fields_from_config(config, name))
    assert fields["architectures"] == [name]
    assert declared_architecture(fields) == name


@pytest.mark.parametrize("fields", [{}, {"architectures": None}, {"architectures": []}], ids=str)
def test_an_architecture_may_be_left_out(fields):
    assert declared_architecture(MINIMAL | fields) is None


def test_the_published_configurations_are_read():
    """Of google/reformer-enwik8 and google/reformer-crime-and-punishment, as transformers' users have them."""
    enwik8 = {
        "attention_head_size": 128,
        "attn_layers": ["local", "local", "lsh", "local"] * 3,
        "axial_pos_embds_dim": [256, 768],
        "axial_pos_shape": [128, 512],
        "feed_forward_size": 4096,
        "hidden_dropout_prob": 0.2,
        "hidden_size": 1024,
        "is_decoder": True,
        "local_attention_probs_dropout_prob": 0.2,
        "local_attn_chunk_length": 128,
        "lsh_attention_probs_dropout_prob": 0.1,
        "lsh_attn_chunk_length": 256,
        "max_position_embeddings": 65536,
        "num_attention_heads": 8,
        "num_buckets": 512,
        "num_hashes": 4,
        "vocab_size": 258,
    }
    config = config_from_fields(MINIMAL | enwik8, "float32")
    assert (config.vocab_size, config.max_length, config.num_layers, config.num_lsh_layers) == (258, 65536, 12, 3)
    assert (config.attention_pattern, config.num_buckets) == (("local", "local", "lsh", "local"), 512)
    crime_and_punishment = {
        "attention_head_size": 64,
        "axial_pos_embds_dim": [64, 192],
        "axial_pos_shape": [512, 1024],
        "is_decoder": True,
        "max_position_embeddings": 524288,
        "num_attention_heads": 2,
        "num_buckets": [64, 128],
    }
    config = config_from_fields(MINIMAL | crime_and_punishment, "float32")
    assert (config.vocab_size, config.max_length, config.num_layers, config.num_lsh_layers) == (320, 524288, 6, 3)
    assert (config.attention_pattern, config.num_buckets) == (("local", "lsh"), (64, 128))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["BertModel"]}, r"architectures=\['BertModel'\] is no head that can be loaded. It must be"),
        ({"architectures": "ReformerModel"}, "architectures='ReformerModel' is no head .* must be a list"),
        ({"architectures": ["ReformerModelWithLMHead"]}, "is_decoder=False, but ReformerModelWithLMHead needs True"),
        ({"architectures": ["ReformerForMaskedLM"], "is_decoder": True}, "ReformerForMaskedLM needs False"),
    ],
    ids=str,
)
def test_architectures_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        declared_architecture(MINIMAL | fields)


@pytest.mark.parametrize("names", [["a", "b"], {"1": "a", "2": "b"}, {"a": "0"}], ids=str)
def test_classes_that_are_not_numbered_from_zero_are_refused(names):
    with pytest.raises(ValueError, match=r"id2label=.* must be an object that names the classes '0', '1' and so on"):
        labels_from_fields({"id2label": names})


def test_only_a_reformer_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"config.json: model_type='bert' is not 'reformer'"):
        read_fields(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"semantics": "reformer"}, "semantics='reformer' cannot be saved"),
        ({"semantics": "reformer", "lsh_within_bucket": True}, "semantics='reformer' cannot be saved"),
        ({"attention_pattern": ("full", "lsh")}, "Hugging Face has no 'full' layers"),
        ({"share_query_key": True}, "share_query_key=True"),
        ({"position_embedding": "sinusoidal"}, "position_embedding='sinusoidal'"),
        ({"local_num_chunks_after": 1}, "local_num_chunks_after=1 with causal=True"),
        ({"lsh_num_chunks_after": 2}, "lsh_num_chunks_after=2 with causal=True"),
    ],
    ids=str,
)
def test_what_they_lack_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        fields_from_config(dataclasses.replace(EXPRESSIBLE, **changes), "ReformerModel")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "bert"}, "model_type='bert' is not 'reformer'"),
        ({"model_type": None}, "model_type=None is not 'reformer'"),
        ({"hidden_act": "mish"}, "hidden_act='mish' is not supported. It must be one of relu, gelu"),
        ({"hidden_act": ["relu"]}, "hidden_act=.* is not supported"),
        ({"attn_layers": []}, "attn_layers=.* must be a list of 'local' and 'lsh'"),
        ({"attn_layers": ["full"]}, "attn_layers=.* must be a list of 'local' and 'lsh'"),
        ({"axial_pos_shape": 64}, "axial_pos_shape=64 must be a list of integers"),
        ({"axial_pos_embds_dim": [64, 64]}, "must equal embed_dim=256"),
        ({"num_buckets": 7}, "num_buckets=7 must be"),
        ({"lsh_attn_chunk_length": 0}, "lsh_chunk_length=0 must be an integer of at least 1"),
        ({"max_position_embeddings": 2**19}, "exceeds the 4096 positions of axial_pos_shape and steers num_buckets"),
    ],
    ids=str,
)
def test_what_we_cannot_represent_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        config_from_fields(MINIMAL | fields, "float32")
