"""What a trained model paints: new pictures, or the lower halves of given ones, in a grid."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from reformer.commands.generation import Generation, Prompt
from reformer.data import image_files, images, load
from reformer.data.source import chosen_examples

_GAP, _GAP_COLOUR = 2, 255  # between the pictures of a grid
_LABEL_HEIGHT = 12  # pixels above each, for letters of Pillow's own font
_READABLE = 72  # pixels of a side in which "completion 1" fits
_ENDINGS = (".png", ".pdf", ".webp", ".gif", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")
_HIDDEN = 128  # grey, in place of the half that is not given

Pictures = UInt8[np.ndarray, "pictures side side 3"]
WithGiven = UInt8[np.ndarray, "all side side 3"]


def read_given(paths: Sequence[Path], config: Any, num_validation: int, length: int) -> Int[np.ndarray, "count length"]:
    """Returns images to complete, as tokens.

    Args:
      paths: Of picture files.
      config: The `data` group of the run.
      num_validation: So many of its validation images too, evenly spread.
      length: Tokens of an image.

    Raises:
      ValueError: If a picture cannot be read or has another size, or there are not so many validation images.
    """
    given = [_read_picture(path, images.side_of(length)) for path in paths]
    if num_validation:
        data = load.load(config, length)
        num_images = data.num_examples("valid", length)
        if num_validation > num_images:
            raise ValueError(f"--complete={num_validation} exceeds the {num_images} validation images. Lower it.")
        indices = chosen_examples(data, "valid", length, num_validation)
        given += [data.example("valid", int(i), length).targets for i in indices]
    return np.array(given, np.int32).reshape(len(given), length)


def _read_picture(path: Path, side: int) -> np.ndarray:
    repair = f"Name a picture of {side}x{side} pixels, as those of the run."
    return np.ravel(image_files.decode_named(f"--image={path}", path, side, repair))


def make_prompts(given: Int[np.ndarray, "count length"], batch: int) -> list[Prompt]:
    """Returns `batch` prompts of nothing, or for each given image as many of its upper half."""
    begin = np.array([images.BEGIN_ID], np.int32)
    if not len(given):
        return [begin] * batch
    return [np.concatenate([begin, row[: len(row) // 2]]) for row in given for _ in range(batch)]


def paint(generation: Generation, length: int, report: Callable[[int], None]) -> Pictures:
    """Returns the pictures, prompts included; what was not painted is black.

    Args:
      generation: Of images.
      length: Tokens of an image.
      report: Called with the number of tokens that were painted of each picture.
    """
    rows = np.zeros((len(generation.prompts), length), np.int32)
    start = done = len(generation.prompts[0]) - 1  # the begin id is no part of the picture
    rows[:, :start] = np.stack(generation.prompts)[:, 1:]
    for new in generation.tokens():
        rows[:, done : done + new.shape[1]] = new
        done += new.shape[1]
        report(done - start)
    return np.stack([images.to_picture(row) for row in rows])


def beside_given(pictures: Pictures, given: Int[np.ndarray, "count length"]) -> tuple[WithGiven, int]:
    """Puts each given image and its upper half before its completions.

    Returns:
      The pictures row by row, and how many there are in a row.
    """
    originals = np.stack([images.to_picture(row) for row in given])
    halves = originals.copy()
    halves[:, halves.shape[1] // 2 :] = _HIDDEN
    completions = pictures.reshape(len(given), -1, *pictures.shape[1:])
    rows = np.concatenate([originals[:, None], halves[:, None], completions], axis=1)
    return rows.reshape(-1, *rows.shape[2:]), rows.shape[1]


def name_completions(num_given: int, batch: int) -> list[str]:
    """Returns what stands above the pictures of `beside_given`."""
    return ["given", "upper half", *(f"completion {i + 1}" for i in range(batch))] * num_given


def default_scale(side: int) -> int:
    """Returns how many pixels of the grid a pixel takes, so that a picture can be seen and its label read."""
    return -(-_READABLE // side)


def grid(
    pictures: Pictures, num_columns: int, labels: Sequence[str], scale: int = 1
) -> UInt8[np.ndarray, "height width 3"]:
    """Lays pictures out row by row, a white gap between them and a label above each.

    Args:
      pictures: All of one size.
      num_columns: In a row.
      labels: Of the pictures; what does not fit above its picture is cut off.
      scale: Pixels of a side of what a pixel becomes.
    """
    number, side = len(pictures), pictures.shape[1] * scale
    num_rows = -(-number // num_columns)
    height, width = _LABEL_HEIGHT + side + _GAP, side + _GAP
    canvas = np.full((num_rows * height - _GAP, num_columns * width - _GAP, 3), _GAP_COLOUR, np.uint8)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        top, left = i // num_columns * height, i % num_columns * width
        canvas[top : top + _LABEL_HEIGHT, left : left + side] = _draw_label(label, side)
        large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top + _LABEL_HEIGHT :][:side, left : left + side] = large
    return canvas


def _draw_label(label: str, width: int) -> np.ndarray:
    strip = Image.new("RGB", (width, _LABEL_HEIGHT), (_GAP_COLOUR,) * 3)
    ImageDraw.Draw(strip).text((0, 0), label, fill=(0, 0, 0), font=ImageFont.load_default())
    return np.asarray(strip)


def check_ending(path: Path) -> None:
    """Raises a ValueError unless pictures can be written into a file with such an ending."""
    if path.suffix.lower() not in _ENDINGS:
        raise ValueError(f"--out={path} must end with one of {', '.join(_ENDINGS)}: that says what is written.")
