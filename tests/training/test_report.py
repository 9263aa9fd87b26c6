"""What is said before the first step and by a dry run, and what is said and drawn when a run ends."""

import json

import jax
import matplotlib
import numpy as np
import pytest

from reformer.commands import train
from reformer.training import loop, report


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


@pytest.fixture(scope="module")
def known(make_config, tmp_path_factory):
    """The summary of the small run on data 2, fsdp 2, tensor 2, and the shapes of its state."""
    config = make_config()
    config.model.update(num_layers=2, attention_pattern=("local", "lsh"))
    config.sharding.update(fsdp=2, tensor=2)
    run = loop.prepare(config, str(tmp_path_factory.mktemp("dry") / "run"))
    result = loop.dry_run(run)
    assert not run.workdir.exists()
    return run, result


def row(known, group, name):
    """The row of a parameter with single spaces."""
    lines = known[1].table.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(group))
    return " ".join(next(line for line in lines[start + 1 :] if line.startswith(f"  {name} ")).split())


@pytest.mark.slow
def test_every_line_fits_80_columns(known):
    lines = [*known[1].table.splitlines(), *known[1].text.splitlines()]
    assert max(map(len, lines)) <= report.WIDTH


@pytest.mark.slow
def test_what_every_run_says_are_ten_lines_at_most(known):
    lines = known[1].text.splitlines()
    assert len(lines) <= 10
    assert lines[0] == "model: 2 layers local-lsh, embed 16, 2 heads of 8,"


@pytest.mark.slow
def test_a_parameter_has_its_shape_number_bytes_and_what_it_is_split_over(known):
    # 259 x 16 numbers of 4 bytes; the columns are split over 2 devices.
    assert row(known, "embeddings", "token") == "token 259 x 16 4,144 8.09 KiB -, fsdp"
    # 16 x 2 x 8 numbers; rows over 2 devices and heads over 2.
    assert row(known, "lsh attention", "value/kernel") == "value/kernel 16 x 2 x 8 256 256 B fsdp, tensor, -"


@pytest.mark.slow
def test_layers_that_are_alike_share_a_row(known):
    # Both feed-forward layers: 2 x 16 x 32 numbers, a quarter of the bytes on each device.
    assert row(known, "feed-forward", "hidden/kernel") == "hidden/kernel 16 x 32 1,024 1 KiB fsdp, tensor"
    words = " ".join(known[1].table.split())
    assert "feed-forward 2 layers " in words and "lsh attention 1 layer " in words


@pytest.mark.slow
def test_the_rows_add_up_to_all_parameters(known):
    run, result = known
    with jax.set_mesh(run.mesh):
        params = loop.make_programs(run.config, run.mesh).target.params
    table = result.table.splitlines()[1:]
    numbers = [int(word.replace(",", "")) for line in table if line.startswith(" ") for word in [_number(line)]]
    assert sum(numbers) == sum(leaf.size for leaf in jax.tree.leaves(params)) == result.record["num_parameters"]


def _number(line):
    words = line.split()
    return words[next(i for i, word in enumerate(words) if word in ("B", "KiB")) - 2]


@pytest.mark.slow
def test_the_step_is_described(known):
    _, text, record = known[1]
    assert "step: 8 examples x 32 tokens = 256 tokens" in text
    assert record["tokens_per_step"] == 256 and record["flops_per_step"] > 0
    assert record["memory_bytes_per_device"] > record["num_parameters"] / 2
    # 2 streams x 2 examples x 32 tokens x 16 features x 4 bytes
    assert "the two residual streams take 8 KiB, whatever the number of layers" in text
    assert "compiled the training step in " in text


def test_adamw_has_twice_the_bytes_of_the_parameters_in_its_state(config, tmp_path):
    config.optimizer.name = "adamw"
    run = loop.prepare(config, str(tmp_path / "run"))
    with jax.set_mesh(run.mesh):
        target = loop.make_programs(run.config, run.mesh).target
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (target.params, target.optimizer)]
    assert 2 * sizes[0] <= sizes[1] < 2 * sizes[0] + 5
    described = report._describe_state(target).splitlines()
    assert described[0].startswith(f"parameters: {sizes[0]:,}, ")


@pytest.mark.parametrize(
    ("number", "base", "text"),
    [(0, 1024, "0 "), (1023, 1024, "1023 "), (1536, 1024, "1.5 K"), (2.5e12, 1000, "2.5 T"), (3e20, 1000, "300000 P")],
)
def test_numbers_have_prefixes(number, base, text):
    assert report._with_prefix(number, base) == text


@pytest.mark.slow
def test_a_dry_run_ends_with_one_json_object_and_writes_nothing(config, text_file, tmp_path, capsys):
    root = train.DEFAULT_CONFIG.parent
    arguments = [f"--config={root}/text.py:tiny", f"--workdir={tmp_path}/run", f"--config.data.path={text_file}"]
    small = ["--config.model.max_length=32", "--config.model.embed_dim=16", "--config.training.batch_size=8"]
    small += ["--config.model.attention_pattern=('local',)", "--config.model.num_layers=1"]
    train.main([*arguments, *small, "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:1] == ["hidden/kernel"] for line in lines)
    last = json.loads(lines[-1])
    assert last["tokens_per_step"] == 32 * 8 and last["compile_seconds"] > 0
    assert not list(tmp_path.iterdir())
