"""Writes the fixtures of this directory with `transformers`; the tests themselves need neither it nor torch.

    pip install transformers==4.57.1 torch==2.13.0 sentencepiece==0.2.0
    python -m tests.interop.make_fixtures [DIRECTORY]

Each case is a random Hugging Face Reformer in float64: `config.json`, `model.safetensors` and `expected.npz` with
tokens, mask, the rotations that each LSH layer drew (in depth order), logits, and, where Hugging Face can train at that
length, the gradient of mean(logits^2) for every parameter by its state-dict name. Logits of question answering are
[batch, length, start or end], those of a bare model its hidden states. Beside the cases, in `../tokenizer`, lie a tiny
`spiece.model` and what their tokenizer makes of texts.
"""

import json
import pathlib
import sys
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    ReformerConfig,
    ReformerForMaskedLM,
    ReformerForQuestionAnswering,
    ReformerForSequenceClassification,
    ReformerModel,
    ReformerModelWithLMHead,
    ReformerTokenizer,
)

from tests import pieces

LENGTH = 32
DEFAULTS = {
    "vocab_size": 16,
    "hidden_size": 8,
    "feed_forward_size": 10,
    "num_attention_heads": 2,
    "attention_head_size": 3,
    "attn_layers": ["local", "lsh"],
    "is_decoder": True,
    "num_buckets": 4,
    "num_hashes": 2,
    "lsh_attn_chunk_length": 4,
    "local_attn_chunk_length": 4,
    "max_position_embeddings": LENGTH,
    "axial_pos_shape": [4, 8],
    "axial_pos_embds_dim": [2, 6],
    "hidden_dropout_prob": 0.0,
    "local_attention_probs_dropout_prob": 0.0,
    "lsh_attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
}
BOTH_SIDES = {f"{kind}_num_chunks_after": 1 for kind in ("lsh", "local")} | {"is_decoder": False}

# Other heads than the language models'.
HEADS = {
    "classifier": ReformerForSequenceClassification,
    "question_answerer": ReformerForQuestionAnswering,
    "bare": ReformerModel,
    "bare_causal": ReformerModel,
}
LABELS = {"id2label": {0: "bad", 1: "good", 2: "ugly"}, "label2id": {"bad": 0, "good": 1, "ugly": 2}}

TEXTS = ["Beautiful is better than ugly.", " two  spaces ", "line\nline", "unknown: é 🙂", "", "x" * 40]

# Name: (fields, length, real positions of each row). Lengths other than LENGTH cannot train there.
CASES = {
    "causal_repeated": ({"attn_layers": ["local", "lsh"] * 2}, LENGTH, None),
    "causal_factorised": (
        {
            "attn_layers": ["lsh", "local", "local"],
            "num_buckets": [4, 2],
            "num_hashes": 3,
            "hidden_act": "gelu_new",
            "lsh_num_chunks_before": 2,
            "local_attn_chunk_length": 8,
        },
        LENGTH,
        None,
    ),
    "bidirectional_masked": (BOTH_SIDES | {"hidden_act": "gelu"}, LENGTH, [slice(0, 21), slice(3, 32)]),
    "learned_automatic": (
        BOTH_SIDES | {"axial_pos_embds": False, "num_buckets": None, "hidden_act": "silu", "lsh_attn_chunk_length": 2},
        LENGTH,
        None,
    ),
    "causal_padded_inside": ({"local_attn_chunk_length": 8}, 27, None),
    "classifier": (BOTH_SIDES | LABELS, LENGTH, [slice(0, 17), slice(0, 32)]),
    "question_answerer": (BOTH_SIDES | {"hidden_act": "gelu"}, LENGTH, [slice(0, 25), slice(0, 32)]),
    "bare": (BOTH_SIDES, 19, [slice(0, 11), slice(0, 19)]),
    "bare_causal": ({"num_hashes": 1, "axial_pos_embds": False}, LENGTH, None),
    "shorter_than_a_chunk": (BOTH_SIDES | {"lsh_attn_chunk_length": 8, "local_attn_chunk_length": 16}, 7, None),
}


def main(directory: pathlib.Path) -> None:
    """Writes every case under `directory`."""
    for name, (fields, length, real) in CASES.items():
        write_case(directory / name, DEFAULTS | fields, length, real)
    write_tokenizer(directory.parent / "tokenizer")


def write_case(directory, fields, length, real) -> None:
    """Runs one random model and writes its files."""
    torch.manual_seed(sum(map(ord, directory.name)))
    language_model = ReformerModelWithLMHead if fields["is_decoder"] else ReformerForMaskedLM
    model = random_model(HEADS.get(directory.name, language_model), fields)
    tokens = torch.randint(1, fields["vocab_size"], (2, length))
    mask = torch.ones_like(tokens)
    for row, positions in enumerate(real or []):
        mask[row] = 0
        mask[row, positions] = 1
    directory.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(directory)  # before num_buckets=None is overwritten by the first forward pass
    rotations, logits = run(model.train(length == LENGTH), tokens, mask)
    arrays = {"tokens": tokens, "mask": mask.bool(), "logits": logits.detach()}
    arrays |= {f"rotations_{i}": rotation for i, rotation in enumerate(rotations)}
    if model.training:
        (logits**2).mean().backward()
        arrays |= {f"gradient/{name}": parameter.grad for name, parameter in model.named_parameters()}
    np.savez_compressed(directory / "expected.npz", **{name: array.numpy() for name, array in arrays.items()})
    weights = {name: array.detach().clone() for name, array in model.named_parameters()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def write_tokenizer(directory) -> None:
    """Trains pieces and writes the ids of texts."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = ReformerTokenizer(str(pieces.train(directory / "spiece.model")))
    ids = {text: tokenizer(text)["input_ids"] for text in TEXTS}
    (directory / "expected.json").write_text(json.dumps(ids, indent=2) + "\n")


def random_model(model_class, fields):
    """A model whose every parameter is random, norms and biases too."""
    model = model_class(ReformerConfig(**fields, architectures=[model_class.__name__])).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def run(model, tokens, mask):
    """Logits, and the rotations in the order in which the layers drew them."""
    rotations, draw = [], torch.randn

    def draw_and_record(*args, **kwargs):
        rotations.append(draw(*args, **kwargs))
        return rotations[-1]

    with mock.patch.object(torch, "randn", draw_and_record):
        output = model(tokens, attention_mask=mask)
    if "start_logits" in output:
        return rotations, torch.stack([output.start_logits, output.end_logits], dim=-1)
    return rotations, output.logits if "logits" in output else output.last_hidden_state


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "fixtures"))
