"""What is compiled is kept where the next start finds it, unless somebody decided otherwise."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from reformer import compilation
from reformer.commands import command_line

FIELDS = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def cache_is_on():
    """JAX's cache is allowed, without a folder; all is put back."""
    before = {name: getattr(jax.config, name) for name in (*FIELDS, "jax_enable_compilation_cache")}
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_keep_what_they_compile_in_a_folder_for_this_processor(cache_is_on, tmp_path):
    command_line.Parser("").parse([f"--compilation_cache={tmp_path}/cache"])
    folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
    assert folder.parent == tmp_path / "cache" and folder.is_dir()
    assert jax.config.jax_compilation_cache_max_size > 0


def test_the_default_is_in_the_users_cache(cache_is_on, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    command_line.Parser("").parse([])
    assert pathlib.Path(jax.config.jax_compilation_cache_dir).parent == tmp_path / ".cache" / "reformer" / "compiled"


def test_it_can_be_switched_off(cache_is_on, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    command_line.Parser("").parse(["--compilation_cache=off"])
    jax.config.update("jax_enable_compilation_cache", False)  # JAX_ENABLE_COMPILATION_CACHE=false
    command_line.Parser("").parse([])
    assert jax.config.jax_compilation_cache_dir is None and not list(tmp_path.iterdir())


def test_a_folder_that_was_chosen_for_jax_stays(cache_is_on, tmp_path):
    jax.config.update("jax_compilation_cache_dir", "/chosen")
    command_line.Parser("").parse([f"--compilation_cache={tmp_path}"])
    assert jax.config.jax_compilation_cache_dir == "/chosen"


def test_a_folder_that_cannot_be_made_is_done_without(cache_is_on, tmp_path):
    (tmp_path / "file").write_text("")
    command_line.Parser("").parse([f"--compilation_cache={tmp_path}/file/cache"])
    assert jax.config.jax_compilation_cache_dir is None


def test_the_tests_do_not_use_the_users_cache():
    assert not jax.config.jax_enable_compilation_cache or jax.config.jax_compilation_cache_dir


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_a_damaged_entry_is_compiled_again(tmp_path):
    program = (
        "import sys, jax, jax.numpy as jnp\n"
        "from reformer import compilation\n"
        "compilation._CACHE_SECONDS = 0\n"
        "compilation.keep_compiled(sys.argv[1])\n"
        "hits = []\n"
        "jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))\n"
        "print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).sum())\n"
        "print(sum(name.endswith('cache_hits') for name in hits))\n"
    )
    environment = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}

    def start():
        command = [sys.executable, "-W", "ignore", "-c", program, tmp_path]
        ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return ended.stdout.split()

    first, second = start(), start()
    assert first[1] == "0" and int(second[1]) > 0 and first[0] == second[0]
    for entry in tmp_path.rglob("*-cache"):
        entry.write_bytes(entry.read_bytes()[:100])
    assert start()[0] == first[0]


def test_what_a_kill_left_half_written_is_deleted_at_the_next_start(tmp_path):
    for name in ("whole-cache", "whole-atime", "half-cache", "new-cache"):
        (tmp_path / name).write_bytes(b"x")
    os.utime(tmp_path / "half-cache", (0, 0))
    os.utime(tmp_path / "whole-cache", (0, 0))
    compilation._drop_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"whole-cache", "whole-atime", "new-cache"}
