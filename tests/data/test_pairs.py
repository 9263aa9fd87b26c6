"""Pairs of text files as rows: which files are read, what stands in a row, what is left out and said."""

import dataclasses
import itertools

import numpy as np
import pytest

from reformer.data import load as data_sets
from reformer.data import pair_files, source, subwords

WORDS = [("dog", "Hund"), ("man", "Mann"), ("park", "Park"), ("tree", "Baum"), ("red", "rot"), ("runs", "rennt")]
# Every fifth is twice as long.
SENTENCES = [
    " ".join(words * (2 if i % 5 == 0 else 1))
    for i, words in enumerate(itertools.permutations([en for en, _ in WORDS], 3))
]
NUM_SUBWORDS = 300
LENGTH = 32  # of a row: longer than every pair


def translate(sentence):
    return " ".join(dict(WORDS)[word] for word in sentence.split())


def write(prefix, name, sentences):
    for language, lines in (("en", sentences), ("de", map(translate, sentences))):
        prefix.with_name(f"{prefix.name}{name}.{language}").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """100 pairs to train on, 12 to validate, 8 to test."""
    prefix = tmp_path_factory.mktemp("pairs") / "words"
    for name, part in ((".train", slice(0, 100)), (".val", slice(100, 112)), (".test_2016", slice(112, 120))):
        write(prefix, name, SENTENCES[part])
    return prefix


@pytest.fixture(scope="module")
def load(cache, prefix):
    def load(length=LENGTH, path=prefix, source_length=None, **changes):
        fields = {"name": "pairs", "path": str(path), "cache_dir": str(cache), "valid_fraction": 0.1}
        fields |= {"test_fraction": 0.1, "source_language": "en", "target_language": "de", "subwords": "", "join": 1}
        found = data_sets.load(fields | {"num_subwords": NUM_SUBWORDS} | changes, length)
        return dataclasses.replace(found, source_length=source_length or length)

    return load


def rows_of(data, length, count, seed=0):
    """The first rows of training."""
    batches = source.training_batches(data, length=length, batch_size=1, seed=seed)
    return [{name: array[0] for name, array in next(batches).items()} for _ in range(count)]


def decode(data, row):
    target = row["targets"][row["mask"]]
    return data.vocabulary.decode(row["source"]), data.vocabulary.decode(target)


# Files


def test_splits_are_found_by_the_names_of_their_files(load):
    data = load()
    assert "words (test_2016): 100 train, 12 valid, 8 test pairs; 300 subwords" in data.description
    assert data.corpus.splits["test"].source == SENTENCES[112:120]
    assert data.corpus.splits["valid"].target == [translate(sentence) for sentence in SENTENCES[100:112]]


def test_a_single_pair_of_files_is_cut_into_splits(load, tmp_path):
    write(tmp_path / "all", "", SENTENCES)
    splits = load(path=tmp_path / "all").corpus.splits
    assert {split: len(texts.source) for split, texts in splits.items()} == {"train": 96, "valid": 12, "test": 12}
    assert [line for texts in splits.values() for line in texts.source] == SENTENCES


def test_the_direction_is_that_of_the_languages(load):
    forth, back = load(), load(source_language="de", target_language="en")
    assert back.corpus.splits["train"] == forth.corpus.splits["train"][::-1]
    assert back.fingerprint != forth.fingerprint


