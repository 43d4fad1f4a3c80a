"""YAML, which can stand for far more than it says, through aliases."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from circuitfind.reading.limits import MAX_NODES, MAX_YAML_DEPTH, Unreadable, one_line

if TYPE_CHECKING:
    import yaml

_FAST = 100_000
"""Characters from which YAML is read by the library in C, where it is there."""


def compose_yaml(text: str) -> tuple[yaml.SafeLoader, yaml.Node | None]:
    """The tree of a YAML text that builds plain data alone, and the loader that makes data of it.

    Raises:
        yaml.YAMLError: It is broken.
        Unreadable: It is too large, holds too many values or is nested too deeply, or holds what makes no value.
    """
    import yaml

    fast = len(text) > _FAST
    kind = getattr(yaml, "CSafeLoader", yaml.SafeLoader) if fast else yaml.SafeLoader
    try:
        if fast:  # counted before anything is kept
            _count_events(text, kind)
        loader = kind(text)
        node = loader.get_single_node()
        if node is not None:
            _check_nodes(node)
    except RecursionError:
        raise _too_deep(None) from None
    except (ValueError, OverflowError) as error:
        if isinstance(error, Unreadable | yaml.YAMLError):
            raise
        raise Unreadable(one_line(error)) from None
    return loader, node


def construct_yaml(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    """The data of a tree.

    Raises:
        yaml.YAMLError: It is broken.
        Unreadable: A value is none, such as the 45th of a month.
    """
    import yaml

    try:
        return loader.construct_document(node)
    except RecursionError:
        raise _too_deep(None) from None
    except (ValueError, OverflowError, TypeError, AttributeError, KeyError, IndexError) as error:
        if isinstance(error, Unreadable | yaml.YAMLError):
            raise
        raise Unreadable(one_line(error)) from None


def _too_deep(line: int | None) -> Unreadable:
    at = "" if line is None else f" (line {line + 1})"
    return Unreadable(
        f"the file is nested too deeply or refers to itself, more than {MAX_YAML_DEPTH} levels or {MAX_NODES:,} values{at}"
    )


def _count_events(text: str, kind: type[yaml.SafeLoader]) -> None:
    import yaml

    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=kind)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_YAML_DEPTH or number > 2 * MAX_NODES:
            raise _too_deep(event.start_mark.line if event.start_mark else None)


def _check_nodes(root: yaml.Node) -> None:
    """Refuse trees that would grow without end, and scalars that take long or are no text."""
    import yaml

    level, seen = [root], 0
    for _ in range(MAX_YAML_DEPTH + 1):
        seen += len(level)
        if not level:
            return
        if seen > MAX_NODES:
            break
        inner: list[yaml.Node] = []
        for node in level:
            if isinstance(node, yaml.ScalarNode):
                _check_scalar(node)
            elif isinstance(node, yaml.SequenceNode):
                inner += node.value
            else:
                inner += [part for pair in node.value for part in pair]
            if len(inner) > MAX_NODES:
                raise _too_deep(node.start_mark.line)
        level = inner
    raise _too_deep(level[0].start_mark.line if level else None)


def _check_scalar(node: yaml.ScalarNode) -> None:
    if node.tag == "tag:yaml.org,2002:int" and len(node.value) > 60:
        raise Unreadable(f"line {node.start_mark.line + 1}: a whole number of {len(node.value):,} digits")
    if not node.value.isascii():
        half = re.search("[\ud800-\udfff]", node.value)
        if half is not None:
            raise Unreadable(
                f"line {node.start_mark.line + 1}: half a character (\\u{ord(half[0]):04x} without its other half)"
            )
