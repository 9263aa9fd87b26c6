"""Are the gradients of reversible stacks right? Ours, Hugging Face's and lucidrains' against ordinary autodiff.

Both sides compute the same function: the same weights, tokens, hashes and dropout masks. The models are small: 6 layers
of width 64, 2 heads of 32, 512 tokens, chunks of 16, 1 hash round.

- ours: `reversible=False`, with the same PRNG keys.
- Hugging Face: their layers in an ordinary loop. `torch.seed`, which they call for a seed for every sub-layer, counts
  from 0 on both sides, so that rotations and dropout come from the same states of the generator.
- lucidrains: their own irreversible blocks (`reverse_thres`), after the same `torch.manual_seed`; with the heads of
  the batch at once and in 4 parts (`attn_chunks`, as in the README's example, which has 8). All heads are LSH.

Command (see requirements-peers.txt): python benchmarks/peer_gradients.py
"""

import argparse
import functools
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record

VOCAB_SIZE, LENGTH, BATCH_SIZE, AXIAL_DIMS = 320, 512, 2, (16, 48)
LossAndGradient = tuple[float, np.ndarray]


def ours(dropout_rate: float, dtype: str, seed: int) -> tuple[LossAndGradient, LossAndGradient]:
    """Returns loss and gradient of the reversible stack, and of ordinary autodiff."""
    import jax

    results = []
    for reversible in (True, False):
        step, params, tokens = our_step(reversible, dropout_rate, dtype)
        loss, gradient = step(params, tokens, jax.random.key(seed))
        results.append((float(loss), flatten(jax.tree.leaves(gradient))))
    return tuple(results)


@functools.cache
def our_step(reversible: bool, dropout_rate: float, dtype: str) -> tuple:
    """Returns our step, compiled once for all seeds, and its parameters and tokens."""
    import jax

    from benchmarks import train_step

    jax.config.update("jax_enable_x64", dtype == "float64")
    fields = {"embed_dim": 64, "mlp_dim": 128, "head_dim": 32, "lsh_chunk_length": 16, "local_chunk_length": 16}
    fields |= {"axial_dims": AXIAL_DIMS, "dropout_rate": dropout_rate, "dtype": dtype, "param_dtype": dtype}
    config = train_step.make_config(LENGTH, reversible=reversible, **fields)
    step, (params, tokens, _) = train_step.make_step(config, BATCH_SIZE)
    return jax.jit(step), params, tokens


def huggingface(dropout_rate: float, dtype: str, seed: int) -> tuple[LossAndGradient, LossAndGradient]:
    """Returns loss and gradient of their stack, and of the same layers under autograd."""
    import torch
    import transformers
    from transformers.models.reformer import modeling_reformer

    config = transformers.ReformerConfig(
        attn_layers=["local", "lsh"] * 3,
        hidden_size=64,
        feed_forward_size=128,
        num_attention_heads=2,
        attention_head_size=32,
        vocab_size=VOCAB_SIZE,
        num_hashes=1,
        num_buckets=2 * LENGTH // 16,
        local_attn_chunk_length=16,
        lsh_attn_chunk_length=16,
        axial_pos_shape=record.axial_shape(LENGTH),
        axial_pos_embds_dim=AXIAL_DIMS,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=dropout_rate,
        local_attention_probs_dropout_prob=dropout_rate,
        lsh_attention_probs_dropout_prob=dropout_rate,
        is_decoder=True,
        use_cache=False,
    )
    torch.manual_seed(seed)
    model = transformers.ReformerModelWithLMHead(config).to(getattr(torch, dtype)).train()
    results = []
    for stack in (modeling_reformer._ReversibleFunction, SimpleNamespace(apply=loop_over_layers)):
        counter = itertools.count(1000 * seed)
        with (
            mock.patch.object(modeling_reformer, "_ReversibleFunction", stack),
            mock.patch.object(torch, "seed", lambda counter=counter: next(counter)),
        ):
            results.append(torch_gradient(model, lambda tokens: model(tokens).logits, seed))
    return tuple(results)


