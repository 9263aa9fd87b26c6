"""The `config.json` of a Hugging Face Reformer, to and from `ReformerConfig`."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reformer.config import ReformerConfig
from reformer.layers.kinds import KINDS

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
CAUSAL_MODEL, BIDIRECTIONAL_MODEL = "ReformerModelWithLMHead", "ReformerForMaskedLM"
CLASSIFIER, QUESTION_ANSWERER = "ReformerForSequenceClassification", "ReformerForQuestionAnswering"
BARE_MODEL = "ReformerModel"
ARCHITECTURES = (CAUSAL_MODEL, BIDIRECTIONAL_MODEL, CLASSIFIER, QUESTION_ANSWERER, BARE_MODEL)

# Our field: their field and the default of their code, which differs from their documentation in places.
_FIELDS = {
    "vocab_size": ("vocab_size", 320),
    "embed_dim": ("hidden_size", 256),
    "mlp_dim": ("feed_forward_size", 512),
    "num_heads": ("num_attention_heads", 12),
    "head_dim": ("attention_head_size", 64),
    "causal": ("is_decoder", False),
    "num_hashes": ("num_hashes", 1),
    "num_buckets": ("num_buckets", None),
    "lsh_chunk_length": ("lsh_attn_chunk_length", 64),
    "lsh_num_chunks_before": ("lsh_num_chunks_before", 1),
    "lsh_num_chunks_after": ("lsh_num_chunks_after", 0),
    "local_chunk_length": ("local_attn_chunk_length", 64),
    "local_num_chunks_before": ("local_num_chunks_before", 1),
    "local_num_chunks_after": ("local_num_chunks_after", 0),
    "dropout_rate": ("hidden_dropout_prob", 0.05),
    "attention_dropout_rate": ("local_attention_probs_dropout_prob", 0.05),
    "lsh_attention_dropout_rate": ("lsh_attention_probs_dropout_prob", 0.0),
    "layer_norm_epsilon": ("layer_norm_eps", 1e-12),
}
_ATTENTION_LAYERS = ("local", "lsh", "local", "lsh", "local", "lsh")
_MAX_LENGTH = 4096
_AXIAL_SHAPE, _AXIAL_DIMS = (64, 64), (64, 192)

# Their name: ours. Several of theirs are the same function; the first of each is the one written.
_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Says of what file an error is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_fields(directory: Path) -> dict[str, Any]:
    """Reads the `config.json` of a directory, without fields that are null: these mean what absent ones do.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no JSON object or not that of a Reformer.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. A Hugging Face model is a directory with config.json.")
    try:
        fields = json.loads(path.read_text())
        if not isinstance(fields, dict):
            raise ValueError(f"must be a JSON object, not {type(fields).__name__}.")
        _check_is_reformer(fields)
    except ValueError as error:  # also what json raises
        raise ValueError(f"{path}: {error}") from error
    return _without_nulls(fields)


def declared_architecture(fields: Mapping[str, Any]) -> str | None:
    """Which of `ARCHITECTURES` a `config.json` names; None = it names nothing.

    Raises:
        ValueError: if it names only others, or its `is_decoder` is not that of the architecture.
    """
    names = fields.get("architectures") or []
    known = [name for name in ARCHITECTURES if isinstance(names, list) and name in names]
    if names and not known:
        raise ValueError(
            f"architectures={names!r} is no head that can be loaded. It must be a list of one of "
            f"{', '.join(ARCHITECTURES)}."
        )
    architecture = known[0] if known else None
    wanted = {CAUSAL_MODEL: True, BIDIRECTIONAL_MODEL: False}.get(architecture)
    is_decoder = fields.get("is_decoder", False)
    if wanted not in (None, is_decoder):
        raise ValueError(f"is_decoder={is_decoder!r}, but {architecture} needs {wanted}. Change one of them.")
    return architecture


def check_classifier(fields: Mapping[str, Any]) -> None:
    """Raises a ValueError if a classifier has an option that ours lacks."""
    of_head = fields.get("classifier_dropout")
    of_rest = fields.get("hidden_dropout_prob", _FIELDS["dropout_rate"][1])
    if of_head not in (None, of_rest):
        raise ValueError(
            f"classifier_dropout={of_head!r} differs from hidden_dropout_prob={of_rest!r}, and our classifier has one "
            "rate for both. It matters in training only: set it to null."
        )


