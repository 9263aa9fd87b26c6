"""WMT14 from archives placed by hand through the TFDS builder, on tiny stand-ins."""

import importlib
import io
import tarfile

import pytest

from reformer.data import pairs, wmt14_ende

TRAIN = [(f"the dog number {i}", f"der Hund Nummer {i}") for i in range(40)]
VALID, TEST = [("a dog", "ein Hund"), ("", "leer")], [("cats & dogs", "Katzen & Hunde")]


def _sgm(texts):
    lines = (f'<seg id="{i}">{text.replace("&", "&amp;")}</seg>' for i, text in enumerate(texts, start=1))
    return "\n".join(["<srcset>", "<doc>", "<p>", *lines, "</p>", "</doc>", "</srcset>"])


def _write(archive, members):
    with tarfile.open(archive, "w:gz") as file:
        for name, content in {"readme": "nothing", **members}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content.encode())
            file.addfile(member, io.BytesIO(content.encode()))


@pytest.fixture
def cache(tmp_path):
    """A cache folder with the archives where they are expected."""
    folder = tmp_path / "wmt14_ende"
    folder.mkdir()
    parts = {"europarl-v7": "training/europarl-v7.de-en", "commoncrawl": "commoncrawl.de-en"}
    parts |= {"nc-v9": "training/news-commentary-v9.de-en"}
    for i, (name, member) in enumerate(parts.items()):
        lines = TRAIN[i * 10 : (i + 1) * 10 if i < 2 else None]
        texts = {f"{member}.{language}": "\n".join(side) + "\n" for language, side in _sides(lines)}
        _write(folder / f"training-parallel-{name}.tgz", texts)
    texts = {f"dev/newstest2013.{language}": "\n".join(side) + "\n" for language, side in _sides(VALID)}
    _write(folder / "dev.tgz", texts)
    (_, english), (_, german) = _sides(TEST)
    names = ("newstest2014-deen-src.en.sgm", "newstest2014-deen-ref.de.sgm")
    texts = {f"test-full/{name}": _sgm(side) for name, side in zip(names, (english, german), strict=True)}
    _write(folder / "test-full.tgz", texts)
    return tmp_path


def _sides(lines):
    return [("en", [english for english, _ in lines]), ("de", [german for _, german in lines])]


def _read(cache, source="en", target="de", path=""):
    return wmt14_ende.read_wmt14_ende(str(path), cache, source, target)


def test_the_archives_are_prepared_in_order_without_tensorflow(cache):
    corpus = _read(cache)
    assert corpus.description == "WMT14 en-de"
    assert list(zip(*corpus.splits["train"], strict=True)) == TRAIN
    assert list(zip(*corpus.splits["valid"], strict=True)) == VALID[:1]
    assert list(zip(*corpus.splits["test"], strict=True)) == TEST


def test_prepared_texts_are_used_without_the_archives_in_both_directions(cache, monkeypatch):
    forth = _read(cache)
    builder = importlib.import_module("reformer.data.wmt14_ende.wmt14_ende_builder")
    monkeypatch.setattr(builder, "prepare", lambda *_: pytest.fail("prepared again"))
    for archive in (cache / "wmt14_ende").iterdir():
        archive.unlink()
    back = _read(cache, "de", "en")
    assert back.splits["train"] == forth.splits["train"][::-1]
    assert _read(cache).fingerprint == forth.fingerprint != back.fingerprint


def test_they_are_data_of_the_translation_task(cache):
    data = pairs.WMT14(cache_dir=str(cache), num_subwords=290).load(32)
    assert data.description.startswith("WMT14 en-de: 40 train, 1 valid, 1 test pairs; 290 subwords")


def test_missing_archives_are_named_together(cache):
    (cache / "wmt14_ende" / "dev.tgz").unlink()
    (cache / "wmt14_ende" / "test-full.tgz").unlink()
    with pytest.raises(ValueError, match=r"There is no .*dev\.tgz and no .*test-full\.tgz\. Fetch the archives"):
        _read(cache)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:100], r"dev\.tgz'.* Replace it"),
        (lambda content: bytes(len(content)), r"dev\.tgz' cannot be read .*Replace it"),
    ],
    ids=["cut", "zeros"],
)
def test_a_damaged_archive_is_refused(cache, damage, message):
    archive = cache / "wmt14_ende" / "dev.tgz"
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(ValueError, match=message):
        _read(cache)


def test_an_archive_of_something_else_is_refused(cache):
    _write(cache / "wmt14_ende" / "dev.tgz", {"dev/newstest2013.en": "one\ntwo", "dev/newstest2013.de": "eins"})
    with pytest.raises(ValueError, match=r"newstest2013\.de have 2 and 1 lines and should be translations"):
        _read(cache)


def test_other_languages_are_refused(cache):
    with pytest.raises(ValueError, match=r"source_language='en' and data\.target_language='fr' must be 'en' and 'de'"):
        _read(cache, "en", "fr")
