"""Public names say what they take and refuse; what a docstring looks like is ruff's to check (rules D)."""

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
import types

import pytest

ROOMS = (
    "vlprune", "vlprune.allocation", "vlprune.checkpoint", "vlprune.config", "vlprune.data",
    "vlprune.evaluate", "vlprune.losses", "vlprune.masks", "vlprune.measure", "vlprune.models", "vlprune.nn",
    "vlprune.ops", "vlprune.prune", "vlprune.recovery", "vlprune.scoring", "vlprune.sparsify",
    "vlprune.structured", "vlprune.token_weights",
)  # fmt: skip


def public():
    """Qualified name -> function or class, for every room's `__all__`."""
    found = {}
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found.setdefault(f"{value.__module__}.{value.__qualname__}", value)
    return found


def methods():
    """The public methods and properties that the public classes define themselves."""
    found = {}
    for name, value in public().items():
        for key, member in vars(value).items() if inspect.isclass(value) else ():
            function = getattr(member, "__func__", getattr(member, "fget", member))
            if not key.startswith("_") and isinstance(function, types.FunctionType):
                found[f"{name}.{key}"] = function
    return found


PUBLIC, METHODS = public(), methods()


def parameters(value):
    """Names that a caller passes: of a dataclass its fields, of another class those of its constructor."""
    if dataclasses.is_dataclass(value):
        return [f.name for f in dataclasses.fields(value) if f.init]
    if inspect.isclass(value):
        if issubclass(value, Exception) or getattr(value, "_is_protocol", False):
            return []
        made = vars(value).get("__init__") or vars(value).get("__new__")
        return list(inspect.signature(made).parameters)[1:] if made else []
    names = [name for name in inspect.signature(value).parameters if name not in ("self", "cls")]
    return [name for name in names if not name.startswith("_")]


def says(doc, name):
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", doc) is not None


@pytest.mark.parametrize("name", [*PUBLIC, *METHODS])
def test_there_is_a_docstring(name):
    doc = inspect.getdoc({**PUBLIC, **METHODS}[name])
    assert doc
    assert doc.splitlines()[0].endswith((".", "?", "!", ":")), "a summary line is a sentence"


# what says where the arguments are explained, or is made by the library and read by its names
REFERS = re.compile(r"those of `|arguments as there")
MADE = ("Report", "Sizes", "Metrics")


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_named(name):
    value = PUBLIC[name]
    doc, names = inspect.getdoc(value), parameters(value)
    if len(names) < 2 or name.endswith(MADE) or REFERS.search(doc):
        return
    assert [own for own in names if not says(doc, own)] == []


def raised(value):
    """Names of the exceptions that a function's own body raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    calls = [n.exc.func for n in ast.walk(tree) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)]
    return {call.id for call in calls if isinstance(call, ast.Name)}


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if inspect.isfunction(value)])
def test_what_is_raised_is_said(name):
    doc = inspect.getdoc(PUBLIC[name])
    missing = [error for error in raised(PUBLIC[name]) if not says(doc, error)]
    assert not missing or REFERS.search(doc) or doc.startswith("Refuse"), missing


def test_the_checks_can_fail():
    def bad(first: int, second: int) -> None:
        """Do something with first."""
        raise KeyError(second)

    assert parameters(bad) == ["first", "second"]
    assert not says(inspect.getdoc(bad), "second")
    assert says("of `second`, or", "second")
    assert not says("seconds", "second")
    assert raised(bad) == {"KeyError"}
