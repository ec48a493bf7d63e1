"""Experiments: `{name: {run, env, stop, config, ...}}`, read from files, options and examples."""

import contextlib
import difflib
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml

Experiment = dict[str, Any]
"""One experiment as RLlib's YAML files spell it: `run` and, if given, `env`, `stop`, `config`."""

DEEPEST, MOST = 50, 100_000
"""How deeply a file may nest its values, and how many of them it may have."""

TOO_DEEP = f"it is nested more than {DEEPEST} levels deep"
KEYS = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"}  # YAML's tags of keys that are legal
SUFFIXES = (".yaml", ".yml", ".json", ".py")
"""How the names of files with experiments end."""

FRACTION = re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9_]+)[eE][-+]?[0-9]+$")


class BadInput(click.ClickException):
    """The user's input cannot be used; the message is one sentence that says why."""

    exit_code = 2


def one_line(error: Exception) -> str:
    """The message of an error on one line, or the error's class if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def refusing(prefix: str = "", *kinds: type[Exception]) -> Iterator[None]:
    """Turns errors, by default ValueError and ImportError, into BadInput with a prefix."""
    caught = kinds or (ValueError, ImportError)
    try:
        yield
    except caught as error:
        raise BadInput(prefix + one_line(error)) from error


class _Loader(yaml.SafeLoader):
    """Safe YAML that, unlike PyYAML, reads `1e-4` as a number and refuses what it would choke on.

    Refused are keys that are given twice or are no text, deep nesting, and aliases of aliases,
    of which ten lines can stand for more values than fit into any memory.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}  # values in a node, those behind aliases too

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        event = self.peek_event()
        self._refuse(self._depth >= DEEPEST, TOO_DEEP, event)
        self._depth += 1
        node: yaml.Node = super().compose_node(parent, index)  # type: ignore[assignment]
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            self._refuse(node not in self._sizes, "an alias stands within its own value", event)
        else:
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            if isinstance(node, yaml.MappingNode):
                parts = [part for pair in parts for part in pair]
            self._sizes[node] = 1 + sum(self._sizes[part] for part in parts)
        too_many = f"it stands for more than {MOST} values, aliases counted"
        self._refuse(self._sizes[node] > MOST, too_many, event)
        return node

    def _refuse(self, bad: bool, problem: str, event: Any) -> None:
        if bad:
            raise yaml.MarkedYAMLError(None, None, problem, event.start_mark)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            self._refuse(key.tag not in KEYS, f"the key {key.value!r} is no text: quote it", key)
            twice = key.value != "<<" and lines.get(key.value)
            self._refuse(bool(twice), f"{key.value!r} appears twice, first in line {twice}", key)
            lines[key.value] = key.start_mark.line + 1
        return node


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FRACTION, list("-+.0123456789"))

_KINDS: dict[type, tuple[str, list[str]]] = {
    dict: ("a mapping", ["config", "stop", "scheduler_config", "checkpoint_config"]),
    str: ("text", ["run", "env", "scheduler", "storage_path", "local_dir", "upload_dir"]),
    int: ("a whole number", ["num_samples", "max_failures"]),
}
"""The types of an experiment's keys, and what they are called."""


def read_experiments(path: Path) -> dict[str, Experiment]:
    """Reads the experiments of a `.yaml`, `.json` or `.py` file, or raises BadInput."""
    if not path.is_file():
        raise BadInput(f"{path} {'is no file' if path.exists() else 'does not exist'}.")
    if path.suffix == ".py":
        return {path.stem: _from_python(path)}
    if path.suffix not in SUFFIXES:
        raise BadInput(f"{path} ends in {path.suffix!r}; legal are .yaml, .yml, .json and .py.")
    with refusing(f"{path} is no text in UTF-8: ", UnicodeDecodeError):
        text = path.read_text(encoding="utf-8")
    experiments = parse(text, str(path), as_json=path.suffix == ".json")
    if not isinstance(experiments, dict) or not experiments:
        raise BadInput(f"{path} has no experiments; write 'name: {{run: MFQ, env: ...}}'.")
    for name, experiment in experiments.items():
        if not isinstance(experiment, dict) or not experiment.get("run"):
            raise BadInput(f"experiment {name!r} in {path} has no 'run', such as MFQ.")
        if folder := experiment.get("restore"):
            raise BadInput(
                f"experiment {name!r} in {path} has 'restore', which would unpickle {folder}; if "
                f"you trust that folder, give --restore {folder} instead."
            )
        for kind, (legal, keys) in _KINDS.items():
            for key in keys:
                value = experiment.get(key)
                if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                    where = f"{key!r} of experiment {name!r} in {path}"
                    raise BadInput(f"{where} is {value!r}; it must be {legal}.")
    return {str(name): experiment for name, experiment in experiments.items()}


