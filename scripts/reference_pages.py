"""Write the pages that come from the code: docs/methods-reference.md, docs/task-file.md, and those of notebooks.

python scripts/reference_pages.py            write
python scripts/reference_pages.py --check    exit 1 if they are stale (the tests do this)
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from generated import ROOT, main

from circuitfind.methods import METHODS, get_method, options_of
from circuitfind.model.anatomy import Anatomy
from circuitfind.task.spec import json_schema

SHAPES = {"mini": Anatomy(4, 8, 8), "GPT-2 small": Anatomy(12, 12, 12)}
MADE = "Made from the code by scripts/reference_pages.py."


# Methods.


def methods_page() -> str:
    """Every method of the registry: what it computes, its options, what it costs."""
    shapes = " | ".join(f"{name}: F | B" for name in SHAPES)
    lines = [
        "# Every method, its options and its cost",
        "",
        f"What the registry says of each. {MADE} Which one to take: [methods.md](methods.md).",
        "",
        (
            "F is a forward pass over all prompts, B a backward pass; a patched pass of one patch counts as one F, and what "
            "is not computed of it (below the patch, before the first difference, behind the answer) is not taken off. "
            "Numbers are those of the default options, for the shape of `mini` (4 layers of 8 heads, "
            f"{SHAPES['mini'].n_edges:,} edges) and of GPT-2 small ({SHAPES['GPT-2 small'].n_edges:,} edges)."
        ),
        "",
        f"| method | scores | {shapes} | source |",
        "| --- | --- |" + " --: | --: |" * len(SHAPES) + " --- |",
    ]
    for name, entry in METHODS.items():
        costs = [get_method(name).cost(shape) for shape in SHAPES.values()]
        told = " | ".join(f"{_count(c.forward)} | {_count(c.backward)}" for c in costs)
        lines.append(f"| [`{name}`](#{name}) | {entry.level}s | {told} | {entry.source} |")
    lines += [
        "",
        "`circuitfind discover TASK --dry-run --method NAME` tells the cost for your model and prompts.",
        "",
    ]
    for name, entry in METHODS.items():
        lines += _method(name, entry.path, entry.summary, entry.source)
    return "\n".join(lines).rstrip() + "\n"


def _count(passes: float) -> str:
    return f"{passes:,.0f}" if passes == int(passes) or passes >= 100 else f"{passes:.1f}"


def _method(name: str, path: str, summary: str, source: str) -> Iterator[str]:
    module, _, kind = path.partition(":")
    found = importlib.import_module(module)
    yield from (f"## {name}", "", f"*{_upper(summary)}.* Source: {source}.", "")
    yield from (markdown(found.__doc__ or ""), "")
    options = options_of(name)
    if not options:
        yield from ("No options.", "")
        return
    told = attributes(getattr(found, kind).__doc__ or "")
    yield from ("| option | default | what it is |", "| --- | --- | --- |")
    for option, default in options.items():
        shown = ("yes" if default else "no") if isinstance(default, bool) else default
        yield f"| `{option.replace('_', '-')}` | {f'`{shown}`' if shown != '' else ''} | {told[option]} |"
    first = next(iter(options))
    yield from (
        "",
        f'Set with `-o {first.replace("_", "-")}=VALUE`, or `options={{"{first}": ...}}` in Python.',
        "",
    )


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def markdown(docstring: str) -> str:
    """A docstring as Markdown: double backticks are code, what is indented is set as it is, and nothing is a tag."""
    lines, inside = [], False
    for line in docstring.strip().splitlines():
        # Indented text behind an empty line is a block; inside a paragraph or a list it runs on.
        inside = line.startswith("    ") and (inside or not lines or not lines[-1].strip())
        lines.append(line if inside else _code(line.strip() if not line.startswith(" ") else line))
    return "\n".join(lines)


def _code(line: str) -> str:
    parts = re.split(r"(``.*?``)", line)
    return "".join(
        f"`{part[2:-2]}`" if part.startswith("``") else part.replace("<", "&lt;").replace("|", "\\|")
        for part in parts
    )


def attributes(docstring: str) -> dict[str, str]:
    """What a docstring says under ``Attributes:``; several names may share a line."""
    found: dict[str, str] = {}
    if "Attributes:" not in docstring:
        return found
    names: list[str] = []
    for line in docstring.split("Attributes:")[1].splitlines():
        head = re.match(r"        (\w[\w, ]*): (.*)", line)
        if head:
            names = [name.strip() for name in head[1].split(",")]
            found |= dict.fromkeys(names, _code(head[2]))
        elif line.startswith("            "):
            found |= {name: f"{found[name]} {_code(line.strip())}" for name in names}
        elif line.strip():
            break
    return found


# Task files.


def task_page() -> str:
    """Every key of a task file."""
    schema = json_schema()
    lines = [
        "# Task files: every key",
        "",
        (
            f"{MADE} `circuitfind schema` prints it as JSON Schema for editors, `circuitfind init` writes a commented file to "
            "start from, [your-own-task.md](your-own-task.md) explains how to write one, and `circuitfind validate` checks it. "
            "Keys that are not listed are refused, with the nearest that is."
        ),
        "",
        "## The file",
        "",
        *_keys(schema),
    ]
    for name, part in sorted(schema["$defs"].items()):
        if part.get("properties"):
            doc = markdown(str(part.get("description", ""))).splitlines()
            lines += [f"## {name}", "", *(doc[:1] if doc else []), "", *_keys(part)]
    return "\n".join(lines).rstrip() + "\n"


def _keys(part: Mapping[str, Any]) -> Iterator[str]:
    required = part.get("required", ())
    yield from ("| key | value | default | what it is |", "| --- | --- | --- | --- |")
    for key, told in part["properties"].items():
        default = "required" if key in required else _default(told)
        yield f"| `{key}` | {_type(told)} | {default} | {_code(str(told.get('description', ''))).strip()} |"
    yield ""


def _default(told: Mapping[str, Any]) -> str:
    value = told.get("default")
    if value is None or isinstance(value, (dict, list)):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(told: Mapping[str, Any]) -> str:
    """In words, with links to the parts."""
    if "$ref" in told:
        name = told["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if json_schema()["$defs"][name].get("properties") else name
    if "enum" in told:
        return ", ".join(f"`{value}`" for value in told["enum"])
    if "const" in told:
        return f"`{told['const']}`"
    for word in ("anyOf", "oneOf"):
        if word in told:
            kinds = [_type(one) for one in told[word] if one.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if told.get("type") == "array":
        return f"list of {_type(told['items'])}" if "items" in told else "list"
    if told.get("type") == "object":
        inner = told.get("additionalProperties")
        return f"by name: {_type(inner)}" if isinstance(inner, dict) else "mapping"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
    return words.get(told.get("type", ""), "any")


# Notebooks.


def notebook_page(path: Path) -> str:
    """The cells of a notebook, in their order."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    made = (
        f"*The cells of [{path.name}]({path.name}), which the tests run. Download it to see what they give.*"
    )
    return "\n\n".join([parts[0], made, *parts[1:]]) + "\n"


def wanted() -> dict[Path, str]:
    """What each file should hold."""
    notebooks = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
    return {
        **{path.with_suffix(".md"): notebook_page(path) for path in notebooks},
        ROOT / "docs" / "methods-reference.md": methods_page(),
        ROOT / "docs" / "task-file.md": task_page(),
    }


if __name__ == "__main__":
    sys.exit(main(wanted()))
