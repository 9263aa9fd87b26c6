"""The house rules of docs/design.md and CONTRIBUTING.md that a machine can check."""

import ast
import dataclasses
import io
import pathlib
import re
import tokenize

import pytest

from reformer.config import ReformerConfig

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "reformer"
FILES = sorted([*PACKAGE.rglob("*.py"), *PACKAGE.glob("configs/*.py")])  # the second is a link
MAINS = sorted(path for path in ROOT.glob("*.py"))

# What a room of the package may import from the package, besides itself.
LEAVES = {"compilation", "config", "host", "options", "sharding"}
MODELS = LEAVES | {"ops", "layers", "models"}
ALLOWED = {
    "config": set(),
    "sharding": set(),
    "host": {"config"},
    "compilation": {"host", "sharding"},
    "configs": LEAVES | {"data", "tasks", "training"},
    "reference": {"config"},
    "ops": {"sharding"},
    "layers": LEAVES | {"ops"},
    "models": LEAVES | {"ops", "layers"},
    "interop": MODELS,
    "decoding": MODELS,
    "data": LEAVES,
    "tasks": MODELS | {"data"},
    "training": MODELS | {"data", "interop", "tasks"},
    "inspection": MODELS | {"data", "training"},
}
ALLOWED["commands"] = set(ALLOWED) - {"inspection", "reference"}
ALLOWED["inspection"] |= {"commands"}
ALLOWED["__init__"] = set(ALLOWED)
FORBIDDEN_IN_OPS = {"flax", "optax", "orbax", "grain", "absl", "ml_collections", "logging", "os", "pathlib"}


def _part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path):
    """Yield every module that a file imports, by its absolute name, `from a import b` as both `a` and `a.b`."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    part = _part(path)
    assert part in ALLOWED, f"{part} has no place in the architecture: add it to ALLOWED and to docs/design.md."
    imported = {name.split(".")[1] for name in _imports(path) if name.startswith("reformer.")} & set(ALLOWED)
    assert imported - {part} <= ALLOWED[part]


@pytest.mark.parametrize("path", sorted((PACKAGE / "ops").rglob("*.py")), ids=lambda path: path.name)
def test_ops_are_pure_jax(path):
    assert not {name.split(".")[0] for name in _imports(path)} & FORBIDDEN_IN_OPS


def test_the_reference_needs_nothing_but_jax_and_the_config():
    modules = {name for name in _imports(PACKAGE / "reference.py")}
    ours = {name for name in modules if name.startswith("reformer")}
    assert ours == {"reformer.config", "reformer.config.ReformerConfig"}
    assert {name.split(".")[0] for name in modules - ours} <= {"jax", "jaxtyping", "math"}


def _config_reads(source):
    """What a source reads of anything that is called a config: `config.x`, `self.config.x`, `encoder_config.x`."""

    def is_config(node):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        return name == "config" or name.endswith("_config")

    attributes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    return {node.attr for node in attributes if isinstance(node.ctx, ast.Load) and is_config(node.value)}


def test_a_read_of_a_field_is_an_attribute_of_a_config():
    source = "x.causal; config.embed_dim; self.config.head_dim; y = f(decoder_config.num_heads); config.mlp_dim = 1"
    assert _config_reads(source) == {"embed_dim", "head_dim", "num_heads"}


def _property_reads():
    """Map each property or method of ReformerConfig to the names it reads."""
    (tree,) = (
        node
        for node in ast.walk(ast.parse((PACKAGE / "config.py").read_text()))
        if isinstance(node, ast.ClassDef) and node.name == "ReformerConfig"
    )
    methods = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name != "__post_init__"]
    return {
        method.name: {
            node.attr
            for node in ast.walk(method)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
        }
        for method in methods
    }


def test_every_config_field_is_read():
    # By what computes: the configs of experiments and of Hugging Face have fields of the same names.
    rooms = ("ops", "layers", "models", "decoding", "inspection")
    read = {name for path in FILES if _part(path) in rooms for name in _config_reads(path.read_text())}
    properties = _property_reads()
    for _ in properties:  # a property may be read through another property
        read |= {name for method, names in properties.items() if method in read for name in names}
    assert {field.name for field in dataclasses.fields(ReformerConfig)} - read == set()


@pytest.mark.parametrize("path", FILES + MAINS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_named_after_what_they_hold(path):
    assert path.name != "utils.py"
    assert len(path.read_text().splitlines()) <= 350


def _reading_list():
    page = (ROOT / "README.md").read_text()
    return [ROOT / path for path in re.findall(r"^\d+\. \[`([^`]+)`\]\(\1\)", page, flags=re.MULTILINE)]


def _num_code_lines(source):
    """Lines that are neither empty nor a comment nor part of a docstring."""
    no_code = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {line for t in tokens if t.type not in no_code for line in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return len(lines)


def test_lines_of_code_are_counted_without_docstrings_comments_and_empty_lines():
    source = '"""Of the\nmodule."""\n\n# Why.\nx = 1  # why\n\n\ndef f():\n    """Of f."""\n    return [\n        x]\n'
    assert _num_code_lines(source) == 4


def test_the_reading_list_is_short_and_begins_with_the_reference():
    paths = _reading_list()
    assert paths[0] == PACKAGE / "reference.py"
    assert len(paths) == len(set(paths)) <= 10
    assert sum(_num_code_lines(path.read_text()) for path in paths) <= 1500
