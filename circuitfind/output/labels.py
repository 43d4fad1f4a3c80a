"""Labels: what people call the parts of a model, in a YAML file that they may edit by hand.

    mini@8f3a12bc90de:
      a0.h2: duplicate token
      m1.n203: the second name

    mini@8f3a12bc90de transcoders@77aa01bc23ef:
      t2.f88: months

The file is ``labels.yaml`` beside the run folders. A section is for one model, or for one set of dictionaries of it; the hashes
decide, the names before them are for people. So a label outlives its run and shows in every run of the same weights, and
never in another one. An edit changes the lines that it must and keeps the others with their comments. See
docs/decisions/labels.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from circuitfind.errors import UsageError
from circuitfind.names import Kind, Node, parse_node
from circuitfind.output.files import write_atomic
from circuitfind.reading import MAX_YAML, Unreadable, compose_yaml, read_text

FILE = "labels.yaml"
HEADER = """\
# What people call the parts of models: circuitfind shows these in tables and pictures.
# Edit by hand, or with `circuitfind label RUN NODE "text"`. Each section is for one model, or for one set of its
# dictionaries; the hash behind the @ decides, not the name.
"""
SHOWN = 12
"""Digits of a hash in a heading."""
_WORD = re.compile(r"(?:\S*)@([0-9a-f]{12,64})")

Names = dict[str, str]
"""Label by node."""


@dataclass(frozen=True)
class Owner:
    """What labels are of.

    Attributes:
        model, model_hash: The model's name and the hash of its weights.
        dictionaries, dictionaries_hash: Those that features are of, if there are any.
    """

    model: str
    model_hash: str
    dictionaries: str | None = None
    dictionaries_hash: str | None = None

    def key(self, node: Node) -> tuple[str, ...]:
        """The hashes that a label of this node is kept under.

        Raises:
            UsageError: It is of a dictionary, and none is known.
        """
        if not of_dictionary(node):
            return (self.model_hash[:SHOWN],)
        if self.dictionaries_hash is None:
            raise UsageError(
                f"'{node}' is of a dictionary, and this run says of none",
                hint="name the folder of the dictionaries with --dictionaries",
            )
        return (self.model_hash[:SHOWN], self.dictionaries_hash[:SHOWN])

    def keys(self) -> tuple[tuple[str, ...], ...]:
        """The hashes of every section that may hold labels of this owner."""
        own = (self.model_hash[:SHOWN],)
        return (own,) if self.dictionaries_hash is None else (own, (*own, self.dictionaries_hash[:SHOWN]))

    def heading(self, key: tuple[str, ...]) -> str:
        """How a section is headed."""
        names = (_slug(self.model), _slug(self.dictionaries or "dictionaries"))
        return " ".join(f"{name}@{digits}" for name, digits in zip(names, key, strict=False))


def of_dictionary(node: Node) -> bool:
    """Whether a node is named after a dictionary: a feature, or what it misses or leaves over."""
    return node.kind is Kind.FEATURE or (node.kind in (Kind.ERROR, Kind.REST) and node.family != "m")


@dataclass(frozen=True)
class _Entry:
    """A line of the file: where its key and its value are, in characters and in lines."""

    node: str
    text: str
    span: tuple[int, int]
    first: int
    last: int
    column: int


@dataclass(frozen=True)
class _Section:
    key: tuple[str, ...]
    line: int
    empty: tuple[int, int] | None
    """Where an empty value is, of a heading without entries."""
    entries: tuple[_Entry, ...]


class Labels:
    """The labels of a file as it was read.

    Raises:
        UsageError: It is no YAML, or no labels; with the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._text = read_text(path, MAX_YAML)
        except FileNotFoundError:
            self._text = ""
        except (OSError, Unreadable) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"the labels cannot be read: {reason}",
                where=str(path),
                hint="correct the file, or move it away",
            ) from error
        self._sections = _sections(self._text, path)

    def of(self, owner: Owner) -> Names:
        """All labels of a model and its dictionaries, in the order of the nodes."""
        wanted = owner.keys()
        found = {e.node: e.text for s in self._sections if s.key in wanted for e in s.entries if e.text}
        return dict(sorted(found.items(), key=lambda item: parse_node(item[0]).order))

    def set(self, owner: Owner, node: Node, text: str) -> Labels:
        """With a label; the file is written whole or not at all.

        Raises:
            UsageError: The label is empty, or the folder cannot be written to.
            RunError: The disk is full.
        """
        text = " ".join(text.split())
        if not text or not text.isprintable():
            what = "the label holds control characters" if text else "the label is empty"
            raise UsageError(what, hint='write some words: circuitfind label RUN NODE "words"')
        key, name = owner.key(node), str(node.bare)
        wanted = _every(self._sections)
        wanted.setdefault(key, {})[name] = text
        return self._written(self._with(owner, key, name, text), wanted, owner)

    def remove(self, owner: Owner, node: Node) -> Labels:
        """Without the label of a node.

        Raises:
            UsageError: It has none.
        """
        key, name = owner.key(node), str(node.bare)
        wanted = _every(self._sections)
        if name not in wanted.get(key, {}):
            raise UsageError(
                f"'{name}' has no label", hint="`circuitfind label RUN` lists those that there are"
            )
        del wanted[key][name]
        wanted = {one: names for one, names in wanted.items() if names}
        return self._written(self._without(key, name), wanted, owner)

    # Edits of the text.

    def _with(self, owner: Owner, key: tuple[str, ...], name: str, text: str) -> str:
        line = f"{name}: {_scalar(text)}"
        for section in self._sections:
            if section.key != key:
                continue
            entry = next((e for e in section.entries if e.node == name), None)
            if entry is not None:
                start, stop = entry.span
                if start == stop:
                    return f"{self._text[:start]} {_scalar(text)}{self._text[stop:]}"
                ending = "\n" if self._text[start:stop].endswith("\n") else ""
                return f"{self._text[:start]}{_scalar(text)}{ending}{self._text[stop:]}"
        for section in self._sections:
            if section.key == key:
                at, indent = (section.line, 2)
                if section.entries:
                    at, indent = section.entries[-1].last, section.entries[-1].column
                lines = self._text.splitlines()
                if section.empty is not None and section.empty[0] != section.empty[1]:  # such as `{}` or null
                    return ""
                lines.insert(at + 1, " " * indent + line)
                return "\n".join(lines) + "\n"
        before = self._text.rstrip("\n") + "\n" if self._text.strip() else HEADER
        return f"{before}\n{_scalar(owner.heading(key))}:\n  {line}\n"

    def _without(self, key: tuple[str, ...], name: str) -> str:
        lines = self._text.splitlines()
        gone: set[int] = set()
        for section in self._sections:
            if section.key != key:
                continue
            for entry in section.entries:
                if entry.node == name:
                    gone.update(range(entry.first, entry.last + 1))
            if section.entries and all(e.node == name for e in section.entries):
                gone.add(section.line)
                if section.line and not lines[section.line - 1].strip():
                    gone.add(section.line - 1)
        return "\n".join(line for i, line in enumerate(lines) if i not in gone) + "\n"

    def _written(self, text: str, wanted: Mapping[tuple[str, ...], Names], owner: Owner) -> Labels:
        """The edited text if it says what it should, else the whole file anew (flow style, odd indents)."""
        if not _says(text, self.path, wanted):
            known = {section.key for section in self._sections}
            parts = [HEADER]
            for key, names in wanted.items():
                heading = self._heading(key) if key in known else owner.heading(key)
                body = "".join(f"  {node}: {_scalar(label)}\n" for node, label in names.items())
                parts.append(f"\n{_scalar(heading)}:\n{body}")
            text = "".join(parts)
        write_atomic(self.path, text)
        return Labels(self.path)

    def _heading(self, key: tuple[str, ...]) -> str:
        """As it is written in the file."""
        _, root = compose_yaml(self._text)
        assert isinstance(root, yaml.MappingNode)
        return next(str(head.value) for head, _ in root.value if _digits(str(head.value)) == key)


