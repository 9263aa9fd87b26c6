"""generate.py: what it writes and paints, what it refuses, and that a seed decides everything."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from configs import base
from reformer import num_buckets
from reformer.commands import generate, generation, painting
from reformer.data import images, load, text
from reformer.training import settings
from tests.training.runs import save_untrained


@pytest.fixture(scope="module")
def text_run(tmp_path_factory, make_config):
    """The workdir of a run on text."""
    config = make_config()
    return save_untrained(config, tmp_path_factory.mktemp("text") / "run")


@pytest.fixture(scope="module")
def image_run(tmp_path_factory, make_config):
    """The workdir of a run on images of 4x4."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in {"train": 4, "valid": 3}.items():
        (folder / "data" / split).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "data" / split / f"{i}.png")
    config = make_config()
    config.data.update(name="images", path=str(folder / "data"))
    config.model.update(vocab_size=images.VOCAB_SIZE, max_length=48)
    return save_untrained(config, folder / "run")


def run(capsys, *arguments):
    """Returns what was printed before the last line, and the record that is the last line."""
    generate.main(list(arguments))
    *lines, last = capsys.readouterr().out.splitlines()
    return "\n".join(lines), json.loads(last)


@pytest.mark.slow
def test_text_continues_its_prompt_and_the_seed_decides_it(text_run, capsys, tmp_path):
    arguments = [f"--workdir={text_run}", "--prompt=the tree", "--num_tokens=20", "--batch=2"]
    first, record = run(capsys, *arguments, f"--out={tmp_path / 'a.txt'}")
    again, _ = run(capsys, *arguments, f"--out={tmp_path / 'b.txt'}")
    other, _ = run(capsys, *arguments, "--seed=1")
    assert first == again != other
    assert first.startswith("the tree") and "--- 2 ---\nthe tree" in first
    assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "b.txt").read_bytes()
    assert (record["samples"], record["num_tokens"], record["seed"]) == (2, 20, 0)


@pytest.mark.slow
def test_prompts_of_different_lengths_and_a_file_are_continued_together(text_run, capsys, tmp_path):
    (tmp_path / "prompt.txt").write_text("in the wind")
    printed, record = run(
        capsys, f"--workdir={text_run}", "--prompt=a", f"--prompt_file={tmp_path / 'prompt.txt'}", "--num_tokens=5"
    )
    assert record["samples"] == 2
    assert printed.startswith("a") and "in the wind" in printed


@pytest.mark.slow
def test_a_stop_byte_ends_every_text(text_run):
    free = generate.parse([f"--workdir={text_run}", "--prompt=x", "--num_tokens=30", "--batch=3"])
    rows = generation.write_text(free.generation)
    stop = next(chr(byte) for byte in rows[0][5:] if byte < 128)
    stopped = generate.parse([f"--workdir={text_run}", "--prompt=x", "--num_tokens=30", "--batch=3", f"--stop={stop}"])
    expected = [b"x" + b"".join(row[1:].partition(stop.encode())[:2]) for row in rows]
    assert generation.write_text(stopped.generation) == expected != rows


@pytest.mark.slow
def test_pictures_are_a_grid_of_the_size_that_is_asked_for(image_run, capsys, tmp_path):
    _, record = run(capsys, f"--workdir={image_run}", "--batch=3", "--scale=1", f"--out={tmp_path / 'grid.png'}")
    assert record["num_tokens"] == 48
    # 2 x 2 pictures of 4 pixels with a gap of 2, and a label of 12 above each
    assert Image.open(tmp_path / "grid.png").size == (10, 34)


@pytest.mark.slow
def test_completions_stand_beside_the_image_and_keep_its_upper_half(image_run, capsys):
    _, record = run(capsys, f"--workdir={image_run}", "--complete=2", "--batch=2", "--scale=1")
    assert record["num_tokens"] == 24
    pixels = np.asarray(Image.open(record["out"]))
    assert pixels.shape == (34, 22, 3)  # two rows of: image, half, two completions
    pixels = pixels[12:]  # without the labels
    for left in (6, 12, 18):
        np.testing.assert_array_equal(pixels[:2, left : left + 4], pixels[:2, :4])
    assert (pixels[2:4, 6:10] == 128).all()


