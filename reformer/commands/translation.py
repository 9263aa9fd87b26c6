"""What a trained encoder-decoder translates: from a workdir and texts to translations, and to their BLEU."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from reformer.commands import command_line
from reformer.config import derive_encoder_config
from reformer.data import pairs, subwords
from reformer.data.pair_files import Texts
from reformer.data.pairs import PairData
from reformer.data.subwords import BEGIN_ID, END_ID, PADDING_ID, UNKNOWN_ID, Subwords
from reformer.decoding import beam
from reformer.decoding.beam import Search
from reformer.host import extras
from reformer.layers.kinds import fix_num_buckets
from reformer.models.encoder_decoder import ReformerEncoderDecoder
from reformer.tasks import registry
from reformer.training import checkpoint, evaluation, settings

_MORE_TOKENS = 50  # that a target may have than its source (Vaswani et al. 2017, section 6.1)
_LENGTH_STEP = 32  # sources are padded to a multiple of it, so that few programs are compiled


class Bleu(NamedTuple):
    """Cased BLEU of sacrebleu, and the signature that says how it was computed."""

    score: float
    signature: str


@dataclasses.dataclass(frozen=True)
class Translation:
    """A checkpoint and texts, with everything checked that a user can get wrong.

    Attributes:
      model: with the number of buckets of its training.
      directory: of the run.
      step: of the checkpoint.
      vocabulary: of the run.
      texts: what is translated together, one or more texts each, and their references; [] = there are none.
      sources: the ids of these.
      how: the search; `max_tokens` is the most that any target may have.
      batch_size: how many are translated at once.
      seed: of the LSH rotations.
      changes: fields that differ from the training's, and what they are here.
    """

    model: ReformerEncoderDecoder
    directory: Path
    step: int
    vocabulary: Subwords
    texts: list[Texts]
    sources: list[np.ndarray]
    how: Search
    batch_size: int
    seed: int
    changes: dict[str, Any]

    def run(self, on_batch: Callable[[int], None] = lambda done: None) -> list[list[str]]:
        """Translates, the shortest sources first.

        Args:
          on_batch: called with the number of sources that are done, after every batch.

        Returns:
          For every source its translations, one line each, of which there should be as many as it has texts; for a
          blank one none.

        Raises:
          OSError: the checkpoint is damaged.
        """
        _, variables = checkpoint.load(self.directory, self.step)
        order = np.argsort([len(source) for source in self.sources], kind="stable")
        found: list[list[str]] = [[] for _ in order]
        for start in range(sum(map(_is_blank, self.sources)), len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            for index, target in zip(chosen, self._search(variables, chosen), strict=False):
                found[index] = [" ".join(text.split()) for text in self.vocabulary.decode(target)]
            on_batch(start + len(chosen))
        return found

    def _search(self, variables: Any, chosen: np.ndarray) -> list[np.ndarray]:
        sources = [self.sources[index] for index in chosen]
        sources += sources[:1] * (self.batch_size - len(sources))  # always the same program
        most, longest = self.model.config.max_length, max(map(len, sources))
        padded_length = min(most, -(-longest // _LENGTH_STEP) * _LENGTH_STEP)
        how = dataclasses.replace(self.how, max_tokens=min(self.how.max_tokens, padded_length + _MORE_TOKENS))
        rng = jax.random.key(self.seed)
        return beam.search(self.model, variables, sources, how, rng=rng, padded_length=padded_length)[0]

    def bleu(self, translations: Sequence[Sequence[str]]) -> Bleu:
        """Compares with the references; texts that were joined are compared as one."""
        metric = _make_metric()
        hypotheses = [" ".join(parts) for parts in translations]
        references = [" ".join(texts.target) for texts in self.texts]
        score = metric.corpus_score(hypotheses, [references]).score
        return Bleu(float(score), str(metric.get_signature()))

    def share_with_all_texts(self, translations: Sequence[Sequence[str]]) -> float:
        """Share of the documents whose translation has as many texts as the source."""
        pairs_of_counts = zip(translations, self.texts, strict=True)
        return float(np.mean([len(parts) == len(texts.source) for parts, texts in pairs_of_counts]))


def _make_metric() -> Any:
    with extras.needed_for("BLEU", "translation"):
        from sacrebleu.metrics import BLEU
    return BLEU()


def prepare(
    config: ConfigDict,
    directory: Path,
    wanted: str,
    *,
    split: str | None = None,
    lines: Sequence[str] = (),
    beam_size: int = 4,
    length_penalty: float = 0.6,
    batch_size: int = 32,
    seed: int = 0,
) -> Translation:
    """Checks a config against the stored one, and what is to be translated against the model.

    Args:
      config: the stored config with overrides.
      directory: the workdir of the training run.
      wanted: the checkpoint: 'best', 'latest' or a step.
      split: 'train', 'valid' or 'test' of the data, whose translations are known; None = `lines`.
      lines: texts.
      beam_size: as in `Search`.
      length_penalty: as in `Search`.
      batch_size: sources at once.
      seed: of the LSH rotations.

    Raises:
      ValueError: something is wrong; the message says what, and how to repair it.
      MissingPackageError: the translations of a split are to be compared, and sacrebleu is not there.
    """
    if split is not None:
        _make_metric()  # before minutes of work
    settings.validate(config)
    command_line.check_seed("--seed", seed)
    if config.task.name != "translation":
        raise ValueError(f"workdir={directory} holds a run with task.name={config.task.name!r}, no translation.")
    stored = settings.read(directory)
    changes = settings.differences(stored, config)
    evaluation.check_changes(changes, stored, config, ("model", "data"))
    if "data.subwords" in changes:
        raise ValueError(f"data.subwords: the run's own, {directory / pairs.ASSET}, are always used. Leave it out.")
    with checkpoint.Checkpoints(directory, read_only=True) as checkpoints:
        step = checkpoint.choose(checkpoints, wanted)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    vocabulary = read_vocabulary(directory, config.data.num_subwords)
    texts = [Texts([line], []) for line in lines] if split is None else _read_split(config, directory, split)
    model = make_model(config, stored)
    # Ids beyond the vocabulary, which may be smaller than the model's, are no text.
    never = (PADDING_ID, BEGIN_ID, UNKNOWN_ID, *range(vocabulary.num_ids, model.config.vocab_size))
    how = Search(BEGIN_ID, END_ID, never, beam_size, length_penalty, model.config.max_length)
    sources = _encode(vocabulary, texts, model.config.max_length)
    if all(map(_is_blank, sources)):
        raise ValueError("there is nothing to translate. Name a file with lines by --input, or another --split.")
    new = {name: value for name, (_, value) in changes.items()}
    return Translation(model, directory, step, vocabulary, texts, sources, how, batch_size, seed, new)


def make_model(config: ConfigDict, trained: settings.Config) -> ReformerEncoderDecoder:
    """The model of `config` with the numbers of buckets that the rows of `trained` had, for texts of other lengths."""
    model, length = settings.model_config(config), settings.window_length(trained)
    decoder = fix_num_buckets(model, length)
    encoder = fix_num_buckets(derive_encoder_config(model), trained["task"]["source_length"] or length)
    return ReformerEncoderDecoder(decoder, encoder, config.task.share_embeddings)


def read_vocabulary(directory: Path, num_subwords: int) -> Subwords:
    """Reads the vocabulary of a run.

    Raises:
      ValueError: it is missing, or another one than the run was trained with.
    """
    file = directory / pairs.ASSET
    if not file.is_file():
        raise ValueError(
            f"{file} is missing: without its subwords the model's ids mean nothing. Copy it from where the run was "
            "made, or continue the run there, which writes it anew."
        )
    vocabulary = subwords.read(str(file))
    if vocabulary.num_ids != num_subwords:
        raise ValueError(
            f"{file} has {vocabulary.num_ids} subwords, but the run was trained with data.num_subwords={num_subwords}. "
            "Put its own back."
        )
    return vocabulary


def _read_split(config: ConfigDict, directory: Path, split: str) -> list[Texts]:
    config = ConfigDict(config)
    config.data.subwords = str(directory / pairs.ASSET)  # nothing is learned again
    length = settings.window_length(config)
    data = registry.load_data(config, length)
    assert isinstance(data, PairData)
    return data.documents(split, length)


def _is_blank(source: np.ndarray) -> bool:
    return len(source) == 1  # the end id


def _encode(vocabulary: Subwords, texts: Sequence[Texts], longest: int) -> list[np.ndarray]:
    sources = []
    for number, text in enumerate(texts, start=1):
        ids = subwords.join([np.array(part, np.int32) for part in vocabulary.encode(text.source)])
        if len(ids) > longest:
            raise ValueError(
                f"text {number} has {len(ids)} subwords, its end included, more than max_length={longest} of the "
                f"model: {text.source[0][:60]!r} ... Split it into sentences."
            )
        sources.append(ids)
    return sources
