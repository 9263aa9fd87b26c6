"""Names on the Hugging Face hub, against a stand-in for `huggingface_hub` that has folders of this machine."""

import fnmatch
import shutil
import sys
import types

import numpy as np
import pytest
from checkpoints import FIXTURES, WEIGHTS, assert_identical, edit_fields

from reformer.host import extras
from reformer.interop import hub, huggingface, tokenizers

NAME = "google/reformer-enwik8"


class Hub(types.ModuleType):
    """A stand-in: gives copies of the folders in `models`, only of the files that are asked for."""

    def __init__(self, root):
        super().__init__("huggingface_hub")
        self.root, self.models, self.asked = root, {NAME: FIXTURES / "causal_repeated"}, []

    def snapshot_download(self, name, *, allow_patterns):
        self.asked.append((name, allow_patterns))
        if name not in self.models:
            raise ConnectionError("Name or service not known\nPlease check your internet connection")
        folder = self.root / name.replace("/", "--")
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.models[name].iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, folder)
        return str(folder)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to be in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def online(here, tmp_path, monkeypatch):
    """The stand-in, installed."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(tmp_path / "cache"))
    return sys.modules["huggingface_hub"]


@pytest.fixture
def absent(here, monkeypatch):
    """No `huggingface_hub`."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


def test_a_name_on_the_hub_is_the_model_that_is_there(online):
    config, variables = huggingface.load(NAME)
    expected, expected_variables = huggingface.load(FIXTURES / "causal_repeated")
    assert config == expected
    assert_identical(variables, expected_variables)


def test_a_local_folder_of_that_name_wins(online, here):
    shutil.copytree(FIXTURES / "bidirectional_masked", here / NAME)
    assert not huggingface.load(NAME)[0].causal
    assert not online.asked


def test_labels_and_tokenizer_come_without_the_weights(online, tmp_path):
    shutil.copytree(FIXTURES / "classifier", tmp_path / "model")
    (tmp_path / "model" / "spiece.model").write_bytes((FIXTURES.parent / "tokenizer" / "spiece.model").read_bytes())
    edit_fields(tmp_path / "model", vocab_size=2000)
    online.models["someone/classifier"] = tmp_path / "model"
    assert huggingface.load_labels("someone/classifier") == huggingface.load_labels(tmp_path / "model")
    tokenizer = tokenizers.load_tokenizer("someone/classifier")
    np.testing.assert_array_equal(
        tokenizer.encode("He sat"), tokenizers.load_tokenizer(tmp_path / "model").encode("He sat")
    )
    assert not (online.root / "someone--classifier" / WEIGHTS).exists()


def test_a_missing_package_is_named_with_both_ways_to_have_the_model(absent):
    with pytest.raises(extras.MissingPackageError) as error:
        huggingface.load(NAME)
    assert str(error.value) == (
        "'google/reformer-enwik8' is no folder here, and taking it from the Hugging Face hub needs the package "
        "'huggingface_hub', which is not installed. Run: pip install 'reformer[hub]', or in the clone: pip install -e "
        "'.[hub]'. Or, where there is a network, make that folder by: hf download google/reformer-enwik8 --local-dir "
        "google/reformer-enwik8"
    )


@pytest.mark.parametrize("read", [huggingface.load, huggingface.load_labels, tokenizers.load_tokenizer])
def test_without_a_network_the_command_that_downloads_it_is_named(online, read):
    online.models.clear()
    message = (
        r"^'google/reformer-enwik8' is no folder here, and the Hugging Face hub does not give it \(ConnectionError: "
        r"Name or service not known\)\. Name a folder .* hf download google/reformer-enwik8 --local-dir google/"
    )
    with pytest.raises(FileNotFoundError, match=message):
        read(NAME)


def test_a_model_that_has_only_pickle_is_refused_with_its_conversion(online, tmp_path):
    shutil.copytree(FIXTURES / "causal_repeated", tmp_path / "model", ignore=lambda *_: [WEIGHTS])
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"pickle")
    online.models[NAME] = tmp_path / "model"
    message = (
        r"'google/reformer-enwik8' has no model\.safetensors .*from_pretrained\('google/reformer-enwik8'\)\.save_pr"
    )
    with pytest.raises(FileNotFoundError, match=message):
        huggingface.load(NAME)
    assert not (online.root / "google--reformer-enwik8" / "pytorch_model.bin").exists()


@pytest.mark.parametrize("name", ["model", "./google/model", "../google/model", "~/model", "a/b/c", "/google/model"])
def test_what_can_only_be_a_path_is_never_asked_for(online, name, monkeypatch):
    monkeypatch.setenv("HOME", str(online.root))
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        huggingface.load(name)
    assert not online.asked


def test_a_path_object_is_a_path(online, here):
    assert hub.folder(here / "google" / "model", has_weights=True) == here / "google" / "model"
    with pytest.raises(FileNotFoundError, match=r"google/model/config\.json does not exist"):
        huggingface.load((here / "google" / "model").relative_to(here))
    assert not online.asked
