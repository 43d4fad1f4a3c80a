"""Prompt pairs from a CSV or JSONL file."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from circuitfind.errors import TaskError, nearest
from circuitfind.reading import MAX_TEXT, Unreadable, parse_json
from circuitfind.task.align import Prompt, RawPair
from circuitfind.task.parts import DEFAULT_COUNTERFACTUAL
from circuitfind.task.source import read_text, shown_path
from circuitfind.task.templates import Filled

COLUMNS = ("clean", "corrupted", "answer", "wrong")
_IDS = re.compile(r"\[\s*[0-9]{1,9}(\s*,\s*[0-9]{1,9})*\s*\]")
_ID = re.compile("[0-9]{1,9}")
_MORE = DEFAULT_COUNTERFACTUAL + ":"

Row = tuple[int, dict[str, object]]


def read_pairs(path: Path, counterfactual: str | None) -> tuple[list[RawPair], str]:
    """The pairs of a prompt file, and the counterfactual that was taken.

    Raises:
        TaskError: no such file, a row or line that is no pair (with its line and column), or no pairs at all.
    """
    text = read_text(path, "prompt file")
    if path.suffix == ".csv":
        rows = list(_csv_rows(path, text))
    elif path.suffix in (".jsonl", ".ndjson"):
        rows = list(_jsonl_rows(path, text))
    else:
        raise TaskError(
            f"'{shown_path(path)}' is neither .csv nor .jsonl", hint="name the prompt file by its format"
        )
    if not rows:
        raise TaskError(
            f"'{shown_path(path)}' has no prompts", hint="add one pair a line", where=shown_path(path)
        )
    all_of_them = [_counterfactuals(path, line, row) for line, row in rows]
    name = next(iter(all_of_them[0])) if counterfactual is None else counterfactual
    pairs = []
    for (line, row), prompts in zip(rows, all_of_them, strict=True):
        if name not in prompts:
            near = nearest(name, prompts)
            raise TaskError(
                f"there is no counterfactual '{name}'",
                hint=f"did you mean '{near}'?" if near else f"known: {', '.join(prompts)}",
                where=f"{shown_path(path)}:{line}",
            )
        pairs.append(
            RawPair(
                clean=_prompt(path, line, "clean", row["clean"]),
                corrupted=_prompt(path, line, "corrupted", prompts[name]),
                answer=_answers(path, line, "answer", row["answer"]),
                wrong=_answers(path, line, "wrong", row["wrong"]),
                where=f"{shown_path(path)}:{line}",
                group=str(row.get("group") or ""),
            )
        )
    return pairs, name


def _counterfactuals(path: Path, line: int, row: Mapping[str, object]) -> dict[str, object]:
    """Corrupted prompts of a row by name, those of further columns last."""
    given = row.get("corrupted")
    found: dict[str, object] = {}
    if isinstance(given, dict):
        found |= {str(name): prompt for name, prompt in given.items()}
    elif "corrupted" in row:
        found[DEFAULT_COUNTERFACTUAL] = given
    found |= {column.removeprefix(_MORE): row[column] for column in row if column.startswith(_MORE)}
    if not found:
        raise _bad(path, line, "corrupted", "is empty", "give at least one corrupted prompt")
    return found


def _jsonl_rows(path: Path, text: str) -> Iterator[Row]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = parse_json(content)
        except Unreadable as error:
            raise TaskError(
                str(error),
                hint="each line is one JSON object with clean, corrupted, answer and wrong",
                where=f"{shown_path(path)}:{line}",
            ) from None
        if not isinstance(row, dict):
            raise TaskError(
                f"is a {type(row).__name__}, not an object",
                hint="each line is one JSON object with clean, corrupted, answer and wrong",
                where=f"{shown_path(path)}:{line}",
            )
        _check_columns(path, line, row)
        yield line, row


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_TEXT)  # the library's own is less than some prompts
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    before = 0
    try:
        for cells in reader:
            line, before = before + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                again = [column for column in header if header.count(column) > 1]
                if again:
                    raise _bad(
                        path, line, again[0], "stands in the header twice", "give each column one name"
                    )
                _check_columns(path, line, dict.fromkeys(header))
                continue
            if len(cells) != len(header):
                raise TaskError(
                    f"has {len(cells)} columns, the header has {len(header)}",
                    hint="put texts with commas in double quotes",
                    where=f"{shown_path(path)}:{line}",
                )
            yield line, _csv_values(path, line, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise TaskError(
            f"broken CSV: {error}",
            hint="double a quote inside a quoted text",
            where=f"{shown_path(path)}:{before + 1}",
        ) from None


def _csv_values(path: Path, line: int, row: Mapping[str, str]) -> dict[str, object]:
    prompts = [column for column in row if column == "clean" or column.startswith("corrupted")]
    for column in (*prompts, "answer", "wrong"):
        if column in row and not row[column].strip():
            raise _bad(path, line, column, "is empty", "fill every cell")
    as_ids = _IDS.fullmatch(row["clean"].strip()) is not None
    values: dict[str, object] = dict(row)
    for column in prompts:
        if as_ids and _IDS.fullmatch(row[column].strip()):
            values[column] = parse_json(row[column])
    for column in ("answer", "wrong"):
        parts = row[column].split("|")
        digits = all(_ID.fullmatch(part.strip()) for part in parts)
        values[column] = [int(part) for part in parts] if as_ids and digits else parts
    return values


def _check_columns(path: Path, line: int, row: Mapping[str, object]) -> None:
    for column in COLUMNS:
        if column in row or (column == "corrupted" and any(name.startswith(_MORE) for name in row)):
            continue
        near = nearest(column, [name for name in row if name not in COLUMNS])
        hint = f"did you mean '{column}' by '{near}'?" if near else f"each pair needs {', '.join(COLUMNS)}"
        raise TaskError(f"'{column}' is missing", hint=hint, where=f"{shown_path(path)}:{line}")


def _prompt(path: Path, line: int, column: str, value: object) -> Prompt:
    if isinstance(value, str) and value:
        return Filled(value, ())
    if isinstance(value, list) and value and all(_is_id(item) for item in value):
        return tuple(value)
    if value in ("", [], None):
        raise _bad(path, line, column, "is empty", "write the prompt as text or as a list of token ids")
    raise _bad(
        path, line, column, f"is {json.dumps(value)[:60]}", "a prompt is a text or a list of token ids"
    )


def _answers(path: Path, line: int, column: str, value: object) -> tuple[str | int, ...]:
    items = value if isinstance(value, list) else [value]
    if not items or any(item in ("", None) for item in items):
        raise _bad(path, line, column, "is empty", "an answer is a text, a token id, or a list of them")
    for item in items:
        if not isinstance(item, str) and not _is_id(item):
            raise _bad(
                path,
                line,
                column,
                f"is {json.dumps(item)[:60]}",
                "an answer is a text, a token id, or a list of them",
            )
    return tuple(items)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _bad(path: Path, line: int, column: str, what: str, hint: str) -> TaskError:
    return TaskError(f"column '{column}' {what}", hint=hint, where=f"{shown_path(path)}:{line} ({column})")
