"""Subwords: every text has ids and comes back, a vocabulary is learned once, and foreign ones are refused."""

import io

import numpy as np
import pytest

from reformer.data import subwords

LINES = ["the dog runs in the green park", "a man and a dog are in the park", "the men run, the dogs too"] * 20
NUM_IDS = 320


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def vocabulary(cache):
    return subwords.learn(LINES, NUM_IDS, cache)


@pytest.mark.parametrize("text", [LINES[0], "Ünïcode “quotes”, 東京 and a \u2028 separator", "a <sep> b </s>"])
def test_every_text_comes_back_from_its_ids_also_with_characters_never_seen(vocabulary, text):
    (ids,) = vocabulary.encode([text])
    assert min(ids) >= subwords.NUM_RESERVED
    assert vocabulary.decode(np.array(ids)) == [text]


def test_joined_texts_are_divided_by_separators_up_to_the_end_id(vocabulary):
    parts = [np.array(ids, np.int32) for ids in vocabulary.encode(["the dog", "a man"])]
    joined = subwords.join(parts)
    assert (joined[-1], (joined == subwords.SEPARATOR_ID).sum()) == (subwords.END_ID, 1)
    assert vocabulary.decode(np.append(joined, parts[0])) == ["the dog", "a man"]
    assert vocabulary.decode(np.array([subwords.BEGIN_ID, *parts[0], subwords.PADDING_ID])) == ["the dog"]


def test_a_vocabulary_is_learned_once_and_is_always_the_same(vocabulary, cache, tmp_path, monkeypatch):
    assert subwords.learn(LINES, NUM_IDS, tmp_path).model == vocabulary.model
    monkeypatch.setattr(subwords, "_train", lambda *_: pytest.fail("learned again"))
    assert subwords.learn(LINES, NUM_IDS, cache).fingerprint == vocabulary.fingerprint
    assert vocabulary.num_ids == NUM_IDS


def test_other_lines_or_another_size_give_another_vocabulary(vocabulary, cache):
    for lines, num_ids in (([*LINES[1:], "zebra " * 9], NUM_IDS), (LINES, NUM_IDS - 1)):
        assert subwords.learn(lines, num_ids, cache).fingerprint != vocabulary.fingerprint


@pytest.mark.parametrize("num_ids", [10, 100_000])
def test_a_size_that_the_text_does_not_have_is_refused(cache, num_ids):
    with pytest.raises(ValueError, match=rf"data\.num_subwords={num_ids} cannot be learned .*--config\.data\.num_subw"):
        subwords.learn(LINES, num_ids, cache)


def test_long_lines_are_learned_from_too(cache):
    long = "zebra quagga okapi " * 300
    assert subwords.learn(["the tree and its leaves"] * 40 + [long], 300, cache).encode(["okapi"]) != subwords.learn(
        ["the tree and its leaves"] * 40, 300, cache
    ).encode(["okapi"])


def test_a_cache_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data\.cache_dir=.* cannot take the subwords .*--config\.data\.cache_dir"):
        subwords.learn(LINES, NUM_IDS, tmp_path / "file")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"subwords\.model': there is no such file\. Name the subwords\.model of a run"
    ):
        subwords.read(str(tmp_path / "subwords.model"))


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "text").write_text("no model")
    with pytest.raises(ValueError, match=r"text' cannot be read as a sentencepiece model"):
        subwords.read(str(tmp_path / "text"))


def test_a_vocabulary_of_another_library_is_refused(tmp_path):
    import sentencepiece

    written = io.BytesIO()
    options = {"vocab_size": 40, "model_type": "bpe", "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=written, **options)
    (tmp_path / "foreign.model").write_bytes(written.getvalue())
    with pytest.raises(ValueError, match=r"begins with <unk> <s> </s> .* it was not learned by this library"):
        subwords.read(str(tmp_path / "foreign.model"))
