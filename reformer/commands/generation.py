"""What a trained model writes: from a workdir and prompts to new tokens, and to text on the terminal."""

import codecs
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from reformer import decoding, sharding
from reformer.commands import command_line
from reformer.config import ReformerConfig
from reformer.data import documents, load, text
from reformer.data.text_tokens import BYTES, TextTokens
from reformer.layers.kinds import fix_num_buckets
from reformer.training import checkpoint, evaluation, settings

Prompt = Int[np.ndarray, " prompt"]


@dataclasses.dataclass(frozen=True)
class Generation:
    """A checkpoint and prompts, with everything checked that a user can get wrong."""

    model_config: ReformerConfig
    workdir: Path
    step: int
    prompts: list[np.ndarray]
    num_tokens: int
    sampling: decoding.Sampling
    seed: int
    mesh: jax.sharding.Mesh
    keep_last: int | None = None
    of_text: TextTokens = BYTES

    def tokens(self) -> Iterator[Int[np.ndarray, "batch tokens"]]:
        """Yields the new tokens of every prompt as they come.

        Raises:
          OSError: If the checkpoint is damaged.
        """
        _, variables = checkpoint.load(self.workdir, self.step, self.mesh)
        rng = jax.random.key(self.seed)
        options: dict[str, Any] = {"sampling": self.sampling, "rng": rng, "keep_last": self.keep_last}
        drawn = decoding.generate(self.model_config, variables, self.prompts, self.num_tokens, **options)
        while True:
            with jax.set_mesh(self.mesh):  # not around a `yield`, which would leave it set for the caller
                new = next(drawn, None)
            if new is None:
                return
            yield new


def prepare(
    config: ConfigDict,
    workdir: Path,
    wanted: str,
    prompts: Sequence[np.ndarray],
    num_tokens: int,
    sampling: decoding.Sampling,
    seed: int,
    keep_last: int | None = None,
    of_text: TextTokens = BYTES,
) -> Generation:
    """Checks a config against the stored one and the prompts against both.

    Args:
      config: The stored config with overrides.
      workdir: Of the training run.
      wanted: The checkpoint: 'best', 'latest' or a step.
      prompts: Token ids of each; lengths may differ.
      num_tokens: To be written after each, at most.
      sampling: How they are drawn.
      seed: Of the draws and of the LSH rotations.
      keep_last: As in `decoding.generate`.
      of_text: What a text of the run is made of; images have as many values as there are bytes.

    Raises:
      ValueError: If something is wrong; the message says what, and how to repair it.
    """
    model_config = settings.validate(config)
    command_line.check_seed("--seed", seed)
    stored = settings.in_new_place(settings.read(workdir), config)
    changes = settings.differences(stored, config)
    of_data = ("data",) if load.kind(stored["data"]["name"]) == "images" else ()  # which pictures to complete
    evaluation.check_changes(changes, stored, config, ("model", "sharding", *of_data))
    with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoint.choose(checkpoints, wanted)
    sampling = dataclasses.replace(sampling, num_ids=of_text.num_ids)
    decoding.check(model_config, prompts, num_tokens, sampling, keep_last)
    model_config = fix_num_buckets(model_config, settings.window_length(stored))
    mesh = _mesh(config.sharding, model_config, len(prompts))
    return Generation(model_config, workdir, step, list(prompts), num_tokens, sampling, seed, mesh, keep_last, of_text)


def _mesh(sizes: ConfigDict, model_config: ReformerConfig, num_prompts: int) -> jax.sharding.Mesh:
    """Returns the first devices as the config arranges them; a size of -1 = all devices."""
    if sizes.split_length:
        raise ValueError("config.sharding.split_length=True has no effect here. Leave it out.")
    counts = (sizes.data, sizes.fsdp, sizes.tensor)
    num_devices = jax.local_device_count() if -1 in counts else math.prod(counts)
    mesh = sharding.make_mesh(**sizes, devices=jax.local_devices()[:num_devices])
    sharding.validate(model_config, mesh, {"The number of prompts": num_prompts}, 1)
    return mesh


def text_prompts(texts: Sequence[str], file: Path | None, batch: int, of_text: TextTokens = BYTES) -> list[np.ndarray]:
    """Returns `batch` prompts for each text and for the content of the file, or for nothing if there is none of these.

    A prompt begins with the begin id, as windows do in training. It may hold any bytes, unless
    the run reads subwords.

    Raises:
      ValueError: If the file cannot be read, or is text in UTF-16; of subwords, if it is no UTF-8.
    """
    contents = [text.bytes_of(prompt) for prompt in texts]
    if file is not None:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ValueError(f"--prompt_file={file} cannot be read ({error.strerror}).") from error
        contents.append(content[documents.num_mark_bytes(content[:4], f"--prompt_file={file}") :])
    prompts = [np.concatenate([[of_text.begin_id], of_text.encode(content)]) for content in contents or [b""]]
    return [prompt.astype(np.int32) for prompt in prompts for _ in range(batch)]


def stop_id(character: str | None, of_text: TextTokens = BYTES) -> int | None:
    """Returns the id of the byte, or subword, that ends a text.

    Raises:
      ValueError: If it is not one byte, or not one subword.
    """
    if character is not None and of_text is not BYTES:
        ids = of_text.encode(text.bytes_of(character)).tolist()
        if len(ids) != 1:
            raise ValueError(f"--stop={character!r} must be one subword of the run; it is {len(ids)}.")
        return ids[0]
    if character is not None and len(text.bytes_of(character)) != 1:
        raise ValueError(f"--stop={character!r} must be one character of one byte.")
    return None if character is None else text.bytes_of(character)[0]


def write_text(generation: Generation) -> list[bytes]:
    """Writes the first row to the terminal as it comes, and the others when all are done.

    Returns:
      Prompt and continuation of every row, as they are: what is no UTF-8 is replaced on the terminal only.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoders = [generation.of_text.decoder() for _ in generation.prompts]
    rows = [decode(ids.tolist()) for decode, ids in zip(decoders, generation.prompts, strict=True)]
    print(decoder.decode(rows[0]), end="", flush=True)
    stopped = np.zeros(len(rows), bool)
    for new in generation.tokens():
        ids = [_until(row, generation.sampling.stop_id).tolist() for row in new]
        ids = [[] if has_ended else row for row, has_ended in zip(ids, stopped, strict=True)]
        parts = [decode(row) for decode, row in zip(decoders, ids, strict=True)]
        rows = [row + part for row, part in zip(rows, parts, strict=True)]
        print(decoder.decode(parts[0]), end="", flush=True)
        stopped |= (new == generation.sampling.stop_id).any(axis=1)
    print(decoder.decode(b"", final=True), end="")  # of a character that is not complete
    for i, row in enumerate(rows[1:], start=2):
        print(f"\n--- {i} ---\n{row.decode(errors='replace')}", end="")
    print(flush=True)
    return rows


def _until(tokens: np.ndarray, stop: int | None) -> np.ndarray:
    """Returns the tokens up to the first stop id, which is repeated behind the end."""
    (places,) = np.nonzero(tokens == stop)
    return tokens[: places[0] + 1] if len(places) else tokens