def test_pairs_with_an_empty_side_are_left_out_and_counted(load, tmp_path):
    write(tmp_path / "some", ".train", SENTENCES[:50])
    write(tmp_path / "some", ".val", SENTENCES[50:60])
    with (tmp_path / "some.train.en").open("a") as file:
        file.write("\n")
    with (tmp_path / "some.train.de").open("a") as file:
        file.write("allein\n")
    data = load(path=tmp_path / "some")
    assert "(1 pairs with an empty side left out): 50 train, 10 valid, 0 test pairs" in data.description
    assert data.num_examples("test", LENGTH) == 0 and data.documents("test", LENGTH) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {},
            r"no files PATH\.train\.en and PATH\.val\.en, nor PATH\.en alone; found nothing\. data\.path must be what",
        ),
        ({".train.en": "a"}, r"found PATH\.train\.en\. data\.path must be what"),
        ({".en": "a\nb", ".de": "a"}, r"x\.en has 2 lines and .*x\.de 1\. Line i of one must be the translation"),
        ({".en": "a"}, r"x\.de' cannot be read \(No such file"),
        ({".en": b"\xff", ".de": b"a"}, r"x\.en' is not text in UTF-8 .* Convert it"),
        ({".en": "a", ".de": "b"}, r"holds no pair for valid"),
    ],
)
def test_files_that_are_no_translations_are_refused(load, tmp_path, files, message):
    for name, content in files.items():
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / f"x{name}").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(path=tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"\xef\xbb\xbfone\ntwo\n", ["one", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"one\rtwo\r", ["one", "two"]),
        (b"one\rand a half\ntwo", ["one\rand a half", "two"]),  # a translation of two lines
        ("one\u2028and a half\ntwo".encode(), ["one\u2028and a half", "two"]),
        (b"", []),
    ],
)
def test_lines_end_as_people_mean_them(tmp_path, content, lines):
    (tmp_path / "text").write_bytes(content)
    assert pair_files.read_lines(tmp_path / "text") == lines


