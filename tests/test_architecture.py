"""The house rules, read off the source: who may import whom, and how large a file may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "rllib_mfq"
FILES = sorted(ROOT.rglob("*.py"))
LAYERS = ["mean_field", "population", "envs", "algorithm", "arena", "cli"]  # each sees those before
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "base", "constants", "misc"}


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module):
    """`rllib_mfq.population.sampler` -> `population`; None for the package itself."""
    return module.split(".")[1] if module.startswith("rllib_mfq.") else None


def imports(path):
    """Everything a file imports, wherever in the file, as absolute dotted names."""
    package = module_name(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            found |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    return found


def reachable(name):
    """All files of the package that importing a layer loads, besides the package itself."""
    files = {module_name(path): path for path in FILES}
    todo = [module for module in files if layer(module) == name]
    seen = set()
    while todo:
        module = todo.pop()
        if module in files and module not in seen and layer(module):
            seen.add(module)
            todo += imports(files[module])
    return [files[module] for module in seen]


def packages(path):
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("name", ["mean_field", "population"])
def test_the_mathematics_and_the_populations_import_no_ray(name):
    files = reachable(name)
    assert len(files) > 3
    for path in files:
        assert not packages(path) & {"ray", "tensorflow", "jax"}, path


def test_populations_import_no_torch_not_even_through_others():
    for path in reachable("population"):
        assert "torch" not in packages(path), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_layers_import_only_downwards(path):
    here = layer(module_name(path))
    if here is None or here.startswith("__"):
        return  # the package itself: public names and registration
    assert here in LAYERS, f"{path} belongs to no layer"
    for name in imports(path):
        there = layer(name)
        if there in LAYERS:
            assert LAYERS.index(there) <= LAYERS.index(here), f"{here} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_named_after_a_concept_and_small_enough_to_read(path):
    assert not set(path.relative_to(ROOT).with_suffix("").parts) & FORBIDDEN_NAMES
    assert len(path.read_text().splitlines()) <= 450


def test_the_scan_sees_imports_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path / "rllib_mfq")
    path = tmp_path / "rllib_mfq" / "population" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text("def f():\n import ray.tune\n from .. import envs\n from .y import z\n")
    found = imports(path)
    assert {"ray.tune", "rllib_mfq.envs", "rllib_mfq.population.y"} <= found