def labels_from_fields(fields: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes, in the order of their logits; None = it has none.

    Raises:
        ValueError: if `id2label` does not number them from 0.
    """
    names = fields.get("id2label")
    if names is None:
        return None
    if not isinstance(names, Mapping) or set(names) != {str(i) for i in range(len(names))}:
        raise ValueError(f"id2label={names!r} must be an object that names the classes '0', '1' and so on.")
    return tuple(str(names[str(i)]) for i in range(len(names)))


def config_from_fields(fields: Mapping[str, Any], dtype: str) -> ReformerConfig:
    """Translates the fields of a `config.json`.

    Fields that are absent or null take the defaults of transformers 4.57.1: theirs writes null where
    nothing reads the field, such as the chunk length of LSH layers that do not exist. Ignored are those
    that only concern the head, initialisation, generation, tokens and seeds.

    Args:
        fields: The parsed `config.json`.
        dtype: Compute and parameter type of the result.

    Returns:
        The configuration, with `semantics='huggingface'` and the shortest `attention_pattern` that
        repeats to their list of layers.

    Raises:
        ValueError: if it is not a Reformer's or has a value that we cannot represent.
    """
    fields = _without_nulls(fields)
    _check_is_reformer(fields)
    layers = fields.get("attn_layers", _ATTENTION_LAYERS)
    if not isinstance(layers, (list, tuple)) or not layers or any(kind not in ("local", "lsh") for kind in layers):
        raise ValueError(f"attn_layers={layers!r} must be a list of 'local' and 'lsh'.")
    values = {ours: fields.get(theirs, default) for ours, (theirs, default) in _FIELDS.items()}
    if isinstance(values["num_buckets"], list):
        values["num_buckets"] = tuple(values["num_buckets"])
    config = ReformerConfig(
        **values,
        **_positions_from_fields(fields),
        num_layers=len(layers),
        attention_pattern=_shortest_period(tuple(layers)),
        activation=_activation_from_fields(fields),
        mlp_chunk_length=fields.get("chunk_size_feed_forward") or None,
        loss_chunk_length=fields.get("chunk_size_lm_head") or None,
        semantics="huggingface",
        dtype=dtype,
        param_dtype=dtype,
    )
    _check_automatic_buckets(fields, config)
    return config


def fields_from_config(config: ReformerConfig, architecture: str) -> dict[str, Any]:
    """Translates `config` into the fields of a `config.json`; `config_from_fields` inverts it but for chunk lengths.

    Args:
        config: The model's.
        architecture: One of `ARCHITECTURES`.

    Raises:
        ValueError: if Hugging Face's Reformer has no counterpart for an option.
    """
    _check_is_expressible(config)
    fields = {theirs: getattr(config, ours) for ours, (theirs, _) in _FIELDS.items()}
    layers = config.attention_pattern * config.num_blocks
    fields |= {
        "model_type": "reformer",
        "architectures": [architecture],
        "attn_layers": list(layers),
        "num_hidden_layers": len(layers),
        "hidden_act": next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.activation),
        "max_position_embeddings": config.max_length,
        "local_attention_probs_dropout_prob": config.attention_weights_dropout_rate,
        "lsh_attention_probs_dropout_prob": KINDS["lsh"].dropout_rate(config),
        "chunk_size_feed_forward": 0,  # theirs takes only multiples of it, so no prompts
        "chunk_size_lm_head": 0,
        "axial_pos_embds": config.position_embedding == "axial",
        "tie_word_embeddings": False,
        "eos_token_id": None,
    }
    if config.position_embedding == "axial":
        fields["axial_pos_shape"] = config.resolved_axial_shape
        fields["axial_pos_embds_dim"] = config.resolved_axial_dims
    return fields


def language_model(config: ReformerConfig) -> str:
    """The architecture of a language model."""
    return CAUSAL_MODEL if config.causal else BIDIRECTIONAL_MODEL


def _without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _check_is_reformer(fields: Mapping[str, Any]) -> None:
    if fields.get("model_type") != "reformer":
        raise ValueError(f"model_type={fields.get('model_type')!r} is not 'reformer'. Only Reformers can be loaded.")


def _shortest_period(layers: tuple[str, ...]) -> tuple[str, ...]:
    lengths = (length for length in range(1, len(layers) + 1) if len(layers) % length == 0)
    return next(layers[:length] for length in lengths if layers[:length] * (len(layers) // length) == layers)


def _activation_from_fields(fields: Mapping[str, Any]) -> str:
    name = fields.get("hidden_act", "relu")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ValueError(f"hidden_act={name!r} is not supported. It must be one of {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


def _positions_from_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    max_length = fields.get("max_position_embeddings", _MAX_LENGTH)
    if not fields.get("axial_pos_embds", True):
        return {"max_length": max_length, "position_embedding": "learned"}
    shape = fields.get("axial_pos_shape", _AXIAL_SHAPE)
    dims = fields.get("axial_pos_embds_dim", _AXIAL_DIMS)
    for name, value in {"axial_pos_shape": shape, "axial_pos_embds_dim": dims}.items():
        if not isinstance(value, (list, tuple)) or not all(isinstance(size, int) for size in value):
            raise ValueError(f"{name}={value!r} must be a list of integers.")
    return {
        "max_length": min(max_length, math.prod(shape)) if isinstance(max_length, int) else max_length,
        "position_embedding": "axial",
        "axial_shape": tuple(shape),
        "axial_dims": tuple(dims),
    }


def _check_automatic_buckets(fields: Mapping[str, Any], config: ReformerConfig) -> None:
    # From this many buckets on they factorise; it grows with max_position_embeddings, which need not be our max_length.
    positions = fields.get("max_position_embeddings", _MAX_LENGTH)
    theirs, ours = (
        max(math.isqrt(length // config.lsh_chunk_length), config.lsh_chunk_length)
        for length in (positions, config.max_length)
    )
    if "lsh" in config.attention_pattern and config.num_buckets is None and theirs != ours:
        raise ValueError(
            f"max_position_embeddings={positions} exceeds the {config.max_length} positions of axial_pos_shape and "
            f"steers num_buckets=None. Set num_buckets, or set max_position_embeddings={config.max_length}."
        )


def _check_is_expressible(config: ReformerConfig) -> None:
    if config.semantics != "huggingface":
        raise ValueError(
            f"semantics={config.semantics!r} cannot be saved: Hugging Face's windows wrap around and its masks differ. "
            "Only semantics='huggingface' can."
        )
    if "full" in config.attention_pattern:
        raise ValueError(f"attention_pattern={config.attention_pattern}: Hugging Face has no 'full' layers.")
    if config.share_query_key:
        raise ValueError("share_query_key=True: Hugging Face's local attention has separate queries and keys.")
    if config.position_embedding == "sinusoidal":
        raise ValueError("position_embedding='sinusoidal': Hugging Face has only 'axial' and 'learned' positions.")
