"""The example of docs/heads.md trains a token classifier and a question answerer that have learned their tasks."""

import contextlib
import io
import pathlib
import re

import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "heads.md"


@pytest.mark.slow
def test_labels_of_tokens_and_spans_are_learned_as_the_page_shows():
    namespace: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as output:
        for example in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(example, PAGE.name, "exec"), namespace)
    of_tokens, of_spans = (int(share) / 100 for share in re.findall(r"(\d+)% of", output.getvalue()))
    # Two of three labels are 0; one of 496 spans is right by guessing.
    assert of_tokens > 0.8 and of_spans > 0.9, output.getvalue()
