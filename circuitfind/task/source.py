"""Reading a YAML file with its line numbers, and saying in plain words what does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import ErrorDetails

from circuitfind import reading
from circuitfind.errors import TaskError, did_you_mean, nearest
from circuitfind.reading import MAX_YAML, Unreadable, compose_yaml, construct_yaml
from circuitfind.task.checks import Problem

Key = str | int

_SMALL = ("task file", "sweep file")
_SURPRISES = {"yes", "no", "on", "off"}
_BOOLEAN = "tag:yaml.org,2002:bool"


@dataclass(frozen=True)
class Source:
    """Where a task was written: its file, the line of each key path, and how each scalar is spelt there."""

    path: Path
    lines: Mapping[tuple[Key, ...], int]
    spelt: Mapping[tuple[Key, ...], str]

    def line(self, keys: Sequence[Key]) -> int:
        """The line of a key path, or of the nearest enclosing key that the file has."""
        path = tuple(keys)
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def where(self, keys: Sequence[Key]) -> str:
        """``tasks/ioi.yaml:12 (prompts.count)``."""
        return f"{self.place(keys)} ({dotted(keys)})" if keys else self.place(keys)

    def place(self, keys: Sequence[Key]) -> str:
        """``tasks/ioi.yaml:12``."""
        return f"{shown_path(self.path)}:{self.line(keys)}"


def dotted(keys: Sequence[Key]) -> str:
    """``prompts.templates[0].clean``, as in the file; list items are counted from 0."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def shown_path(path: Path) -> str:
    """The path as the user would type it: relative to the current folder where it lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError, RuntimeError):  # it lies elsewhere, or is a link to itself
        return str(path)


def read_text(path: Path, kind: str) -> str:
    """The file's text.

    Raises:
        TaskError: there is no such file, or it cannot be read as UTF-8 text.
    """
    try:
        return reading.read_text(path, MAX_YAML if kind in _SMALL else reading.MAX_TEXT)
    except FileNotFoundError:
        near = nearest(path.name, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else [])
        hint = f"did you mean '{path.parent / near}'?" if near else "check the path"
        raise TaskError(f"no {kind} at '{shown_path(path)}'", hint=hint) from None
    except Unreadable as error:
        raise TaskError(
            f"'{shown_path(path)}' cannot be read: {error}",
            hint="save it as UTF-8 text; many prompts belong into a prompt file (.jsonl or .csv)",
        ) from None
    except OSError as error:
        raise TaskError(
            f"cannot read '{shown_path(path)}': {error.strerror}", hint="check the path and its permissions"
        ) from None


def read_yaml(path: Path, kind: str = "task file") -> tuple[dict[str, Any], Source]:
    """Read a YAML mapping and the line of every key in it.

    Raises:
        TaskError: no such file, broken YAML, a key given twice, or a word that YAML takes for a boolean.
    """
    return parse_yaml(read_text(path, kind), path, kind)


def parse_yaml(text: str, path: Path, kind: str) -> tuple[dict[str, Any], Source]:
    """The same of a text that stands in a file."""
    try:
        loader, node = compose_yaml(text)
        if not isinstance(node, yaml.MappingNode):
            raise TaskError(
                f"a {kind} is a mapping of keys to values, this {'is empty' if node is None else 'is none'}",
                hint="`circuitfind init` writes one to start from",
                where=f"{shown_path(path)}:1",
            )
        walk = _Walk(path)
        walk.visit(node, ())
        data = construct_yaml(loader, node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        context = f"{error.context}, " if error.context else ""
        raise TaskError(
            f"broken YAML: {context}{error.problem}",
            hint="texts with ': ', '#', quotes or braces must stand in quotes; indent with blanks, not tabs",
            where=f"{shown_path(path)}{line}",
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise TaskError(
            f"broken YAML: {reading.one_line(error)}",
            hint="check the file in an editor; an alias (*name) must not stand inside its own anchor (&name)",
            where=shown_path(path),
        ) from None
    source = Source(path, walk.lines, walk.spelt)
    if walk.problems:
        raise task_error(source, walk.problems)
    return data, source


class _Walk:
    """Collects lines, spellings and problems of a composed YAML tree."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[tuple[Key, ...], int] = {}
        self.spelt: dict[tuple[Key, ...], str] = {}
        self.problems: list[Problem] = []

    def visit(self, node: yaml.Node, keys: tuple[Key, ...]) -> None:
        self.lines.setdefault(keys, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, keys)
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self.visit(item, (*keys, number))
        elif isinstance(node, yaml.ScalarNode):
            self.spelt[keys] = node.value
            self._surprise(node, keys)

    def _mapping(self, node: yaml.MappingNode, keys: tuple[Key, ...]) -> None:
        seen: dict[str, int] = {}
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(
                    Problem(keys, f"a key on line {line} is not a word", "write keys as plain words")
                )
                continue
            key = key_node.value
            path = (*keys, key)
            if key in seen:
                self.lines[path] = line
                self.problems.append(
                    Problem(
                        path,
                        f"the key '{key}' is given twice, on lines {seen[key]} and {line}",
                        "keep one of them",
                    )
                )
                continue
            seen[key] = line
            self.lines[path] = line
            self._surprise(key_node, path)
            self.visit(value, path)

    def _surprise(self, node: yaml.ScalarNode, keys: tuple[Key, ...]) -> None:
        if node.style is None and node.tag == _BOOLEAN and node.value.lower() in _SURPRISES:
            meant = "true" if node.value.lower() in ("yes", "on") else "false"
            self.problems.append(
                Problem(
                    keys,
                    f"YAML reads the word {node.value} as {meant}",
                    f'quote it ("{node.value}") if you mean the word, else write {meant}',
                )
            )


