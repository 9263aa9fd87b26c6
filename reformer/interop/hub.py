"""Models by their names on the Hugging Face hub, such as google/reformer-enwik8, wherever a local folder may stand."""

import os
import re
from pathlib import Path

from reformer.host import extras, paths
from reformer.interop.huggingface_config import WEIGHTS_FILE

# Owner and model. What begins with a dot, a slash or ~ can only be a path.
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SMALL_FILES = ("*.json", "*.model", "vocab.txt")  # the config, and the tokenizer of any kind


def folder(name: str | os.PathLike, has_weights: bool) -> Path:
    """Returns the local folder of a model: the one of this name, else what the hub has by it.

    `huggingface_hub` downloads into its cache, and takes what is there when it is offline.

    Args:
        name: A folder, or a string OWNER/MODEL; a folder of that name wins, and a `Path` is always one.
        has_weights: Whether `model.safetensors` is needed beside the small files.

    Returns:
        The folder; one that does not exist if its name can be none of the hub's.

    Raises:
        FileNotFoundError: if the download fails, or has no `model.safetensors`.
        MissingPackageError: if `huggingface_hub` is not installed.
        ValueError: if it is an address on the network.
    """
    directory = paths.local(name)
    if directory.exists() or not (isinstance(name, str) and _NAME.fullmatch(name)):
        return directory
    directory = _download(name, (*_SMALL_FILES, WEIGHTS_FILE) if has_weights else _SMALL_FILES)
    if has_weights and not (directory / WEIGHTS_FILE).is_file():
        raise FileNotFoundError(
            f"{name!r} has no {WEIGHTS_FILE} on the Hugging Face hub (or in {directory}, if that is all there is "
            "offline); pickle and sharded files are not read. Where transformers and torch are, write it to a folder "
            f"of this name by CLASS.from_pretrained({name!r}).save_pretrained({name!r}, safe_serialization=True), with "
            "the class in 'architectures' of its config.json."
        )
    return directory


def _download(name: str, files: tuple[str, ...]) -> Path:
    absent = f"{name!r} is no folder here"
    by_hand = f"Or, where there is a network, make that folder by: hf download {name} --local-dir {name}"
    try:
        with extras.needed_for(f"{absent}, and taking it from the Hugging Face hub", "hub"):
            import huggingface_hub
    except extras.MissingPackageError as error:
        raise extras.MissingPackageError(f"{error} {by_hand}") from error
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:  # those of its HTTP library too
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise FileNotFoundError(
            f"{absent}, and the Hugging Face hub does not give it ({reason}). Name a folder that exists, or a model of "
            f"the hub while there is a network. {by_hand}"
        ) from error
