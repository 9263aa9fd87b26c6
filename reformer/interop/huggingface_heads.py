"""Which of our models is which head of Hugging Face's Reformers, and the names of its classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reformer.config import ReformerConfig
from reformer.interop.huggingface_config import (
    BARE_MODEL,
    BIDIRECTIONAL_MODEL,
    CAUSAL_MODEL,
    CLASSIFIER,
    CONFIG_FILE,
    QUESTION_ANSWERER,
    check_classifier,
    labels_from_fields,
    language_model,
)
from reformer.models.heads import QuestionAnswerer, ReformerEncoder, SequenceClassifier
from reformer.models.language import ReformerLM
from reformer.models.trunk import Trunk

_ARCHITECTURES = {SequenceClassifier: CLASSIFIER, QuestionAnswerer: QUESTION_ANSWERER, ReformerEncoder: BARE_MODEL}
_LABEL_WEIGHTS = "classifier.out_proj.weight"  # its rows are the classes
# What the names of the tensors begin with that only this architecture has.
_GROUPS = {
    CAUSAL_MODEL: "lm_head",
    BIDIRECTIONAL_MODEL: "lm_head",
    CLASSIFIER: "classifier",
    QUESTION_ANSWERER: "qa_outputs",
    BARE_MODEL: "encoder",  # the others have it below "reformer"
}


def architecture_of(model: Trunk) -> str:
    """The architecture that is the same function as a model.

    Raises:
        ValueError: if there is none.
    """
    if type(model) is ReformerLM:
        return language_model(model.config)
    if type(model) not in _ARCHITECTURES:
        raise ValueError(
            f"{type(model).__name__} has no counterpart in Hugging Face's Reformers. Save what is below its head: "
            "ReformerEncoder(config) with the parameters embeddings, stack and norm."
        )
    if isinstance(model, SequenceClassifier) and model.pooling != "first":
        raise ValueError(f"pooling={model.pooling!r}: Hugging Face's classifier takes the first token.")
    return _ARCHITECTURES[type(model)]


def make_model(config: ReformerConfig, architecture: str, num_labels: int) -> Trunk:
    """Our model of an architecture; `num_labels` are the classes of a classifier."""
    if architecture == CLASSIFIER:
        return SequenceClassifier(config, num_labels=num_labels, pooling="first")
    return {QUESTION_ANSWERER: QuestionAnswerer, BARE_MODEL: ReformerEncoder}.get(architecture, ReformerLM)(config)


def find_architecture(path: Path, stored: Mapping[str, Any], declared: str | None, config: ReformerConfig) -> str:
    """The architecture that `config.json` declares or, if it declares none, that has these tensors.

    Raises:
        ValueError: if the tensors are those of another one.
    """
    groups = {name.split(".")[0] for name in stored}
    candidates = (declared,) if declared else (language_model(config), CLASSIFIER, QUESTION_ANSWERER, BARE_MODEL)
    for architecture in candidates:
        if _GROUPS[architecture] in groups:
            return architecture
    wanted = ", ".join(f"{_GROUPS[name]} ({name})" for name in candidates)
    raise ValueError(
        f"{path} has tensors under {', '.join(sorted(groups))}, and none under {wanted}. "
        f"Use the {CONFIG_FILE} that it came with, or correct its architectures."
    )


def count_labels(fields: Mapping[str, Any], stored: Mapping[str, np.ndarray], architecture: str) -> int:
    """How many outputs a classifier or question answerer has, from its `config.json` and tensors.

    Raises:
        ValueError: if a classifier has another number of names than of classes, or an option that ours lacks.
    """
    if architecture != CLASSIFIER:
        return 2
    check_classifier(fields)
    weights, labels = stored.get(_LABEL_WEIGHTS), labels_from_fields(fields)
    if np.ndim(weights) != 2:  # which is found wrong by its shape
        return 2
    if labels is not None and len(labels) != len(weights):
        raise ValueError(
            f"id2label names {len(labels)} classes, but {_LABEL_WEIGHTS} has {len(weights)} rows. Make them equal."
        )
    return len(weights)


def label_fields(model: Trunk, labels: Sequence[str] | None) -> dict[str, Any]:
    """What `config.json` says of the classes of a model.

    Raises:
        ValueError: if it has no classes, or others than named.
    """
    if not isinstance(model, SequenceClassifier):
        if labels is not None:
            raise ValueError(f"labels={labels!r}: a {type(model).__name__} has no classes. Leave them out.")
        return {}
    names = [f"LABEL_{i}" for i in range(model.num_labels)] if labels is None else list(labels)
    if len(set(names)) != model.num_labels or len(names) != model.num_labels:
        raise ValueError(f"labels={names!r} must be num_labels={model.num_labels} different names.")
    numbers = {name: i for i, name in enumerate(names)}
    return {"id2label": {str(i): name for name, i in numbers.items()}, "label2id": numbers}