def task_error(source: Source, problems: Sequence[Problem]) -> TaskError:
    """One error for all problems of a file: the first in front, the others as details."""
    ordered = sorted(problems, key=lambda problem: source.line(problem.path))
    first, *others = ordered
    return TaskError(
        first.what,
        hint=first.hint,
        where=source.where(first.path),
        details=[f"{source.where(p.path)}: {p.what} ({p.hint})" for p in others],
    )


def explain(
    errors: Sequence[ErrorDetails], data: object, source: Source, known: Mapping[int, list[str]]
) -> TaskError:
    """Turn what pydantic found into one error in the words of the file.

    ``known`` maps the id of a mapping in ``data`` to the keys that its model has.
    """
    problems: list[Problem] = []
    for error in errors:
        context = error.get("ctx", {})
        if error["type"] == "task":
            problems.extend(context["problems"])
        elif (
            error["type"] != "too_short" or not error["input"]
        ):  # a list whose items failed is "too short" too
            problems.append(_problem(error, context, data, source, known))
    return task_error(source, problems)


def _problem(
    error: ErrorDetails,
    context: Mapping[str, Any],
    data: object,
    source: Source,
    known: Mapping[int, list[str]],
) -> Problem:
    kind, value = error["type"], error["input"]
    keys, holder = _follow(error["loc"], data)
    last = str(error["loc"][-1]) if error["loc"] else ""
    if kind == "extra_forbidden":
        return Problem(keys, f"unknown key '{last}'", did_you_mean(last, known.get(id(holder), [])))
    if kind == "missing":
        return Problem(keys, f"the key '{last}' is missing{_inside(keys)}", f"add '{last}: ...'")
    if kind == "string_type":
        spelt = str(value) if last == "[key]" else source.spelt.get(keys)
        if spelt is None or isinstance(value, dict | list):
            return Problem(keys, f"should be text, is {_kind_of(value)}", "write one text")
        return Problem(keys, f"should be text, is {_kind_of(value)} ({spelt})", f'quote it: "{spelt}"')
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return Problem(keys, f"'{value}' is none of {', '.join(allowed)}", did_you_mean(str(value), allowed))
    if kind in ("string_too_short", "too_short"):
        return Problem(
            keys, "is empty", "write something here, or leave the key out where it may be left out"
        )
    if kind == "circuit_name":
        return Problem(keys, context["what"], context["hint"])
    if kind in _SHAPES:
        return Problem(keys, f"should be {_SHAPES[kind]}, is {_kind_of(value)}", f"write {_SHAPES[kind]}")
    if kind == "string_pattern_mismatch":
        return Problem(
            keys, f"'{value}' has characters that a name may not have", f"names match {context['pattern']}"
        )
    if kind in _BOUNDS:
        sign, name = _BOUNDS[kind]
        return Problem(
            keys, f"is {value}, must be {sign} {context[name]}", f"give a number {sign} {context[name]}"
        )
    return Problem(keys, error["msg"], "see `circuitfind init` for a commented example")


_SHAPES = {
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "tuple_type": "a list",
    "list_type": "a list",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": (">", "gt"),
    "greater_than_equal": (">=", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("<=", "le"),
}


def _inside(keys: Sequence[Key]) -> str:
    return f" in '{dotted(keys)}'" if keys else ""


def _kind_of(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return f"text ('{value}')" if len(value) <= 40 else "text"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else f"a {type(value).__name__}"


def _follow(loc: Sequence[Key], data: object) -> tuple[tuple[Key, ...], object]:
    """The part of a pydantic location that the file has, and the mapping or list that holds its last key.

    Left out are what is no key of the file (union tags, the mark of a dict's key) and a missing key.
    """
    path: list[Key] = []
    here = holder = data
    for key in loc:
        if not isinstance(here, dict | list):
            break
        try:
            inner = here[key]  # type: ignore[index]  # a word as index of a list is caught below
        except (KeyError, IndexError, TypeError):
            continue
        holder, here = here, inner
        path.append(str(key) if isinstance(holder, dict) else key)
    return tuple(path), holder
