"""Experiments: `{name: {run, env, stop, config, ...}}`, read from files and options.

Imports no Ray, so that a mistake in a file is named at once.
"""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import click
import yaml

Experiment = dict[str, Any]
"""What RLlib's YAML files say of one: `run` and, if need be, `env`, `stop`, `config`, ..."""

FRACTION = re.compile(
    r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$|[-+]?\.[0-9_]+[eE][-+]?[0-9]+$"
)


class BadInput(click.ClickException):
    """What the user gave cannot be used; the message is one sentence that says why."""

    exit_code = 2


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads `1e-4` as a number.

    PyYAML keeps the last of two equal keys, and by YAML 1.1 takes `1e-4` for a string.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in lines and key.value != "<<":
                problem = f"{key.value!r} appears twice, first in line {lines[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                lines[key.value] = key.start_mark.line + 1
        return node


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FRACTION, list("-+.0123456789"))


def read_experiments(path: Path) -> dict[str, Experiment]:
    """Reads the experiments of a `.yaml`, `.json` or `.py` file.

    Raises:
        BadInput: there is no such file, or it holds no experiments.
    """
    if not path.is_file():
        raise BadInput(f"{path} does not exist." if not path.exists() else f"{path} is no file.")
    if path.suffix == ".py":
        return {path.stem: _from_python(path)}
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise BadInput(f"{path} ends in {path.suffix!r}; legal are .yaml, .yml, .json and .py.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is no text in UTF-8: {error.reason}.") from error
    experiments = parse(text, str(path), as_json=path.suffix == ".json")
    if not isinstance(experiments, dict) or not experiments:
        raise BadInput(f"{path} has no experiments; write 'name: {{run: MFQ, env: ...}}'.")
    for name, experiment in experiments.items():
        if not isinstance(experiment, dict) or not experiment.get("run"):
            raise BadInput(f"experiment {name!r} in {path} has no 'run', such as MFQ.")
        for key in ("config", "stop"):
            if not isinstance(experiment.get(key) or {}, dict):
                raise BadInput(
                    f"{key!r} of experiment {name!r} in {path} is {experiment[key]!r}; it must "
                    "be a mapping."
                )
    return {str(name): experiment for name, experiment in experiments.items()}


def parse(text: str, source: str, as_json: bool = False) -> Any:
    """Reads YAML, of which JSON is a part, or strictly JSON.

    Args:
        text: what to read.
        source: what to call it in an error, a file or an option.
        as_json: whether it must be JSON.

    Raises:
        BadInput: it does not parse, with line and column.
    """
    try:
        if as_json:
            return json.loads(text, object_pairs_hook=_without_duplicates)
        return yaml.load(text, _Loader)  # a SafeLoader
    except json.JSONDecodeError as error:
        where, problem = f"line {error.lineno}, column {error.colno}", error.msg
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, error.problem or ""
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
    except (yaml.YAMLError, ValueError) as error:
        where, problem = "", " ".join(str(error).split())
    kind = "JSON" if as_json else "YAML"
    raise BadInput(f"{source} is not valid {kind}: {', '.join(filter(None, (where, problem)))}.")


def parse_mapping(text: str, option: str) -> dict[str, Any]:
    """Reads the JSON or YAML mapping given to an option such as `--config`."""
    value = parse(text, option)
    if not isinstance(value or {}, dict):
        raise BadInput(f"{option} is {text!r}; it must be a mapping such as '{{\"lr\": 1e-4}}'.")
    return value or {}


def set_values(config: dict[str, Any], assignments: tuple[str, ...]) -> None:
    """Puts every `key=value` of `--set` into a config; dots lead into nested mappings.

    Raises:
        BadInput: there is no `=`, or a dot leads into something that is no mapping.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise BadInput(f"--set is {assignment!r}; it must be key=value, such as lr=1e-4.")
        *path, last = key.split(".")
        target = config
        for part in path:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise BadInput(f"--set {assignment}: {part!r} is {target!r}, not a mapping.")
        target[last] = parse(text, f"--set {key}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for index, (key, _) in enumerate(pairs):
        if key in dict(pairs[:index]):
            raise ValueError(f"{key!r} appears twice")
    return dict(pairs)


def _from_python(path: Path) -> Experiment:
    """The experiment of a Python file that defines `config` and, if it likes, `stop`."""
    try:
        names = runpy.run_path(str(path))
    except Exception as error:
        raise BadInput(f"{path} fails: {type(error).__name__}: {error}.") from error
    config: Any = names.get("config")
    if not hasattr(config, "algo_class") or not hasattr(config, "to_dict"):
        raise BadInput(f"{path} defines no 'config' that is an AlgorithmConfig.")
    default = vars(type(config)())
    changed = {
        key: value
        for key, value in vars(config).items()
        if key != "_is_frozen" and not (key in default and default[key] == value)
    }
    return {"run": config.algo_class, "config": changed, "stop": names.get("stop") or {}}
