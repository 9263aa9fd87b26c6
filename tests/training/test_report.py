"""What is said and drawn when a run ends."""

import json

import matplotlib
import numpy as np
import pytest

from reformer.training import report


def test_the_table_shows_accuracy_where_it_is_known():
    table = report.table({"this model": 0.25, "label counts": 1.5, "another": 2.0}, "image", {"this model": 0.984})
    assert table.splitlines() == [
        "  this model    0.250 bits/image  accuracy 98.40%",
        "  label counts  1.500 bits/image",
        "  another       2.000 bits/image",
    ]


def test_the_table_shows_bits_alone_where_they_are_what_counts():
    assert report.table({"this model": 2.08}, "byte") == "  this model  2.080 bits/byte"


@pytest.fixture
def run(tmp_path):
    """A workdir with a course of 100 noisy records and two evaluations."""
    noise = np.random.default_rng(0).normal(size=100)
    train = [{"split": "train", "step": i + 1, "bits_per_byte": 8 / (i + 1) + 2 + 0.1 * noise[i]} for i in range(100)]
    valid = [{"split": "valid", "step": step, "bits_per_byte": 2 + 8 / step} for step in (50, 100)]
    lines = [json.dumps(record) + "\n" for record in [*train, *valid]]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    return tmp_path


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_the_ending_says_what_is_written(name, magic, run):
    assert report.draw_curves(run, {"gzip -9": 2.1}, "byte", run / name).read_bytes().startswith(magic)


def test_curves_are_titled_and_name_their_final_values(run):
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        text = report.draw_curves(run, {"gzip -9": 2.1}, "byte", run / "curves.svg").read_text()
    assert f"{run.name}: bits per byte" in text and "gzip -9: 2.100" in text
    assert "validation: 2.080 after step 100" in text and "train, smoothed: " in text


def test_smoothing_keeps_a_constant_and_halves_noise():
    assert report._smooth(np.full(50, 3.0)) == pytest.approx(np.full(50, 3.0))
    noise = np.random.default_rng(0).normal(size=400)
    assert report._smooth(noise).std() < 0.5 * noise.std()
    assert report._smooth(np.array([1.0, 2.0])).tolist() == [1.0, 2.0]


def test_a_run_without_records_has_a_picture_all_the_same(tmp_path):
    assert report.draw_curves(tmp_path, {}, "byte").read_bytes().startswith(b"\x89PNG")