def _every(sections: Iterable[_Section]) -> dict[tuple[str, ...], Names]:
    """All labels by section; sections of one key are one."""
    found: dict[tuple[str, ...], Names] = {}
    for section in sections:
        found.setdefault(section.key, {}).update({e.node: e.text for e in section.entries if e.text})
    return {key: names for key, names in found.items() if names}


def _says(text: str, path: Path, wanted: Mapping[tuple[str, ...], Names]) -> bool:
    try:
        return _every(_sections(text, path)) == dict(wanted)
    except UsageError:
        return False


# Reading.


def _sections(text: str, path: Path) -> tuple[_Section, ...]:
    try:
        _, root = compose_yaml(text)
    except (yaml.YAMLError, Unreadable) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        last = len(text.rstrip().splitlines()) - 1  # what is left open is told at the end of the file
        raise _wrong(
            path, None if mark is None else min(mark.line, last), f"this is no YAML: {problem}"
        ) from error
    if root is None or _is_empty(root):
        return ()
    if not isinstance(root, yaml.MappingNode):
        raise _wrong(path, root.start_mark.line, "labels are sections with a name and a hash")
    return tuple(_section(head, body, path) for head, body in root.value)


def _section(head: yaml.Node, body: yaml.Node, path: Path) -> _Section:
    line = head.start_mark.line
    key = _digits(str(head.value)) if isinstance(head, yaml.ScalarNode) else None
    if key is None:
        told = f"'{head.value}'" if isinstance(head, yaml.ScalarNode) else "this"
        raise _wrong(
            path, line, f"{told} names no model: a heading is a name, an @ and 12 digits or more of the hash"
        )
    if _is_empty(body):
        return _Section(key, line, (body.start_mark.index, body.end_mark.index), ())
    if not isinstance(body, yaml.MappingNode):
        raise _wrong(path, body.start_mark.line, "a section holds lines such as `m1.n203: the second name`")
    entries = tuple(_entries(body, path))
    seen: dict[str, int] = {}
    for entry in entries:
        if entry.node in seen:
            raise _wrong(
                path, entry.first, f"'{entry.node}' has a label already, on line {seen[entry.node] + 1}"
            )
        seen[entry.node] = entry.first
    empty = (body.start_mark.index, body.end_mark.index) if not entries else None
    return _Section(key, line, empty, entries)


