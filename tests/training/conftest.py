"""A small experiment on a small file."""

import os
import random
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from configs import base
from reformer import sharding


def small_config(text_file: Path) -> ConfigDict:
    """A Reformer of one layer with LSH and width 16 on windows of 32 bytes; dropout on."""
    config = base.get_config()
    config.model.update(
        max_length=32,
        num_layers=1,
        attention_pattern=("lsh",),
        embed_dim=16,
        mlp_dim=32,
        num_heads=2,
        head_dim=8,
        lsh_chunk_length=8,
        local_chunk_length=8,
        dropout_rate=0.1,
    )
    config.data.update(name="text", path=str(text_file), valid_fraction=0.1, test_fraction=0.1)
    config.optimizer.update(schedule="cosine", learning_rate=0.05, warmup_steps=2, clip_norm=1.0)
    config.training.update(num_steps=6, batch_size=8, log_every_steps=1)
    config.evaluation.update(every_steps=4, batch_size=8, num_hash_seeds=2)
    config.checkpoint.every_steps = 2
    return config


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Compiles each program once for all workers and the processes they start."""
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    directory = str((base.parent if is_worker else base) / "compilation_cache")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = directory  # for processes
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "true"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    compilation_cache.reset_cache()  # JAX looks once whether there is one
    yield
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module", autouse=True)
def one_device_where_none_are_asked_for():
    """Programs for all eight devices take a third longer to compile; `config.sharding.data=8` has them."""

    def make_mesh(data=-1, fsdp=1, tensor=1, split_length=False, devices=None):
        if devices is None and (data, fsdp, tensor) == (-1, 1, 1):
            devices = jax.devices()[:1]
        return original(data, fsdp, tensor, split_length, devices)

    original = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", make_mesh)
        yield


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """A file of 20,000 bytes with something to learn."""
    words = ["the", "tree", "of", "a", "forest", "and", "its", "leaves", "in", "wind", "or", "rain"]
    text = " ".join(random.Random(0).choices(words, k=5500)).encode()[:20_000]
    path = tmp_path_factory.mktemp("data") / "words.txt"
    path.write_bytes(text)
    return path


@pytest.fixture
def config(text_file):
    """A fresh `small_config`."""
    return small_config(text_file)


@pytest.fixture(scope="session")
def make_config(text_file):
    """Returns fresh `small_config`s, for fixtures that live longer than a test."""
    return lambda: small_config(text_file)
