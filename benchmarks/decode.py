"""Cached decoding: its time per token at growing contexts, beside recomputing the whole sequence for every token.

The model is that of `train_step.py`, with local-lsh and with full attention. With `--agreement`: how near the cached
logits are to those of the whole forward pass, on a trained model's held-out data and for random models.

Command: python benchmarks/decode.py
         python benchmarks/decode.py --agreement WORKDIR
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record, train_step
from reformer import ReformerConfig, ReformerLM, decoding
from reformer.commands import evaluate
from reformer.host import paths
from reformer.layers.kinds import fix_num_buckets
from reformer.training import batches, checkpoint

PATTERNS = {"local+lsh": ("local", "lsh"), "full": ("full",)}
LONGEST_FULL = 16_384
NUM_REPEATS = 9
PREFIX_EVERY = 64  # recomputing a prefix costs a whole forward pass: only so many positions


def make_model(config: ReformerConfig):
    """Returns random variables."""
    return jax.jit(ReformerLM(config).init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))


def measure_time(pattern: str, context: int, num_tokens: int) -> dict:
    """Returns seconds of the prefill, per decoded token, and of a forward pass over all tokens for the last of them."""
    config = train_step.make_config(context + (1 + NUM_REPEATS) * num_tokens)
    config = dataclasses.replace(config, attention_pattern=PATTERNS[pattern])
    variables, rng = make_model(config), jax.random.key(1)
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, context, np.int32)

    began = time.perf_counter()
    total = (1 + NUM_REPEATS) * num_tokens
    chunks = decoding.generate(config, variables, [prompt], total, rng=rng, tokens_at_once=num_tokens)
    next(chunks)  # prefill, and both programs are compiled
    first = time.perf_counter() - began
    decode = float(np.median([record.seconds(lambda: next(chunks)) for _ in range(NUM_REPEATS)]))

    def recompute(variables, tokens):
        streams, _ = ReformerLM(config).apply(variables, tokens, lambda *_: (), method="observe", rngs={"hash": rng})
        last = jax.tree.map(lambda x: x[:, -1:], streams)
        return ReformerLM(config).apply(variables, last, method="logits")

    compiled = jax.jit(recompute).lower(variables, prompt[None]).compile()
    recomputed = float(np.median([record.seconds(lambda: compiled(variables, prompt[None])) for _ in range(3)]))
    return {
        "attention": pattern,
        "context": context,
        "first_tokens_seconds": round(first, 2),
        "milliseconds_per_token": round(1e3 * decode / num_tokens, 3),
        "tokens_per_second": round(num_tokens / decode, 1),
        "recompute_seconds_per_token": round(recomputed, 3),
    }


def report_time(patterns: list[str], contexts: list[int], num_tokens: int) -> None:
    """Measures, appends and prints times."""
    origin, rows = record.provenance(), []
    for pattern in patterns:
        for context in contexts:
            if pattern == "full" and context > LONGEST_FULL:
                continue
            row = measure_time(pattern, context, num_tokens)
            record.append("decode", row | origin)
            rows.append([*row.values(), f"{row['recompute_seconds_per_token'] * row['tokens_per_second']:,.0f}x"])
            print(rows[-1], file=sys.stderr, flush=True)
    header = ["attention", "context", "prefill, compile and first tokens, s", "ms/token", "tokens/s"]
    print(record.markdown([*header, "recompute, s/token", "faster"], rows))
    print(
        f"\nFull attention was not tried beyond {LONGEST_FULL:,} tokens, where a forward pass takes minutes on a CPU."
    )


def cached_log_probabilities(config: ReformerConfig, variables, tokens, rotations) -> np.ndarray:
    """Returns those of cached decoding along given tokens [rows, length], from the first on."""
    state = decoding.prefill(
        config, variables, tokens[:, :1], np.ones(len(tokens), np.int32), rotations, capacity=tokens.shape[1]
    )

    @jax.jit
    def run(variables, state):
        def step(state, token):
            state = decoding.advance(config, variables, rotations, state, token)
            return state, state.logits

        return jax.lax.scan(step, state, jnp.asarray(tokens.T[1:]))[1]

    logits = jnp.concatenate([state.logits[:, None], jnp.swapaxes(run(variables, state), 0, 1)], axis=1)
    return np.asarray(jax.nn.log_softmax(logits))


def measure_agreement(config: ReformerConfig, variables, tokens) -> tuple[dict, np.ndarray]:
    """Compares cached logits along `tokens` with recomputed ones, and those with themselves under other rotations."""
    fixed = fix_num_buckets(config, config.max_length)
    rotations, others = (decoding.draw_rotations(config, jax.random.key(seed)) for seed in (1, 2))

    @jax.jit
    def recompute(rotations, last):
        mask = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None] <= last, tokens.shape)
        logits = ReformerLM(fixed).apply(variables, tokens, mask=mask, rotations=list(rotations))
        return jax.nn.log_softmax(logits)

    at = np.arange(PREFIX_EVERY // 2 - 1, tokens.shape[1], PREFIX_EVERY)
    whole, other = (np.asarray(recompute(of_layers, tokens.shape[1] - 1)) for of_layers in (rotations, others))
    prefixes = np.stack([np.asarray(recompute(rotations, p)[:, p]) for p in at], axis=1)
    cached = cached_log_probabilities(config, variables, tokens, rotations)
    pairs = {"whole": (whole, cached), "prefixes": (prefixes, cached[:, at]), "other_rotations": (whole, other)}
    result = {"lsh_layers": config.num_lsh_layers, "length": tokens.shape[1], "rows": len(tokens)}
    for name, (p, q) in pairs.items():
        result[f"equal_{name}"] = round(float((p.argmax(-1) == q.argmax(-1)).mean()), 4)
        result[f"kl_{name}"] = round(float((np.exp(p) * (p - q)).sum(-1).mean()), 5)
    return result, np.stack([whole, cached])


def bits(log_probabilities, targets) -> list[float]:
    """Returns bits per token of the whole forward pass and of cached decoding."""
    picked = np.take_along_axis(log_probabilities, targets[None, :, :, None], axis=-1)
    return [round(float(x), 4) for x in -picked.mean(axis=(1, 2, 3)) / np.log(2)]


def report_agreement(workdir: Path | None) -> None:
    """Measures, appends and prints agreement: of the checkpoint in `workdir`, and of random models."""
    origin, rows = record.provenance(), []
    if workdir is not None:
        wanted = evaluate.parse([f"--workdir={workdir}"])
        _, variables = checkpoint.load(workdir, wanted.step)
        batch = batches.evaluation_batches(wanted.config, wanted.data, wanted.split, wanted.mesh)[0]
        row, of_both = measure_agreement(wanted.model_config, variables, batch["tokens"])
        whole, cached = bits(of_both, batch["targets"])
        model = f"{wanted.config.data.name}, step {wanted.step}"
        rows.append({"model": model, **row, "bits_whole": whole, "bits_cached": cached})
    for num_layers in (1, 2, 6):
        config = ReformerConfig(max_length=1024, num_layers=num_layers, attention_pattern=("lsh",))
        tokens = np.random.default_rng(0).integers(0, 256, (4, config.max_length), np.int32)
        row, _ = measure_agreement(config, make_model(config), tokens)
        rows.append({"model": "random", **row})
    for row in rows:
        record.append("decode_agreement", row | origin)
    names = [*rows[0]]
    print(record.markdown(names, [[row.get(name, "") for name in names] for row in rows]))


def main() -> None:
    """Measures times or agreement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096, 16_384, 65_536])
    parser.add_argument("--attention", nargs="+", choices=PATTERNS, default=[*PATTERNS])
    parser.add_argument("--num_tokens", type=int, default=64)
    parser.add_argument("--agreement", type=paths.argument, nargs="?", const=None, default=False, metavar="WORKDIR")
    arguments = parser.parse_args()
    if arguments.agreement is False:
        report_time(arguments.attention, arguments.contexts, arguments.num_tokens)
    else:
        report_agreement(arguments.agreement)


if __name__ == "__main__":
    main()
