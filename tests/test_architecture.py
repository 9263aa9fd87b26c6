"""The house rules of docs/design.md and CONTRIBUTING.md that a machine can check."""

import ast
import dataclasses
import pathlib

import pytest

from reformer.config import ReformerConfig

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "reformer"
FILES = sorted([*PACKAGE.rglob("*.py"), *PACKAGE.glob("configs/*.py")])  # the second is a link
MAINS = sorted(path for path in ROOT.glob("*.py"))

# What a room of the package may import from the package, besides itself.
LEAVES = {"compilation", "config", "host", "sharding"}
MODELS = LEAVES | {"ops", "layers", "models"}
ALLOWED = {
    "config": set(),
    "sharding": set(),
    "host": set(),
    "compilation": {"host", "sharding"},
    "configs": {"config"},
    "ops": {"sharding"},
    "layers": LEAVES | {"ops"},
    "models": LEAVES | {"ops", "layers"},
    "export": MODELS,
    "interop": MODELS,
    "decoding": MODELS,
    "data": LEAVES,
    "tasks": MODELS | {"data"},
    "training": MODELS | {"configs", "data", "interop", "tasks"},
    "inspection": MODELS | {"data", "training"},
}
ALLOWED["commands"] = set(ALLOWED) - {"inspection"}
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


def _attributes_read(paths):
    trees = (ast.parse(path.read_text()) for path in paths)
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def _property_reads():
    """Map each property or method of ReformerConfig to the names it reads."""
    (tree,) = (
        node
        for node in ast.walk(ast.parse((PACKAGE / "config.py").read_text()))
        if isinstance(node, ast.ClassDef) and node.name == "ReformerConfig"
    )
    methods = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name != "__post_init__"]
    return {
        method.name: {node.attr for node in ast.walk(method) if isinstance(node, ast.Attribute)} for method in methods
    }


def test_every_config_field_is_read():
    read = _attributes_read(path for path in FILES if path != PACKAGE / "config.py")
    properties = _property_reads()
    for _ in properties:  # a property may be read through another property
        read |= {name for method, names in properties.items() if method in read for name in names}
    assert {field.name for field in dataclasses.fields(ReformerConfig)} - read == set()


@pytest.mark.parametrize("path", FILES + MAINS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_named_after_what_they_hold(path):
    assert path.name != "utils.py"
    assert len(path.read_text().splitlines()) <= 350
