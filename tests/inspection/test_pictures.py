"""What the pictures show, of layers that nobody had to run."""

import jax.numpy as jnp
import numpy as np
import pytest

from reformer.config import ReformerConfig
from reformer.inspection import pictures
from reformer.inspection.attention import Coverage
from reformer.inspection.measure import Layer, Sorting
from reformer.layers.kinds import KINDS

LENGTH, NUM_BUCKETS = 64, 8
CONFIG = ReformerConfig(max_length=LENGTH, lsh_chunk_length=8, local_chunk_length=8)


def make_layer(depth, kind="lsh"):
    """A layer with tokens in all buckets but the last one."""
    rng = np.random.default_rng(depth)
    buckets = np.minimum(rng.geometric(0.4, (2, 1, LENGTH)) - 1, NUM_BUCKETS - 2)
    weights = np.tril(rng.random((2, LENGTH, LENGTH)) ** 8) * (np.subtract.outer(np.arange(LENGTH), range(LENGTH)) < 16)
    shares = jnp.array([[0.3, 0.5, 0.7]] * 2)
    return Layer(
        depth=depth,
        kind=kind,
        num_tokens=LENGTH,
        plan=KINDS[kind].plan(CONFIG, LENGTH, False),
        sorting=Sorting(buckets, np.argsort(buckets, kind="stable"), NUM_BUCKETS) if kind == "lsh" else None,
        picture=weights,
        counts=(1, 2, 4),
        coverage=Coverage(
            *(shares / n for n in (1, 2, 4)), jnp.ones(2), jnp.ones(2), *(shares / n for n in (1, 2, 4, 8))
        ),
    )


def words_of(figure):
    """All that is written below the panels."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.slow
def test_every_picture_can_be_drawn(tmp_path):
    layers = [make_layer(0), make_layer(1)]
    draws = (pictures.draw_occupancy, pictures.draw_attention, pictures.draw_coverage, pictures.draw_buckets)
    sizes = [pictures.save(draw(layers), tmp_path / f"{draw.__name__}.png").stat().st_size for draw in draws]
    assert min(sizes) > 5000


@pytest.mark.parametrize("number", [1, 2, 3, 5, 6, 7])
def test_no_panel_is_empty(number):
    figure = pictures.draw_occupancy([make_layer(depth) for depth in range(number)])
    assert len(figure.axes) == number and all(axes.has_data() and axes.get_visible() for axes in figure.axes)


def test_occupancy_is_on_a_log_scale_where_an_empty_bucket_is_seen_and_every_colour_explained():
    figure = pictures.draw_occupancy([make_layer(0)])
    (axes,) = figure.axes
    assert axes.get_yscale() == "log" and axes.yaxis.get_major_formatter()(pictures._EMPTY) == "0"
    lowest = min(line.get_ydata().min() for line in axes.lines if len(line.get_ydata()) > 2)
    assert lowest == pictures._EMPTY == axes.get_ylim()[0]
    assert words_of(figure) == [
        "mean over heads and rounds",
        "their range",
        "slots that a query sees",
        "if all buckets were equal",
    ]


def test_attention_is_on_a_log_scale_and_what_is_out_of_sight_has_a_colour_of_its_own():
    figure = pictures.draw_attention([make_layer(0, "local"), make_layer(1)])
    *panels, bar = figure.axes
    assert [axes.get_title() for axes in panels] == ["layer 0 (local)", "layer 1 (lsh)"]
    assert "log scale" in bar.get_ylabel() and bar.get_yscale() == "log"
    assert words_of(figure) == ["out of sight: no weight at all"]


def test_coverage_explains_its_lines_once():
    figure = pictures.draw_coverage([make_layer(0, "local"), make_layer(1)])
    assert words_of(figure) == ["what the layer sees", "local windows of the same size", "as many random keys"]


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_ending_says_what_is_written(ending, magic, tmp_path):
    path = pictures.save(pictures.draw_buckets([make_layer(0)]), tmp_path / f"a.{ending}")
    assert path.read_bytes().startswith(magic)
