"""Text to ids and back, for models of bytes and of SentencePiece."""

import json
import pathlib

import numpy as np
import pytest
import sentencepiece

from reformer.interop.tokenizers import ByteTokenizer, SentencePieceTokenizer, encode_batch, load_tokenizer
from tests import pieces

THEIRS = pathlib.Path(__file__).parent / "tokenizer"
TEXTS = ["the quick brown fox", "In 1965, Brooks left IBM", "a\tb\n  c", "café 🙂 ångström", " ", ""]


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A tiny SentencePiece model."""
    return pieces.train(tmp_path_factory.mktemp("pieces") / "spiece.model")


@pytest.fixture
def tokenizer(spiece):
    return SentencePieceTokenizer(spiece)


@pytest.fixture
def make_directory(tmp_path, spiece):
    """Makes a model's directory with a vocabulary of some size, with or without its tokenizer."""

    def make(vocab_size, with_pieces):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "reformer", "vocab_size": vocab_size}))
        if with_pieces:
            (tmp_path / "spiece.model").write_bytes(spiece.read_bytes())
        return tmp_path

    return make


# Bytes


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_bytes_come_back(text):
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text


def test_the_id_of_a_byte_is_the_byte_plus_two():
    """As the function on the model card has it: `[x + 2 for x in string]`."""
    ids = ByteTokenizer().encode("In é")
    np.testing.assert_array_equal(ids, [73 + 2, 110 + 2, 32 + 2, 0xC3 + 2, 0xA9 + 2])
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, ByteTokenizer().encode("In é".encode()))


def test_every_byte_has_an_id_and_the_other_two_stand_for_nothing():
    ids = ByteTokenizer().encode(bytes(range(256)))
    assert sorted({0, 1, *ids.tolist()}) == list(range(ByteTokenizer.vocab_size))
    assert ByteTokenizer().decode([0, 67, 1, 0, 68]) == "AB"


def test_half_a_character_is_replaced():
    assert ByteTokenizer().decode(ByteTokenizer().encode("aé")[:-1]) == "a\ufffd"


# SentencePiece


@pytest.mark.parametrize("text", ["Beautiful is better than ugly.", "now is never", ""], ids=repr)
def test_pieces_come_back(text, tokenizer):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and (ids < tokenizer.vocab_size).all()
    assert tokenizer.decode(ids) == text


def test_nothing_is_put_before_or_behind(spiece, tokenizer):
    expected = sentencepiece.SentencePieceProcessor(model_file=str(spiece)).encode("is better")
    np.testing.assert_array_equal(tokenizer.encode("is better"), expected)
    assert tokenizer.stop_id == 2
    assert tokenizer.stop_id not in tokenizer.encode("a </s> b")


def test_pieces_that_are_no_text_are_left_out(tokenizer):
    padding, stop = 0, tokenizer.stop_id
    assert tokenizer.decode([*tokenizer.encode("better"), stop, padding]) == "better"


def test_the_ids_are_those_of_their_tokenizer():
    """What `transformers.ReformerTokenizer` gave, see make_fixtures."""
    tokenizer = SentencePieceTokenizer(THEIRS / "spiece.model")
    for text, ids in json.loads((THEIRS / "expected.json").read_text()).items():
        np.testing.assert_array_equal(tokenizer.encode(text), ids)


def test_a_saved_tokenizer_is_the_same(tokenizer, spiece, tmp_path):
    tokenizer.save(tmp_path)
    assert (tmp_path / "spiece.model").read_bytes() == spiece.read_bytes()
    with pytest.raises(FileExistsError):
        tokenizer.save(tmp_path)


# Both


@pytest.mark.parametrize("ids", [[-1], [258], [5, 400]], ids=str)
def test_ids_that_do_not_exist_are_refused(ids):
    message = rf"id {ids[-1]} does not exist: .* 0 to 257. .*Sampling\(num_ids=258\)"
    with pytest.raises(ValueError, match=message):
        ByteTokenizer().decode(ids)


@pytest.mark.parametrize("ids", [[[5, 6]], [0.5], "text"], ids=str)
def test_what_is_no_row_of_ids_is_refused(ids, tokenizer):
    with pytest.raises(ValueError, match="must be one row of integers"):
        tokenizer.decode(ids)


def test_a_batch_is_padded_and_masked():
    tokens, mask = encode_batch(ByteTokenizer(), ["abc", "", "é"])
    np.testing.assert_array_equal(tokens, [[99, 100, 101], [0, 0, 0], [0xC5, 0xAB, 0]])
    np.testing.assert_array_equal(mask, tokens != 0)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match=r"texts=\[\] must hold at least one text"):
        encode_batch(ByteTokenizer(), [])


# The tokenizer of a directory


def test_a_model_with_pieces_is_read_with_them(make_directory, tokenizer):
    loaded = load_tokenizer(make_directory(tokenizer.vocab_size, with_pieces=True))
    np.testing.assert_array_equal(loaded.encode("better"), tokenizer.encode("better"))


def test_a_model_may_have_more_ids_than_pieces(make_directory, tokenizer):
    assert load_tokenizer(make_directory(tokenizer.vocab_size + 1, with_pieces=True)).vocab_size == tokenizer.vocab_size


def test_a_model_of_258_ids_without_pieces_is_one_of_bytes(make_directory):
    assert isinstance(load_tokenizer(make_directory(258, with_pieces=False)), ByteTokenizer)


def test_bytes_are_saved_without_a_file(make_directory):
    directory = make_directory(ByteTokenizer.vocab_size, with_pieces=False)
    before = sorted(directory.iterdir())
    ByteTokenizer().save(directory)
    assert sorted(directory.iterdir()) == before
    assert isinstance(load_tokenizer(directory), ByteTokenizer)


def test_a_wrong_vocabulary_is_refused(make_directory, tokenizer):
    directory = make_directory(40, with_pieces=True)
    with pytest.raises(ValueError, match=rf"{tokenizer.vocab_size} pieces, more than vocab_size=40 .* another model"):
        load_tokenizer(directory)


def test_a_missing_tokenizer_file_is_named(make_directory):
    directory = make_directory(320, with_pieces=False)
    with pytest.raises(FileNotFoundError, match=r"spiece.model does not exist, and vocab_size=320 .* Put the spiece"):
        load_tokenizer(directory)


@pytest.mark.parametrize("vocab_size", [258, 320])
def test_a_tokenizer_of_another_kind_is_named(vocab_size, make_directory):
    directory = make_directory(vocab_size, with_pieces=False)
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"only tokenizer.json, which cannot be read"):
        load_tokenizer(directory)


def test_a_missing_configuration_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json does not exist"):
        load_tokenizer(tmp_path)


def test_a_missing_file_of_pieces_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pieces.model does not exist. It is the spiece.model"):
        SentencePieceTokenizer(tmp_path / "pieces.model")


@pytest.mark.parametrize("content", [b"", b"no model at all"])
def test_a_file_that_holds_no_pieces_is_named(content, tmp_path):
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"spiece.model is not a SentencePiece model. Fetch it again"):
        SentencePieceTokenizer(tmp_path / "spiece.model")
