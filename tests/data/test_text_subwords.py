"""Text as subwords: learned and read, restored byte for byte, and evaluated per byte."""

import sys

import numpy as np
import pytest

from reformer.data import documents, load, source, subword_text, text, text_tokens
from reformer.host import extras

WORDS = "the tree of a forest\n  and its\tleaves  in the wind or rain\n"
AWKWARD = "\0  a\t\tb  \r\n\n   é漢 x \N{GRINNING FACE} \n\0\0z\n".encode()


def _config(path, **changes):
    defaults = {
        "name": "text",
        "path": str(path),
        "cache_dir": str(path.parent / "cache"),
        "valid_fraction": 0.1,
        "test_fraction": 0.1,
        "tokens": "subwords",
        "num_subwords": 300,
    }
    return defaults | changes


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return text_tokens.learn((WORDS * 50).encode(), 300, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A tokenizer.json of byte-pair encoding."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([WORDS * 50], trainer)
    path = tmp_path_factory.mktemp("made") / "tokenizer.json"
    made.save(str(path))
    return path


def _check(tokens):
    ids, num_bytes = tokens.encode_with_bytes(AWKWARD)
    assert tokens.decode(ids) == AWKWARD
    assert num_bytes.sum() == len(AWKWARD) and (num_bytes >= 0).all()
    assert (ids == tokens.separator_id).sum() == 3 and (num_bytes[ids == tokens.separator_id] == 1).all()
    decode = tokens.decoder()
    assert b"".join(decode([token]) for token in ids.tolist()) == AWKWARD
    assert tokens.decode(np.array([tokens.begin_id, *ids, tokens.mask_id])) == AWKWARD
    assert len(tokens.encode(WORDS.encode())) < len(WORDS) / 1.8
    assert tokens.restores(AWKWARD)


def test_every_text_is_restored_and_its_tokens_stand_for_all_of_its_bytes(learned):
    assert learned.vocab_size == 303
    assert (learned.separator_id, learned.begin_id, learned.mask_id) == (300, 301, 302)
    _check(learned)


def test_so_it_is_by_a_tokenizer_json(byte_level):
    tokens = text_tokens.read(str(byte_level))
    assert tokens.vocab_size == tokens.vocabulary.num_ids + 3
    _check(tokens)


def test_bytes_are_their_own_ids():
    assert text_tokens.BYTES.decode(text_tokens.BYTES.encode(AWKWARD)) == AWKWARD
    assert text_tokens.BYTES.vocab_size == text.VOCAB_SIZE


def test_rows_tell_the_bytes_and_simpler_models_are_scored_on_the_same_text(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("é" + WORDS * 200 + "é")
    data = load.load(_config(path), 64)
    plain = load.load(_config(path, tokens="bytes"), 64)
    assert (data.unit, data.num_ids, data.begin_id, data.mask_id) == ("token", 301, 301, 302)
    batches = source.evaluation_batches(data, "valid", length=64, batch_size=2)
    num_bytes = sum((batch["num_bytes"] * batch["weights"]).sum() for batch in batches)
    assert num_bytes == len(subword_text.whole_characters(plain.valid))
    everything = {"length": 10**6}
    assert data.baselines("valid", **everything) == pytest.approx(plain.baselines("valid", **everything))
    assert set(data.assets) == {"subwords.model"}
    assert "300 subwords" in data.description
    again = load.load(_config(path, subwords=str(_write(tmp_path / "own.model", data.assets["subwords.model"]))), 64)
    assert again.fingerprint == data.fingerprint != plain.fingerprint
    assert "num_bytes" not in next(source.training_batches(data, length=64, batch_size=1, seed=0))


def _write(path, content):
    path.write_bytes(content)
    return path


def test_json_lines_are_documents_of_subwords(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(f'{{"text": "the tree {i} in the wind"}}\n' for i in range(100)))
    data = load.load(_config(path, text_field="text", num_subwords=290), 16)
    found = [data.tokens.decode(getattr(data, split)) for split in ("train", "valid", "test")]
    assert sorted(b"\0".join(found).split(documents.SEPARATOR)) == sorted(
        f"the tree {i} in the wind".encode() for i in range(100)
    )


@pytest.mark.parametrize("cut", range(5))
def test_parts_of_characters_at_a_cut_are_left_out(cut):
    raw = np.frombuffer("é漢\N{GRINNING FACE}a\N{GRINNING FACE}".encode(), np.uint8)
    for part in (raw[cut:], raw[: len(raw) - cut]):
        kept = subword_text.whole_characters(part)
        kept.tobytes().decode()
        assert len(part) - len(kept) <= 3


def test_wrong_files_are_named(tmp_path, learned):
    with pytest.raises(ValueError, match=r"data\.subwords='none\.model': there is no such file.*tokenizer\.json"):
        text_tokens.read("none.model")
    for content in (b'{"model": 1}', b"no model"):
        if content[:1] == b"{":
            pytest.importorskip("tokenizers")
        with pytest.raises(ValueError, match=r"data\.subwords=.* cannot be read as a (tokenizer|SentencePiece)"):
            text_tokens.read(str(_write(tmp_path / "wrong", content)))
    with pytest.raises(ValueError, match=r"no UTF-8.*byte 3 is 0xe9.*--config\.data\.tokens=bytes"):
        learned.encode(b"caf\xe9 noir")
    with pytest.raises(ValueError, match=r"has no subwords\.model and no tokenizer\.json"):
        text_tokens.of_run(tmp_path, "subwords")


def test_the_ids_that_a_text_needs_are_known_before_it_is_read(tmp_path, learned):
    path = tmp_path / "words.txt"

    def vocab_size(**changes):
        return text.TextFiles.read(_config(path, **changes)).vocab_size

    assert vocab_size() == 303
    assert vocab_size(subwords=str(_write(tmp_path / "m", learned.vocabulary.content))) == 303
    assert vocab_size(subwords="gone.model") == 0  # a run may have its own copy
    assert vocab_size(tokens="bytes") == text.VOCAB_SIZE


def test_a_vocabulary_is_parsed_once_until_its_file_changes(tmp_path, learned):
    path = _write(tmp_path / "m", learned.vocabulary.content)
    read = text_tokens.read(str(path))
    assert text_tokens.read(str(path)) is read
    path.unlink()
    other = text_tokens.learn((WORDS * 50).encode(), 290, tmp_path / "cache")
    assert text_tokens.read(str(_write(path, other.vocabulary.content))).vocab_size == 293


def test_the_extra_that_is_named_where_sentencepiece_is_missing_is_that_of_text(tmp_path, learned, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(extras.MissingPackageError, match=r"'sentencepiece'.*'reformer\[subwords\]'"):
        text_tokens.learn((WORDS * 50).encode(), 280, tmp_path)
    with pytest.raises(extras.MissingPackageError, match=r"'sentencepiece'.*'reformer\[subwords\]'"):
        text_tokens.read(str(_write(tmp_path / "m", learned.vocabulary.content)))
