"""The house rules, read off the source: who may import whom, and how large a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [  # each may import those before it, and its own files
    "rllib_mfq.mean_field",
    "rllib_mfq.population",
    "rllib_mfq.replay",
    "rllib_mfq.envs",
    "rllib_mfq.algorithm",
    "rllib_mfq.arena",
    "rllib_mfq.experiments",
    "rllib_mfq",  # public names and registration
    "rllib_cli",
]
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "base", "constants", "misc"}


def modules(root):
    """The files of both packages by their dotted names."""
    found = {}
    for package in ("rllib_mfq", "rllib_cli"):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name, path):
    """`(module, name in it or None)` of everything that a file imports, wherever in the file."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((origin, alias.name) for alias in node.names)


def graph(root):
    """For every file, the files of both packages that it imports."""
    files = modules(root)
    return {
        name: {
            f"{origin}.{part}" if f"{origin}.{part}" in files else origin
            for origin, part in imports(name, path)
        }
        & set(files)
        for name, path in files.items()
    }


def circle(edges):
    """Files that import each other in a circle, in order; empty if there is none."""
    state, trail = {}, []

    def visit(name):
        if state.get(name) == "done":
            return []
        if name in trail:
            return trail[trail.index(name) :]
        trail.append(name)
        for other in sorted(edges[name]):
            if found := visit(other):
                return found
        trail.pop()
        state[name] = "done"
        return []

    for name in edges:
        if found := visit(name):
            return found
    return []


def layer(name):
    """The layer of a file: the longest that its name begins with."""
    inside = [each for each in LAYERS if name == each or name.startswith(f"{each}.")]
    return max(inside, key=len)


def upwards(edges):
    """Imports from a lower layer of a higher one."""
    return [
        f"{name} imports {other}"
        for name, others in edges.items()
        for other in sorted(others)
        if LAYERS.index(layer(other)) > LAYERS.index(layer(name))
    ]


def reachable(name):
    """All files that importing a layer loads, besides the package itself."""
    files, edges = modules(ROOT), graph(ROOT)
    todo, seen = [each for each in files if layer(each) == name], set()
    while todo:
        each = todo.pop()
        if each not in seen and each != "rllib_mfq":
            seen.add(each)
            todo += edges[each]
    return {each: files[each] for each in seen}


def packages(name, path):
    return {origin.split(".")[0] for origin, _ in imports(name, path)}


def test_no_file_imports_itself_in_a_circle():
    assert circle(graph(ROOT)) == []


def test_layers_import_only_downwards():
    assert upwards(graph(ROOT)) == []


def plant(tmp_path, **files):
    """A small house: its packages are empty but for the given files, `layer__file=source`."""
    for each in LAYERS:
        folder = tmp_path.joinpath(*each.split("."))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text("")
    for name, source in files.items():
        folder, _, file = name.partition("__")
        (tmp_path / "rllib_mfq" / folder / f"{file}.py").write_text(source)
    return graph(tmp_path)


def test_a_planted_circle_is_found_even_inside_functions(tmp_path):
    edges = plant(
        tmp_path,
        arena__a="from rllib_mfq.arena import b\n",
        arena__b="def f():\n    from .c import x\n",
        arena__c="if False:\n    import rllib_mfq.arena.a\n",
    )
    names = ["rllib_mfq.arena.a", "rllib_mfq.arena.b", "rllib_mfq.arena.c"]
    assert circle(edges) == names


def test_a_planted_import_of_a_higher_layer_is_found(tmp_path):
    edges = plant(
        tmp_path,
        population__a="def f():\n    from rllib_mfq.algorithm import b\n",
        algorithm__b="from rllib_mfq import population\n",
    )
    assert upwards(edges) == ["rllib_mfq.population.a imports rllib_mfq.algorithm.b"]


def test_files_that_share_a_package_make_no_circle(tmp_path):
    edges = plant(
        tmp_path,
        arena__a="from rllib_mfq.arena import b, c\n",
        arena__b="from rllib_mfq.arena import c\n",
        arena__c="",
    )
    assert circle(edges) == []


@pytest.mark.parametrize("name", LAYERS[:4])
def test_the_mathematics_the_populations_and_the_memory_import_no_ray(name):
    files = reachable(name)
    assert files
    for each, path in files.items():
        assert not packages(each, path) & {"ray", "tensorflow", "jax"}, path


def test_populations_import_no_torch_not_even_through_others():
    files = reachable("rllib_mfq.population")
    assert len(files) > 5
    for each, path in files.items():
        assert "torch" not in packages(each, path), path


@pytest.mark.parametrize("path", modules(ROOT).values(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_named_after_a_concept_and_small_enough_to_read(path):
    assert not set(path.relative_to(ROOT).with_suffix("").parts) & FORBIDDEN_NAMES
    assert len(path.read_text().splitlines()) <= 350


def test_only_the_import_of_the_package_registers_anything():
    registering = {"register_env", "register_trainable", "register_input"}
    for name, path in modules(ROOT).items():
        found = {part for _, part in imports(name, path)} & registering
        assert not found or name == "rllib_mfq", path
    script = (
        "import rllib_mfq\n"
        "from ray.tune.registry import _global_registry\n"
        "_global_registry.register = None\n"  # a call would raise
        "rllib_mfq.MFQConfig().environment('battle_v4').validate()\n"
        "print('registered nothing')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "registered nothing" in done.stdout, done.stderr
