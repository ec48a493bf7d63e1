"""What an editor shows: every public name is described, with its arguments, errors and defaults."""

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest
from test_readme import PAGES

import rllib_mfq
from rllib_mfq.algorithm import averaging
from rllib_mfq.algorithm.settings import DEFAULTS, SETTINGS, MFQSettings
from rllib_mfq.mean_field import network, objective, table

MODULES = {module.__name__: module for module in (averaging, network, objective, table)}


def shown():
    """What the API reference shows: of every name the object, and the members that it names."""
    page = PAGES[Path("docs/api.md")]
    for name, options in re.findall(r"^::: (rllib_mfq[\w.]*)\n(?:    options: (.*))?", page, re.M):
        if name in MODULES:
            found = vars(MODULES[name]).items()
            own = {k: v for k, v in found if getattr(v, "__module__", "") == name}
            yield from ((f"{name}.{k}", v) for k, v in own.items() if not k.startswith("_"))
            continue
        whole = getattr(rllib_mfq, name.removeprefix("rllib_mfq."))
        yield name, whole
        if inspect.isclass(whole):
            members = re.search(r"{members: \[(.*?)\]", options)
            inherits = members or "members: false" in options
            every = [] if inherits else [k for k in vars(whole) if not k.startswith("_")]
            for member in members[1].split(", ") if members else every:
                yield f"{name}.{member}", getattr(whole, member)


SHOWN = dict(shown())


def parameters(thing):
    """The names of what a function takes, or of what makes an instance of a class of ours."""
    if inspect.isclass(thing) and not hasattr(thing, "__dataclass_fields__"):
        make = vars(thing).get("__init__")
        if getattr(thing, "_is_protocol", False):
            return []
        if make is None and not hasattr(thing, "_fields"):
            return []
    try:
        found = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return []
    varying = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    # Ray adds a parameter of its own to the methods of a class that became an actor.
    hidden = ("self", "cls", "_ray_trace_ctx")
    return [p.name for p in found if p.name not in hidden and p.kind not in varying]


def code(thing):
    """The statements of a function, or of a class's constructor."""
    make = vars(thing).get("__init__") if inspect.isclass(thing) else thing
    make = getattr(make, "fget", None) or make
    if getattr(thing, "_is_protocol", False):
        return ast.Module([], [])
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(make)))
    except (OSError, TypeError):
        return ast.Module([], [])


def test_every_public_name_and_the_mathematics_are_shown():
    assert {f"rllib_mfq.{name}" for name in rllib_mfq.__all__} <= SHOWN.keys()
    assert "rllib_mfq.mean_field.objective.mfq_loss" in SHOWN and len(SHOWN) > 50


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_shown_says_what_it_is_takes_and_raises(name):
    thing = SHOWN[name]
    if not (callable(thing) or isinstance(thing, property)):
        return  # a constant, which has no docstring of its own
    text = inspect.getdoc(thing) or ""
    assert text, "has no docstring"
    if inspect.isclass(thing) and "__init__" in vars(thing):
        text += "\n\n" + (inspect.getdoc(thing.__init__) or "")
    for parameter in parameters(thing) if callable(thing) else []:
        entry = rf"^    {parameter}: |`{parameter}`|`\{{.*{parameter}"
        assert re.search(entry, text, re.M), f"says nothing of {parameter}"
    raises = [node for node in ast.walk(code(thing)) if isinstance(node, ast.Raise)]
    assert not raises or re.search(r"[Rr]aises", text), "does not say what it raises"


@pytest.mark.parametrize("name", SETTINGS)
def test_the_text_of_a_setting_ends_with_its_default(name):
    method = MFQSettings.evaluation if name.startswith("evaluation") else MFQSettings.training
    text = inspect.getdoc(method)
    entry = re.search(rf"^    {name}: (.*?)(?=^    \*{{0,2}}\w+: |\Z)", text, re.M | re.S)
    (default,) = re.findall(r"Default:\s+`(.*?)`\.$", entry[1].strip(), re.S)
    assert ast.literal_eval(" ".join(default.split())) == DEFAULTS[name]
    assert "Default" not in SETTINGS[name].text  # which has a column of its own in the table
