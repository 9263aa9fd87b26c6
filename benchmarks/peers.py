"""One training step (loss and gradient) of ours beside Hugging Face's and lucidrains' Reformers, on the CPU.

Every library has a process of its own with the same number of threads; they take turns, and the ratios are of
neighbouring steps. The model is that of `train_step.py`; gradients are dropped before the clock starts. lucidrains'
layers have no kinds: one of its two heads is local, the other LSH, in all layers.

Command (see requirements-peers.txt): python benchmarks/peers.py --length 4096 16384 --dropout_rate 0 0.05
"""

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record

NUM_THREADS = 2


def ours(length: int, reversible: bool = True, **changes) -> Callable:
    """Returns a compiled step of ours."""
    import jax

    from benchmarks import train_step

    step, (params, tokens, rng) = train_step.make_step(train_step.make_config(length, reversible=reversible, **changes))
    compiled = train_step.compile_step(step, (params, tokens, rng))
    return lambda i: jax.block_until_ready(compiled(params, tokens, jax.random.fold_in(rng, i)))


def huggingface(length: int, dropout_rate: float, num_hashes: int, num_heads: int) -> Callable:
    """Returns a step of Hugging Face's model; its feed-forward in chunks where that is faster for them."""
    import torch
    import transformers

    torch.set_num_threads(NUM_THREADS)
    config = transformers.ReformerConfig(
        attn_layers=["local", "lsh"] * 3,
        hidden_size=256,
        feed_forward_size=512,
        num_attention_heads=num_heads,
        attention_head_size=64,
        vocab_size=320,
        num_hashes=num_hashes,
        local_attn_chunk_length=64,
        lsh_attn_chunk_length=64,
        axial_pos_shape=record.axial_shape(length),
        axial_pos_embds_dim=(64, 192),
        max_position_embeddings=length,
        hidden_dropout_prob=dropout_rate,
        local_attention_probs_dropout_prob=dropout_rate,
        lsh_attention_probs_dropout_prob=dropout_rate,
        is_decoder=True,
        use_cache=False,
        hidden_act="relu",
    )
    torch.manual_seed(0)
    model = transformers.ReformerModelWithLMHead(config).train()
    tokens = torch.randint(0, 320, (1, length))
    return _torch_step(model, lambda: model(tokens, labels=tokens).loss)


def lucidrains(length: int, dropout_rate: float, num_hashes: int, num_heads: int) -> Callable:
    """Returns a step of lucidrains' model."""
    import torch
    from reformer_pytorch import ReformerLM

    torch.set_num_threads(NUM_THREADS)
    torch.manual_seed(0)
    model = ReformerLM(
        num_tokens=320,
        dim=256,
        depth=6,
        max_seq_len=length,
        heads=num_heads,
        dim_head=64,
        bucket_size=64,
        n_hashes=num_hashes,
        n_local_attn_heads=num_heads // 2,
        ff_mult=2,
        ff_chunks=1,
        ff_activation=torch.nn.ReLU,
        ff_dropout=dropout_rate,
        lsh_dropout=dropout_rate,
        causal=True,
        axial_position_emb=True,
        axial_position_shape=record.axial_shape(length),
    ).train()
    tokens = torch.randint(0, 320, (1, length))
    targets = tokens.roll(-1, 1)[0]
    return _torch_step(model, lambda: torch.nn.functional.cross_entropy(model(tokens)[0], targets))


def _torch_step(model, loss: Callable) -> Callable:
    def step(i: int):
        del i
        loss().backward()

    step.prepare = lambda: model.zero_grad(set_to_none=True)
    return step


LIBRARIES = {
    "ours": ours,
    "ours, not reversible": lambda **options: ours(reversible=False, **options),
    "Hugging Face": huggingface,
    "lucidrains": lucidrains,
}
THEIRS = ("Hugging Face", "lucidrains")


