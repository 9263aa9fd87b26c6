"""What a trained model writes: from a workdir and prompts to new tokens, and to text on the terminal."""

import codecs
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from reformer import decoding, sharding
from reformer.config import ReformerConfig
from reformer.data import load, text
from reformer.layers.attention import fix_num_buckets
from reformer.training import checkpoint, command_line, evaluation, settings

NUM_VALUES = 256  # bytes, or values of a colour: the ids above are reserved and never written
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

    def tokens(self) -> Iterator[Int[np.ndarray, "batch tokens"]]:
        """Yields the new tokens of every prompt as they come.

        Raises:
          OSError: If the checkpoint is damaged.
        """
        _, variables = checkpoint.load(self.workdir, self.step, self.mesh)
        rng = jax.random.key(self.seed)
        drawn = decoding.generate(
            self.model_config, variables, self.prompts, self.num_tokens, sampling=self.sampling, rng=rng
        )
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

    Raises:
      ValueError: If something is wrong; the message says what, and how to repair it.
    """
    model_config = settings.validate(config)
    command_line.check_seed("--seed", seed)
    stored = settings.read(workdir)
    changes = settings.differences(stored, config)
    of_data = ("data",) if load.kind(stored["data"]["name"]) == "images" else ()  # which pictures to complete
    evaluation.check_changes(changes, stored, config, ("model", "sharding", *of_data))
    with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoint.choose(checkpoints, wanted)
    sampling = dataclasses.replace(sampling, num_ids=NUM_VALUES)
    decoding.check(model_config, prompts, num_tokens, sampling)
    model_config = fix_num_buckets(model_config, settings.window_length(stored))
    mesh = _mesh(config.sharding, model_config, len(prompts))
    return Generation(model_config, workdir, step, list(prompts), num_tokens, sampling, seed, mesh)


def _mesh(sizes: ConfigDict, model_config: ReformerConfig, num_prompts: int) -> jax.sharding.Mesh:
    """Returns the first devices as the config arranges them; a size of -1 = all devices."""
    if sizes.split_length:
        raise ValueError("config.sharding.split_length=True has no effect here. Leave it out.")
    counts = (sizes.data, sizes.fsdp, sizes.tensor)
    num_devices = jax.local_device_count() if -1 in counts else math.prod(counts)
    mesh = sharding.make_mesh(**sizes, devices=jax.local_devices()[:num_devices])
    sharding.validate(model_config, mesh, {"The number of prompts": num_prompts}, 1)
    return mesh


def text_prompts(texts: Sequence[str], file: Path | None, batch: int) -> list[np.ndarray]:
    """Returns `batch` prompts for each text and for the content of the file, or for nothing if there is none of these.

    A prompt begins with the begin id, as windows do in training.

    Raises:
      ValueError: If the file cannot be read.
    """
    contents = [prompt.encode() for prompt in texts]
    if file is not None:
        try:
            contents.append(file.read_bytes())
        except OSError as error:
            raise ValueError(f"--prompt_file={file} cannot be read ({error.strerror}).") from error
    prompts = [np.concatenate([[text.BEGIN_ID], text.encode(content)]) for content in contents or [b""]]
    return [prompt.astype(np.int32) for prompt in prompts for _ in range(batch)]


def stop_id(character: str | None) -> int | None:
    """Returns the id of the byte that ends a text.

    Raises:
      ValueError: If it is not one byte.
    """
    if character is not None and len(character.encode()) != 1:
        raise ValueError(f"--stop={character!r} must be one character of one byte.")
    return None if character is None else character.encode()[0]


def write_text(generation: Generation) -> list[str]:
    """Writes the first row to the terminal as it comes, and the others when all are done.

    Returns:
      Prompt and continuation of every row.
    """
    decoders = [codecs.getincrementaldecoder("utf-8")(errors="replace") for _ in generation.prompts]
    rows = [decoder.decode(text.decode(ids)) for decoder, ids in zip(decoders, generation.prompts, strict=True)]
    print(rows[0], end="", flush=True)
    stopped = np.zeros(len(rows), bool)
    for new in generation.tokens():
        for i, decoder in enumerate(decoders):
            part = "" if stopped[i] else decoder.decode(text.decode(_until(new[i], generation.sampling.stop_id)))
            rows[i] += part
            print(part if i == 0 else "", end="", flush=True)
        stopped |= (new == generation.sampling.stop_id).any(axis=1)
    rest = [decoder.decode(b"", final=True) for decoder in decoders]  # of a character that is not complete
    rows = [row + part for row, part in zip(rows, rest, strict=True)]
    print(rest[0], end="")
    for i, row in enumerate(rows[1:], start=2):
        print(f"\n--- {i} ---\n{row}", end="")
    print(flush=True)
    return rows


def _until(tokens: np.ndarray, stop: int | None) -> np.ndarray:
    """Returns the tokens up to the first stop id, which is repeated behind the end."""
    (places,) = np.nonzero(tokens == stop)
    return tokens[: places[0] + 1] if len(places) else tokens