def test_a_grid_is_scaled_and_labelled_and_its_pictures_stay_what_they_are():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    scale = painting.default_scale(4)
    grid = painting.grid(pictures, 2, ["1", "2", "3"], scale)
    assert grid.shape == (2 * (72 + 12) + 2, 2 * 72 + 2, 3)
    np.testing.assert_array_equal(grid[12:84:scale, 74::scale], pictures[1])
    assert (grid[:12, :72] < 128).any() and (grid[86:98, 74:] == 255).all()  # a label, and none where no picture is


def test_a_label_that_does_not_fit_touches_no_picture():
    pictures = np.full((2, 4, 4, 3), 7, np.uint8)
    grid = painting.grid(pictures, 2, ["completion 1", "completion 2"])
    assert (grid[12:, :4] == 7).all() and (grid[:, 4:6] == 255).all()


def test_completions_are_named_beside_what_is_given():
    names = ["given", "upper half", "completion 1", "completion 2"]
    assert painting.name_completions(2, 2) == names * 2


def test_given_images_are_spread_over_the_validation_split(image_run, make_config):
    config = make_config()
    config.data.update(name="images", path=str(image_run.parent / "data"))
    data = load.load(config.data, 48)
    given = painting.read_given([], config.data, 3, 48)
    np.testing.assert_array_equal(given, [data.example("valid", i, 48).targets for i in range(3)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch=0"], r"--batch=0 must be at least 1"),
        (["--seed=4294967296"], r"--seed=4294967296 must be from 0 to 2147483647"),
        (["--num_tokens=30"], r"exceed max_length=32 .* start anew .* such as keep_last=16 \(--keep_last=16\)"),
        (["--keep_last=32"], r"keep_last=32 must be from 1 to 31"),
        (["--keep_last=0"], r"keep_last=0 must be from 1 to 31"),
        (["--temperature=-1"], r"temperature=-1\.0 must be at least 0"),
        (["--top_p=2"], r"top_p=2\.0 must be above 0 and at most 1"),
        (["--stop=end"], r"--stop='end' must be one character"),
        (["--complete=1"], r"--complete, --image and --scale are for runs on images"),
        (["--scale=2"], r"--complete, --image and --scale are for runs on images"),
        (["--scale=0"], r"--scale=0 must be from 1 to 64"),
        (["--out=."], r"--out=. must be a file in a folder that exists"),
        (["--config.evaluation.hash_seed=1"], r"this has no effect here"),
        (["--config.data.length=16"], r"this has no effect here"),
        (["--prompt_file=no/such/file"], r"--prompt_file=no.such.file cannot be read \(No such file"),
        (["--checkpoint=9"], r"checkpoint='9' does not exist"),
        (["--out=no/such/folder/x.txt"], r"must be a file in a folder that exists"),
        (["--config.model.num_heads=4"], r"the trained parameters do not allow this"),
        (["--tempreature=1"], r"there is no flag --tempreature\. Did you mean --temperature"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_computed(text_run, arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        generate.parse([f"--workdir={text_run}", "--prompt=abc", *arguments])


def test_prompts_are_refused_where_pictures_are_painted(image_run):
    with pytest.raises(ValueError, match="are for runs on text"):
        generate.parse([f"--workdir={image_run}", "--prompt=a"])
    with pytest.raises(ValueError, match=r"--out=.*a.txt must end with one of .png, .pdf"):
        generate.parse([f"--workdir={image_run}", f"--out={image_run}/a.txt"])
    with pytest.raises(ValueError, match="--complete=4 exceeds the 3 validation images"):
        generate.parse([f"--workdir={image_run}", "--complete=4"])
    with pytest.raises(ValueError, match="--num_tokens=49 exceeds the 48 that an image lacks"):
        generate.parse([f"--workdir={image_run}", "--num_tokens=49"])
    with pytest.raises(ValueError, match="--stop and --keep_last are for runs on text"):
        generate.parse([f"--workdir={image_run}", "--keep_last=4"])


def test_pictures_of_files_are_completed_and_others_refused(image_run, tmp_path):
    picture = sorted((image_run.parent / "data" / "valid").iterdir())[0]
    job = generate.parse([f"--workdir={image_run}", f"--image={picture}", "--batch=2"])
    np.testing.assert_array_equal(job.given[0], np.asarray(Image.open(picture)).ravel())
    assert [len(prompt) for prompt in job.generation.prompts] == [25, 25]
    (tmp_path / "no_picture.png").write_text("text")
    with pytest.raises(ValueError, match=r"no_picture\.png cannot be used: .*\. Name a picture of 4x4 pixels"):
        generate.parse([f"--workdir={image_run}", f"--image={tmp_path / 'no_picture.png'}"])


@pytest.mark.slow
def test_devices_that_share_model_and_prompts_write_the_same(text_run):
    arguments = [f"--workdir={text_run}", "--prompt=ab", "--batch=4", "--num_tokens=6", "--temperature=0"]
    devices = ["--config.sharding.data=2", "--config.sharding.fsdp=2", "--config.sharding.tensor=2"]
    one, eight = (generate.parse([*arguments, *more]).generation for more in ([], devices))
    assert (one.mesh.size, eight.mesh.size) == (1, 8)
    of_one, of_eight = (np.concatenate(list(each.tokens()), axis=1) for each in (one, eight))
    np.testing.assert_array_equal(of_one, of_eight)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.sharding.data=2", "The number of prompts=1 does not divide over config.sharding.data \\* fsdp=2"),
        ("--config.sharding.tensor=3", "config.model.num_heads=2 does not divide over config.sharding.tensor=3"),
        ("--config.sharding.tensor=9", "do not fit 8 devices"),
        ("--config.sharding.split_length=True", "split_length=True has no effect here"),
    ],
)
def test_devices_that_cannot_share_the_work_are_refused(text_run, argument, message):
    with pytest.raises(ValueError, match=message):
        generate.parse([f"--workdir={text_run}", "--prompt=abc", argument])


def test_the_buckets_are_those_of_the_training_windows(text_run):
    job = generate.parse([f"--workdir={text_run}", "--prompt=a"])
    assert job.generation.model_config.num_buckets == num_buckets(32, job.generation.model_config)


def test_a_character_that_is_cut_off_is_shown_as_such(text_run, monkeypatch, capsys):
    job = generate.parse([f"--workdir={text_run}", "--prompt=a", "--batch=2"])
    monkeypatch.setattr(generation.Generation, "tokens", lambda self: iter([np.array([[0xC3], [0x62]])]))
    assert generation.write_text(job.generation) == [b"a\xc3", b"ab"]
    assert capsys.readouterr().out == "a\ufffd\n--- 2 ---\nab\n"


def test_stop_ids_are_bytes():
    assert generation.stop_id(None) is None
    assert generation.stop_id("\n") == 10
    assert generation.stop_id(os.fsdecode(b"\xe9")) == 0xE9
    with pytest.raises(ValueError, match="one byte"):
        generation.stop_id("ä")


def test_bytes_of_a_prompt_stay_what_they_are(text_run, monkeypatch, capsys, tmp_path):
    (tmp_path / "prompt").write_bytes(b"\xff\x80 b\r")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfb")
    arguments = [f"--workdir={text_run}", f"--prompt={os.fsdecode(b'caf' + bytes([0xE9]))}", "--prompt=caf\u00e9"]
    job = generate.parse([*arguments, f"--prompt_file={tmp_path / 'prompt'}", f"--out={tmp_path / 'out'}"])
    assert [text.decode(ids) for ids in job.generation.prompts] == [b"caf\xe9", b"caf\xc3\xa9", b"\xff\x80 b\r"]
    monkeypatch.setattr(generation.Generation, "tokens", lambda self: iter([np.full((3, 1), 0xE9)]))
    generate.write(job)
    assert (tmp_path / "out").read_bytes() == b"caf\xe9\xe9\ncaf\xc3\xa9\xe9\n\xff\x80 b\r\xe9\n"
    capsys.readouterr().out.encode()  # the terminal gets text
    (marked,) = generation.text_prompts([], tmp_path / "marked", 1)
    assert text.decode(marked) == b"b"


def test_a_long_prompt_is_taken_where_its_latest_bytes_are_kept(text_run):
    arguments = [f"--workdir={text_run}", f"--prompt={'x' * 40}"]
    with pytest.raises(ValueError, match=r"prompt of 41 tokens and num_tokens=1 exceed max_length=32 .*--keep_last=16"):
        generate.parse(arguments)
    made = generate.parse([*arguments, "--keep_last=20"]).generation
    assert (made.num_tokens, made.keep_last, len(made.prompts[0])) == (500, 20, 41)


def test_a_run_on_another_task_is_refused(tmp_path):
    config = base.get_config()
    config.task.name = "masked"
    settings.write(tmp_path / "config.json", config)
    with pytest.raises(ValueError, match=r"config.task.name='masked'. This program needs a language model"):
        generate.parse([f"--workdir={tmp_path}"])