def work(pipe, library: str, options: dict) -> None:
    """Runs a step whenever the number of one is received, and returns its seconds and the peak memory so far."""
    is_theirs = library in THEIRS
    if is_theirs:
        os.environ.update(USE_JAX="0", USE_FLAX="0")  # transformers imports JAX where it is installed
    step = LIBRARIES[library](**options)
    if is_theirs and "jax" in sys.modules:
        raise RuntimeError(f"the process of {library} holds JAX, whose memory would count as theirs")
    pipe.send(None)
    while (i := pipe.recv()) is not None:
        getattr(step, "prepare", lambda: None)()
        began = time.perf_counter()
        step(i)
        pipe.send((time.perf_counter() - began, record.peak_resident_bytes()))


PAIRS_HELP = (
    "after one step to warm up; 0 = that step alone, one process after the other: for lengths that fill the memory"
)


def measure(libraries: list[str], num_pairs: int, options: dict) -> dict[str, list[tuple[float, int]]]:
    """Lets all libraries take turns; returns seconds and peak memory of every step of each."""
    context = get_context("spawn")
    pipes, processes = {}, []
    for library in libraries:
        pipes[library], theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, library, options), daemon=True)
        process.start()
        theirs.close()
        pipes[library].recv()
        processes.append(process)
    results: dict[str, list] = {library: [] for library in libraries}
    for i in range(1 + num_pairs):
        for library, pipe in pipes.items():
            pipe.send(i)
            results[library].append(pipe.recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(None)
        process.join()
    return {library: steps[1:] if num_pairs > 1 else steps[-1:] for library, steps in results.items()}


def summarize(results: dict, baseline: str) -> list[dict]:
    """Returns median seconds, peak memory, and the ratios to the baseline's neighbouring steps for every library."""
    rows = []
    for library, steps in results.items():
        seconds = [s for s, _ in steps]
        ratios = sorted(theirs / mine for (theirs, _), mine in zip(results[baseline], seconds, strict=True))
        rows.append(
            {
                "library": library,
                "step_seconds": round(statistics.median(seconds), 2),
                "speed_over_baseline": round(statistics.median(ratios), 2),
                "ratio_min": round(ratios[0], 2),
                "ratio_max": round(ratios[-1], 2),
                "num_pairs": len(steps),
                "peak_resident_gb": round(max(peak for _, peak in steps) / 1e9, 2),
            }
        )
    return rows


def main() -> None:
    """Measures every combination, prints a table and appends JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, nargs="+", default=[4096, 16_384])
    parser.add_argument("--dropout_rate", type=float, nargs="+", default=[0.0, 0.05])
    parser.add_argument("--num_hashes", type=int, default=1)
    parser.add_argument("--num_heads", type=int, default=2)
    parser.add_argument("--num_pairs", type=int, default=5, help=PAIRS_HELP)
    parser.add_argument("--libraries", nargs="+", default=list(LIBRARIES), choices=list(LIBRARIES))
    parser.add_argument("--baseline", default="Hugging Face", choices=list(LIBRARIES))
    arguments = parser.parse_args()
    if arguments.baseline not in arguments.libraries:
        parser.error(f"--baseline={arguments.baseline!r} must be one of --libraries")
    origin = record.provenance() | {"num_threads": NUM_THREADS} | record.versions("torch", "transformers")
    rows = []
    for length, rate in itertools.product(arguments.length, arguments.dropout_rate):
        options = {"length": length, "dropout_rate": rate}
        options |= {"num_hashes": arguments.num_hashes, "num_heads": arguments.num_heads}
        groups = [arguments.libraries] if arguments.num_pairs else [[library] for library in arguments.libraries]
        results = {}
        for group in groups:
            results |= measure(group, arguments.num_pairs, options)
        for row in summarize(results, arguments.baseline):
            rows.append(options | row)
            record.append("peers", rows[-1] | {"baseline": arguments.baseline} | origin)
    print(record.markdown(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
