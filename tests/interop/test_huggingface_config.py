"""The fields of a Hugging Face `config.json`: translated, translated back, or refused."""

import dataclasses
import json

import pytest

from reformer.config import ReformerConfig
from reformer.interop.huggingface_config import config_from_fields, fields_from_config

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
        {"mlp_chunk_length": 64, "loss_chunk_length": 128},
        {"dtype": "float64", "param_dtype": "float64"},
    ],
    ids=str,
)
def test_configurations_survive_the_way_there_and_back(changes):
    config = dataclasses.replace(EXPRESSIBLE, **changes)
    resolved = dataclasses.replace(
        config,
        attention_dropout_rate=config.attention_weights_dropout_rate("local"),
        lsh_attention_dropout_rate=config.attention_weights_dropout_rate("lsh"),
    )
    if config.position_embedding == "axial":
        shape, dims = config.resolved_axial_shape, config.resolved_axial_dims
        resolved = dataclasses.replace(resolved, axial_shape=shape, axial_dims=dims)
    fields = through_json(fields_from_config(config))
    assert config_from_fields(fields, config.dtype) == resolved
    assert through_json(fields_from_config(resolved)) == fields


@pytest.mark.parametrize(("causal", "name"), [(True, "ReformerModelWithLMHead"), (False, "ReformerForMaskedLM")])
def test_the_architecture_follows_causality(causal, name):
    assert fields_from_config(dataclasses.replace(EXPRESSIBLE, causal=causal))["architectures"] == [name]


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
        fields_from_config(dataclasses.replace(EXPRESSIBLE, **changes))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "bert"}, "model_type='bert' is not 'reformer'"),
        ({"model_type": None}, "model_type=None is not 'reformer'"),
        ({"architectures": ["ReformerForQuestionAnswering"]}, "not a language model"),
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