def _entries(body: yaml.MappingNode, path: Path) -> Iterator[_Entry]:
    for name, value in body.value:
        line = name.start_mark.line
        if not isinstance(name, yaml.ScalarNode) or not isinstance(value, yaml.ScalarNode):
            raise _wrong(path, line, "a label is one line of text: `m1.n203: the second name`")
        try:
            node = str(parse_node(str(name.value)).bare)
        except UsageError as error:
            raise UsageError(error.what, where=f"{path}:{line + 1}", hint=error.hint) from error
        end = value.end_mark
        last = end.line - 1 if end.column == 0 and end.line > line else end.line
        plain = "" if _is_empty(value) and value.style is None else str(value.value)
        text = " ".join(plain.split())
        yield _Entry(
            node, text, (value.start_mark.index, end.index), line, max(last, line), name.start_mark.column
        )


def _digits(heading: str) -> tuple[str, ...] | None:
    """The hashes of a heading; None where it is none."""
    words = [_WORD.fullmatch(word) for word in heading.split()]
    found = tuple(word[1][:SHOWN] for word in words if word is not None)
    return found if found and len(found) == len(words) <= 2 else None


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.value in ("", "null", "~")


def _wrong(path: Path, line: int | None, what: str) -> UsageError:
    where = str(path) if line is None else f"{path}:{line + 1}"
    return UsageError(
        what,
        where=where,
        hint="correct the line, or move the file away; labels are described in docs/naming.md",
    )


def _scalar(text: str) -> str:
    """A text on one line as YAML."""
    return yaml.safe_dump(text, allow_unicode=True, width=1 << 30).removesuffix("...\n").strip()


def _slug(name: str) -> str:
    """The last part of a model's or folder's name, as one word."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return re.sub(r"[\s@#]+", "-", last) or "unnamed"
