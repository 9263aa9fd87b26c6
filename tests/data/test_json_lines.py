"""JSON lines as documents."""

import itertools
import json

import pytest

from configs import base
from reformer.commands import command_line
from reformer.data import documents, json_lines, load
from reformer.training import settings

TEXTS = [f"document {i}\nof two lines, ä" for i in range(60)]


def _write(path, texts, field="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": i, field: value}) + "\n" for i, value in enumerate(texts)))
    return str(path)


def _contents(split):
    return [part.decode() for part in split.tobytes().split(documents.SEPARATOR)]


def test_every_line_is_a_document_in_one_split(tmp_path):
    description, splits = json_lines.read(_write(tmp_path / "all.jsonl", TEXTS), "text", 0.2, 0.1)
    assert description.endswith("all.jsonl, 60 documents")
    assert sorted(itertools.chain(*map(_contents, splits))) == sorted(TEXTS)
    assert all(len(_contents(split)) >= 3 for split in splits)


def test_a_folder_is_searched_for_json_lines_and_other_files_are_left_out(tmp_path):
    _write(tmp_path / "a.jsonl", TEXTS[:30])
    _write(tmp_path / "below" / "b.jsonl", TEXTS[30:])
    (tmp_path / "README.md").write_text("no JSON")
    _, splits = json_lines.read(str(tmp_path), "text", 0.2, 0.1)
    assert sorted(itertools.chain(*map(_contents, splits))) == sorted(TEXTS)


def test_lines_that_are_appended_move_no_other(tmp_path):
    before = json_lines.read(_write(tmp_path / "all.jsonl", TEXTS[:50]), "text", 0.2, 0.1)[1]
    after = json_lines.read(_write(tmp_path / "all.jsonl", TEXTS), "text", 0.2, 0.1)[1]
    assert all(set(_contents(old)) <= set(_contents(new)) for old, new in zip(before, after, strict=True))


def test_marks_blank_lines_empty_texts_and_windows_line_ends_are_no_text(tmp_path):
    path = tmp_path / "all.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": ""}\r\n  \n{"text": "two"}\n{"text": "three"}')
    _, splits = json_lines.read(str(path), "text", 0.3, 0.3)
    assert sorted(split.tobytes() for split in splits) == [b"one", b"three", b"two"]


def test_few_documents_are_cut_as_one_text(tmp_path):
    _, splits = json_lines.read(_write(tmp_path / "all.jsonl", ["a" * 50, "b" * 49]), "text", 0.1, 0.1)
    assert [len(split) for split in splits] == [80, 10, 10]
    assert b"".join(split.tobytes() for split in splits) == b"a" * 50 + documents.SEPARATOR + b"b" * 49


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"plain text", r"this is no JSON \(Expecting value, character 1\)"),
        (b'{"text": "cut', r"this is no JSON \(Unterminated string starting at, character 10\)"),
        (b'["text"]', "this is no object but of type list"),
        (b'{"id": 1, "body": "x"}', "there is no field 'text', only 'id', 'body'"),
        (b'{"text": null}', "the field 'text' is no text but of type NoneType"),
        (b'{"text": "caf\xe9"}', "'utf-8' codec can't decode byte 0xe9"),
        (rb'{"text": "\ud800"}', r"'utf-8' codec can't encode character '\\ud800'"),
        (b"[" * 100_000, "this is nested too deeply"),
    ],
)
def test_a_bad_line_is_refused_by_file_number_and_rule(tmp_path, line, what):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    rule = r"Every line must be a JSON object in UTF-8 whose field 'text' is text\. Repair .*--config\.data\.text_field"
    with pytest.raises(ValueError, match=rf"bad\.jsonl', line 3: {what}.*{rule}"):
        json_lines.read(str(tmp_path), "text", 0.1, 0.1)


def test_what_holds_no_documents_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.path='.*nothing' does not exist"):
        json_lines.read(str(tmp_path / "nothing"), "text", 0.1, 0.1)
    with pytest.raises(ValueError, match=r"holds no \.jsonl files .* leave text_field out"):
        json_lines.read(str(tmp_path), "text", 0.1, 0.1)
    with pytest.raises(ValueError, match=r"holds no text in the fields 'text'"):
        json_lines.read(_write(tmp_path / "empty.jsonl", ["", ""]), "text", 0.1, 0.1)


def _config(path, name="text"):
    config = command_line.override(base.get_config(), [f"--config.data.path={path}", "--config.data.text_field=body"])
    config.data.name = name
    return config


def test_a_config_names_the_field(tmp_path):
    config = _config(_write(tmp_path / "all.jsonl", TEXTS, "body"))
    data = load.load(config.data, 8)
    assert sum(len(_contents(split)) for split in (data.train, data.valid, data.test)) == 60


def test_other_data_do_not_take_the_field():
    with pytest.raises(ValueError, match=r"config\.data\.text_field='body' is not read by config\.data\.name='stdlib'"):
        settings.validate(_config("", name="stdlib"))
