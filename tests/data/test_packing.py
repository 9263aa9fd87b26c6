"""Documents packed into windows, and kept apart in them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import ReformerLM
from reformer.data import load, packing, source, text
from tests.small_models import SMALL, init

LENGTH = 32


def _text(lengths, seed=0):
    rng = np.random.default_rng(seed)
    raw = b"\0".join(rng.integers(1, 250, length, np.uint8).tobytes() for length in lengths)
    train = np.frombuffer(raw, np.uint8)
    return text.TextData("a test", train, train, train[:0])


def _lengths(count=200, seed=1):
    return np.random.default_rng(seed).integers(1, 20, count)


def test_windows_hold_every_document_once_and_are_nearly_full():
    lengths = _lengths()
    ends = np.cumsum(lengths)
    windows = packing.pack(ends, LENGTH)
    places = sorted(place for window in windows for place in window)
    assert places == list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True))
    assert all(sum(end - first for first, end in window) <= LENGTH for window in windows)
    assert len(windows) <= 1.05 * np.ceil(ends[-1] / LENGTH)


def test_a_long_document_is_cut_and_its_rest_packed():
    windows = packing.pack(np.array([70, 80]), LENGTH)
    assert windows == [[(0, 32)], [(32, 64)], [(64, 70), (70, 80)]]


def test_packed_rows_have_every_byte_and_separator_and_padding_does_not_count():
    data = packing.Documents(_text(_lengths()), are_packed=True, are_apart=False)
    targets: list[np.ndarray] = []
    for batch in source.evaluation_batches(data, "valid", length=LENGTH, batch_size=4):
        np.testing.assert_array_equal(batch["mask"], batch["weights"] > 0)
        targets += [row[mask] for row, mask in zip(batch["targets"], batch["mask"], strict=True)]
        assert "documents" not in batch
    got = np.concatenate(targets).astype(np.uint8).tobytes()
    assert sorted(got.split(b"\0")) == sorted([b"", *data.text.train.tobytes().split(b"\0")])
    for batch, _ in zip(source.training_batches(data, length=LENGTH, batch_size=4, seed=0), range(3), strict=False):
        assert batch["mask"].shape == batch["weights"].shape == (4, LENGTH)
    assert data.baselines("valid", LENGTH).keys() == data.text.baselines("valid", LENGTH).keys()


@pytest.mark.parametrize("are_packed", [False, True])
def test_documents_are_numbered_and_begin_with_the_begin_id(are_packed):
    data = packing.Documents(_text(_lengths()), are_packed, are_apart=True)
    batch = next(source.training_batches(data, length=LENGTH, batch_size=4, seed=0))
    for tokens, targets, numbers in zip(batch["tokens"], batch["targets"], batch["documents"], strict=True):
        begins = np.append(True, np.diff(numbers) == 1)
        np.testing.assert_array_equal(begins[1:], targets[:-1] == 0)
        assert (tokens[begins] == text.BEGIN_ID).all()
        np.testing.assert_array_equal(tokens[~begins], targets[np.flatnonzero(~begins) - 1])


def test_nothing_is_wrapped_where_nothing_is_asked_for():
    plain = _text([5, 5])
    assert packing.wrap(plain, False, False) is plain
    assert packing.separator_of(plain.tokens, False, False) is None
    assert packing.separator_of(plain.tokens, True, False) == 0


BORDERS = (0, 19, 43, 70, 96)
NUMBERS = jnp.asarray(np.repeat(np.arange(4), np.diff(BORDERS))[None], jnp.int32)
TOKENS = jnp.asarray(np.random.default_rng(3).integers(0, SMALL.vocab_size, (1, 96)), jnp.int32)


def _config(kind, **changes):
    return dataclasses.replace(SMALL, attention_pattern=(kind,), num_layers=2, **changes)


def _logits(config, tokens, documents=NUMBERS):
    options = {"rngs": {"hash": jax.random.key(5)}, "documents": documents}
    return ReformerLM(config).apply({"params": init(config)}, tokens, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "local", "lsh"])
@pytest.mark.parametrize("looks_ahead", [False, True])
def test_logits_of_a_document_do_not_depend_on_the_others(kind, looks_ahead):
    """LSH too: every document has buckets of its own, so where it lies in the sorted list depends on lengths alone."""
    config = _config(kind, look_ahead=looks_ahead)
    changed = TOKENS.at[:, :43].add(1).at[:, 70:].add(3) % SMALL.vocab_size
    one, other = (np.asarray(_logits(config, tokens))[:, 43:70] for tokens in (TOKENS, changed))
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert np.abs(np.asarray(_logits(config, TOKENS, None) - _logits(config, changed, None))[:, 43:70]).max() > 1e-3


@pytest.mark.parametrize("kind", ["full", "local"])
def test_the_first_document_is_as_if_it_stood_alone(kind):
    config = _config(kind)
    alone = _logits(config, TOKENS[:, :19], None)
    np.testing.assert_allclose(_logits(config, TOKENS)[:, :19], alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["full", "local", "lsh"])
@pytest.mark.parametrize("reversible", [False, True])
def test_no_gradient_reaches_the_tokens_of_other_documents(kind, reversible):
    config = _config(kind, reversible=reversible, position_embedding="learned")
    params = init(config)
    weights = jnp.zeros((1, 96)).at[:, 43:70].set(1)

    def loss(params):
        options = {"rngs": {"hash": jax.random.key(5)}, "weights": weights, "documents": NUMBERS}
        return ReformerLM(config).apply({"params": params}, TOKENS, TOKENS, method="loss", **options)[0]

    gradient = np.abs(np.asarray(jax.grad(loss)(params)["embeddings"]["position"])).max(axis=1)
    assert (gradient[43:70] > 0).all()
    assert (gradient[:43] == 0).all() and (gradient[70:] == 0).all()


def test_the_fused_kernel_is_refused():
    with pytest.raises(ValueError, match=r"attention_implementation='pallas' does not keep documents apart"):
        _logits(_config("local", attention_implementation="pallas"), TOKENS)


def test_short_documents_of_subwords_tell_their_bytes(tmp_path):
    (tmp_path / "lines.jsonl").write_text("".join(f'{{"t": "the tree {i} in the wind"}}\n' for i in range(200)))
    fields = {"name": "text", "path": str(tmp_path), "cache_dir": str(tmp_path / "cache"), "text_field": "t"}
    fields |= {"valid_fraction": 0.1, "test_fraction": 0.1, "tokens": "subwords", "num_subwords": 290}
    data = load.load(fields | {"pack_documents": True, "separate_documents": True}, LENGTH)
    batches = source.evaluation_batches(data, "valid", length=LENGTH, batch_size=4)
    assert sum(batch["num_bytes"].sum() for batch in batches) == len(data.text.texts["valid"]) + 1  # the last separator
    assert set(data.assets) == {"subwords.model"} and data.unit == "token"