def test_lines_in_utf_16_are_refused_by_name(tmp_path):
    (tmp_path / "text").write_bytes("one\ntwo\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"/text' begins with the byte order mark of UTF-16 or UTF-32, .* Convert it"):
        pair_files.read_lines(tmp_path / "text")


def test_a_folder_that_is_not_there_is_refused(load, tmp_path):
    with pytest.raises(ValueError, match=r"data\.path='.*/nowhere/x': there is no such folder"):
        load(path=tmp_path / "nowhere" / "x")


def test_a_vocabulary_of_another_size_is_refused(load, tmp_path):
    file = tmp_path / "subwords.model"
    file.write_bytes(load().assets["subwords.model"])
    assert load(subwords=str(file)).fingerprint == load().fingerprint
    with pytest.raises(ValueError, match=r"has 300 subwords, but data\.num_subwords=290\. .*--config\.model\.vocab_si"):
        load(subwords=str(file), num_subwords=290)


def test_another_vocabulary_is_other_data(load):
    assert load(num_subwords=290).fingerprint != load().fingerprint


# Rows


def test_a_row_holds_a_source_and_a_target_moved_by_one(load):
    data = load(source_length=40)
    row = data.to_row(data.example("valid", 3, LENGTH), LENGTH)
    assert decode(data, row) == ([SENTENCES[103]], [translate(SENTENCES[103])])
    count = int(row["mask"].sum())
    assert row["tokens"][0] == subwords.BEGIN_ID and row["targets"][count - 1] == subwords.END_ID
    np.testing.assert_array_equal(row["tokens"][1:count], row["targets"][: count - 1])
    np.testing.assert_array_equal(row["weights"], row["mask"])
    source_count = int(row["source_mask"].sum())
    assert row["source"].shape == (40,) and row["source"][source_count - 1] == subwords.END_ID
    assert not row["source"][source_count:].any() and not row["source_mask"][source_count:].any()


def test_training_and_evaluation_rows_have_the_same_arrays(load):
    data = load()
    (trained,), evaluated = rows_of(data, LENGTH, 1), data.to_row(data.example("test", 0, LENGTH), LENGTH)
    assert {name: (x.shape, x.dtype) for name, x in trained.items()} == {
        name: (x.shape, x.dtype) for name, x in evaluated.items()
    }


def test_every_pair_is_trained_on_once_per_epoch_in_another_order(load):
    data = load()
    epochs = np.split(np.array([decode(data, row) for row in rows_of(data, LENGTH, 200)])[:, :, 0], 2)
    expected = sorted((sentence, translate(sentence)) for sentence in SENTENCES[:100])
    assert [sorted(map(tuple, epoch)) for epoch in epochs] == [expected, expected]
    assert (epochs[0] != epochs[1]).any()


def test_too_long_pairs_are_left_out_counted_and_never_cut(load):
    lengths = np.array([len(ids) + 1 for ids in load().vocabulary.encode([translate(s) for s in SENTENCES[:100]])])
    length = int(lengths.max()) - 1
    data = load(length, source_length=40)
    num_long = int((lengths > length).sum())
    assert 0 < num_long < 100 and f"longer than 40 -> {length} and left out: {num_long} train" in data.description
    seen = {decode(data, row)[0][0] for row in rows_of(data, length, 100 - num_long)}
    assert seen == {sentence for sentence, count in zip(SENTENCES, lengths, strict=False) if count <= length}
    assert data.num_examples("train", length) == 100 - num_long


def test_a_length_for_which_there_is_no_pair_is_refused(load):
    with pytest.raises(ValueError, match=r"length=2: no pair of .* is short enough for 2 -> 2 tokens\. Raise --config"):
        load(2).training_examples(2, 0)
    with pytest.raises(ValueError, match=r"length=1 leaves no place for a subword before the end id"):
        load(1)


def test_documents_are_whole_pairs_as_many_as_fit(load):
    data = load(48, join=3)
    for row in rows_of(data, 48, 20):
        sources, targets = decode(data, row)
        assert targets == [translate(sentence) for sentence in sources] and 1 <= len(sources) <= 3
        assert (row["source"] == subwords.SEPARATOR_ID).sum() == len(sources) - 1
    num_joined = [len(data._documents("train", 48)[i]) for i in range(data.num_examples("train", 48))]
    assert f"pairs, in documents of up to 3 ({np.mean(num_joined):.3g} fit on average);" in data.description


def test_evaluated_documents_hold_every_pair_once_and_in_order(load):
    data = load(30, join=5)
    documents = [
        decode(data, data.to_row(data.example("valid", i, 30), 30)) for i in range(data.num_examples("valid", 30))
    ]
    assert [sentence for sources, _ in documents for sentence in sources] == SENTENCES[100:112]
    assert [texts.source for texts in data.documents("valid", 30)] == [sources for sources, _ in documents]
    assert max(len(sources) for sources, _ in documents) > 1


def test_single_texts_are_translated_whatever_their_length(load):
    data = load(4)
    assert [texts.source[0] for texts in data.documents("test", 4)] == SENTENCES[112:120]


def test_the_baseline_is_the_share_of_each_subword_in_the_training_text(load):
    data = load()
    ids = [[*row, subwords.END_ID] for row in data.vocabulary.encode([translate(s) for s in SENTENCES[:100]])]
    counts = np.bincount(np.concatenate(ids), minlength=NUM_SUBWORDS) + 1
    scored = [[*row, subwords.END_ID] for row in data.vocabulary.encode([translate(s) for s in SENTENCES[100:112]])]
    expected = -np.log2(counts[np.concatenate(scored)] / counts.sum()).mean()
    np.testing.assert_allclose(data.baselines("valid", LENGTH)["order-0 counts"], expected, rtol=1e-12)


def test_the_baseline_of_documents_knows_their_separators(load):
    data = load(48, join=3)
    trained, scored = (
        np.concatenate([data.example(split, i, 48).targets for i in range(data.num_examples(split, 48))])
        for split in ("train", "valid")
    )
    counts = np.bincount(trained, minlength=NUM_SUBWORDS) + 1
    expected = -np.log2(counts[scored] / counts.sum()).mean()
    np.testing.assert_allclose(data.baselines("valid", 48)["order-0 counts"], expected, rtol=1e-12)
