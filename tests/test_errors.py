"""Errors: their tree, their exit codes, and what each one says."""

from __future__ import annotations

import inspect
import json
import re

import pytest

from circuitfind import errors
from circuitfind.errors import (
    CheckDiffers,
    CircuitfindError,
    Interrupted,
    ModelError,
    PromptError,
    RunError,
    TaskError,
    UnsupportedError,
    UsageError,
    did_you_mean,
    nearest,
)

CLASSES = [
    value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, CircuitfindError)
]

every_class = pytest.mark.parametrize("kind", CLASSES)


@pytest.mark.parametrize(
    ("kind", "parent", "code"),
    [
        (CircuitfindError, Exception, 3),
        (CheckDiffers, CircuitfindError, 1),
        (UsageError, CircuitfindError, 2),
        (TaskError, UsageError, 2),
        (PromptError, UsageError, 2),
        (ModelError, UsageError, 2),
        (UnsupportedError, UsageError, 2),
        (RunError, CircuitfindError, 3),
        (Interrupted, CircuitfindError, 130),
    ],
)
def test_tree(kind: type[CircuitfindError], parent: type[Exception], code: int) -> None:
    assert kind.__bases__ == (parent,)
    assert kind.exit_code == code
    assert len(CLASSES) == 9, "another class needs a line here"


def test_tree_is_drawn_as_it_is() -> None:
    drawn = dict(re.findall(r"^ [ |]*(?:\+- )?(\w+) +(\d+)  ", errors.__doc__ or "", re.MULTILINE))
    assert drawn == {kind.__name__: str(kind.exit_code) for kind in CLASSES}


@every_class
def test_a_hint_is_required(kind: type[CircuitfindError]) -> None:
    with pytest.raises(TypeError, match="hint"):
        kind("it broke")  # type: ignore[call-arg]


@every_class
def test_what_it_says(kind: type[CircuitfindError]) -> None:
    bare = kind("it broke", hint="mend it")
    assert str(bare) == "it broke\nhint: mend it"
    full = kind("it broke", hint="mend it", where="x.yaml:3 (a.b)", details=(line for line in ["one", "two"]))
    assert str(full) == "x.yaml:3 (a.b): it broke\n  one\n  two\nhint: mend it"
    assert full.details == ("one", "two")
    assert full.args == ("it broke",)


@every_class
def test_as_dict(kind: type[CircuitfindError]) -> None:
    found = kind("it broke", hint="mend it", where="x.yaml:3", details=["one"]).as_dict()
    assert json.loads(json.dumps(found)) == {
        "error": kind.__name__,
        "what": "it broke",
        "where": "x.yaml:3",
        "details": ["one"],
        "hint": "mend it",
        "exit_code": kind.exit_code,
    }


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("resampel", "resample"),
        ("RESAMPLE", "resample"),
        ("Zero", "zero"),
        ("meen", "mean"),
        ("xyzzy", None),
        ("", None),
    ],
)
def test_nearest(word: str, near: str | None) -> None:
    assert nearest(word, ["resample", "mean", "zero"]) == near


def test_nearest_keeps_the_spelling() -> None:
    assert nearest("eleutherai/pythia-70", ["gpt2", "EleutherAI/pythia-70m"]) == "EleutherAI/pythia-70m"


def test_did_you_mean() -> None:
    assert did_you_mean("zreo", ["zero", "mean"]) == "did you mean 'zero'?"
    assert did_you_mean("xyzzy", ["zero", "mean"]) == "known: mean, zero"
    assert did_you_mean("xyzzy", []) == "none is known"
    assert did_you_mean("a", (name for name in ["b"])) == "known: b"


def test_control_characters_of_a_name_are_spelt_out() -> None:
    told = str(UsageError("no run '\x1b[31mx'", hint="see\x07", where="a\rb", details=["c\x9bd\te"]))
    assert told == "a\\x0db: no run '\\x1b[31mx'\n  c\\x9bd\te\nhint: see\\x07"