def parse(text: str, source: str, as_json: bool = False) -> Any:
    """Reads YAML, of which JSON is a part, or strictly JSON; BadInput names source and place."""
    try:
        if not as_json:
            return yaml.load(text, _Loader)  # a SafeLoader
        value = json.loads(text, object_pairs_hook=_without_duplicates)
        if _depth(value) <= DEEPEST:
            return value
        problem = TOO_DEEP
    except RecursionError:
        problem = TOO_DEEP
    except json.JSONDecodeError as error:
        problem = f"line {error.lineno}, column {error.colno}, {error.msg}"
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark
        problem = f"line {mark.line + 1}, column {mark.column + 1}, {error.problem}"
    except (yaml.YAMLError, ValueError) as error:
        problem = one_line(error)
    raise BadInput(f"{source} is not valid {'JSON' if as_json else 'YAML'}: {problem}.")


MAPPINGS = {
    "--config": "{lr: 1e-4}",
    "--env-config": "{map_size: 20}",
    "--scheduler-config": "{grace_period: 10}",
    "--stop": "{training_iteration: 100}",
}
"""An example of the mapping that each option takes."""


def parse_mapping(text: str, option: str) -> dict[str, Any]:
    """Reads the JSON or YAML mapping given to an option of `MAPPINGS`."""
    value = parse(text, option) or {}
    if not isinstance(value, dict):
        raise BadInput(f"{option} is {text!r}; it must be a mapping such as '{MAPPINGS[option]}'.")
    return value


def set_values(config: dict[str, Any], assignments: tuple[str, ...]) -> None:
    """Puts every `key=value` of `--set` into a config; dots lead into nested mappings."""
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        if not key or key == assignment:
            raise BadInput(f"--set is {assignment!r}; it must be key=value, such as lr=1e-4.")
        *path, last = key.split(".")
        if len(path) > DEEPEST:
            raise BadInput(f"--set {key[:20]}... is nested more than {DEEPEST} levels deep.")
        target = config
        for part in path:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise BadInput(f"--set {assignment}: {part!r} is {target!r}, not a mapping.")
        target[last] = parse(text, f"--set {key}")


def examples() -> dict[str, Path]:
    """The files of the tuned examples that come with the package, in alphabetical order."""
    root = Path(__file__).parents[1]
    installed = root / "rllib_mfq" / "tuned_examples"  # where the wheel has them
    folder = installed if installed.is_dir() else root / "tuned_examples"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_example(name: str) -> Path:
    """The file of a tuned example; if there is none, BadInput has the nearest name."""
    stem, files = name.removesuffix(".yaml").replace("-", "_"), examples()
    if stem not in files:
        near = difflib.get_close_matches(stem, files, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise BadInput(f"there is no example {name!r}{hint}; `rllib example list` shows them.")
    return files[stem]


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} appears twice")
        found[key] = value
    return found


def _depth(value: Any) -> int:
    """How deeply lists and mappings are nested in a value."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, parts), default=0)


def _from_python(path: Path) -> Experiment:
    """The experiment of a Python file that defines `config` and, optionally, `stop`."""
    try:
        names = runpy.run_path(str(path))
    except Exception as error:
        raise BadInput(f"{path} fails: {type(error).__name__}: {error}.") from error
    config: Any = names.get("config")
    if not hasattr(config, "algo_class") or not hasattr(config, "to_dict"):
        raise BadInput(f"{path} defines no 'config' that is an AlgorithmConfig.")
    default = vars(type(config)())
    changed = {k: v for k, v in vars(config).items() if k not in default or default[k] != v}
    changed.pop("_is_frozen", None)
    return {"run": config.algo_class, "config": changed, "stop": names.get("stop") or {}}
