"""The small experiment of tests/training, for the commands that run it."""

from tests.training.conftest import compiled_once, config, make_config, one_device_where_none_are_asked_for, text_file

__all__ = ["compiled_once", "config", "make_config", "one_device_where_none_are_asked_for", "text_file"]