def loop_over_layers(hidden_states, layers, attention_mask, head_mask, num_hashes, *others):
    """Returns what Hugging Face's `_ReversibleFunction.apply` does, for autograd to differentiate."""
    import torch

    del others
    hidden_states, attention_output = torch.chunk(hidden_states, 2, dim=-1)
    for layer, layer_head_mask in zip(layers, head_mask, strict=True):
        options = {"attention_mask": attention_mask, "head_mask": layer_head_mask, "num_hashes": num_hashes}
        layer._init_attention_seed()
        attention_output = attention_output + layer.attention(hidden_states=hidden_states, **options).hidden_states
        layer._init_feed_forward_seed()
        hidden_states = hidden_states + layer.feed_forward(attention_output)
    return torch.cat([attention_output, hidden_states], dim=-1)


def lucidrains(dropout_rate: float, dtype: str, seed: int, attn_chunks: int):
    """Returns loss and gradient of their reversible blocks, and of their irreversible ones."""
    import torch
    from reformer_pytorch import ReformerLM

    torch.manual_seed(seed)
    model = ReformerLM(
        num_tokens=VOCAB_SIZE,
        dim=64,
        depth=6,
        max_seq_len=LENGTH,
        heads=2,
        dim_head=32,
        bucket_size=16,
        n_hashes=1,
        ff_mult=2,
        ff_chunks=1,
        attn_chunks=attn_chunks,
        ff_dropout=dropout_rate,
        lsh_dropout=dropout_rate,
        causal=True,
        axial_position_emb=True,
        axial_position_shape=record.axial_shape(LENGTH),
    )
    model = model.to(getattr(torch, dtype)).train()
    results = []
    for longest_irreversible in (0, LENGTH):
        model.reformer.layers.reverse_thres = longest_irreversible
        results.append(torch_gradient(model, model, seed))
    return tuple(results)


def torch_gradient(model, logits: Callable, seed: int) -> LossAndGradient:
    """Returns the mean loss of the next token and its gradient; a parameter that gets none counts as zeros."""
    import torch

    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB_SIZE, (BATCH_SIZE, LENGTH)))
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    loss = torch.nn.functional.cross_entropy(logits(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten())
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return loss.item(), flatten([gradient.numpy() for gradient in gradients])


def flatten(arrays: list) -> np.ndarray:
    """Returns all elements as one vector."""
    return np.concatenate([np.ravel(np.asarray(array, np.float64)) for array in arrays])


def compare(found: LossAndGradient, reference: LossAndGradient) -> dict[str, float]:
    """Returns how far loss and gradient are from the reference."""
    (loss, gradient), (loss_0, gradient_0) = found, reference
    norm, norm_0 = np.linalg.norm(gradient), np.linalg.norm(gradient_0)
    return {
        "loss_difference": abs(loss - loss_0),
        "relative_error": float(np.linalg.norm(gradient - gradient_0) / norm_0),
        "cosine": float(gradient @ gradient_0 / (norm * norm_0)),
    }


LIBRARIES = {
    "ours": (ours, {}),
    "Hugging Face": (huggingface, {}),
    "lucidrains": (lucidrains, {"attn_chunks": 1}),
    "lucidrains, attn_chunks=4": (lucidrains, {"attn_chunks": 4}),
}


def measure(library: str, dropout_rate: float, dtype: str, num_seeds: int) -> dict:
    """Compares under several seeds of hashes and dropout; returns the median error, and the worst values."""
    function, options = LIBRARIES[library]
    found = [compare(*function(dropout_rate, dtype, seed, **options)) for seed in range(num_seeds)]
    return {
        "library": library,
        "dropout_rate": dropout_rate,
        "dtype": dtype,
        "loss_difference": f"{max(row['loss_difference'] for row in found):.1e}",
        "relative_error": f"{np.median([row['relative_error'] for row in found]):.1e}",
        "worst_relative_error": f"{max(row['relative_error'] for row in found):.1e}",
        "lowest_cosine": round(min(row["cosine"] for row in found), 6),
        "num_seeds": num_seeds,
    }


def main() -> None:
    """Compares every combination in a process of its own, prints a table and appends JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dropout_rate", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--dtype", nargs="+", default=["float32", "float64"], choices=["float32", "float64"])
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--libraries", nargs="+", default=list(LIBRARIES), choices=list(LIBRARIES))
    arguments = parser.parse_args()
    origin = record.provenance() | record.versions("torch", "transformers", "reformer-pytorch")
    rows = []
    for combination in itertools.product(arguments.libraries, arguments.dropout_rate, arguments.dtype):
        rows.append(record.in_fresh_process(measure, *combination, arguments.num_seeds))
        record.append("peer_gradients", rows[-1] | origin)
    print(record.markdown(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
