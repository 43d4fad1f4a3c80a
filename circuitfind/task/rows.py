"""Prompt pairs from the rows of a data set: JSONL or Parquet files in a folder, or of the hub."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from circuitfind.config import offline
from circuitfind.errors import PromptError, TaskError, nearest
from circuitfind.reading import Unreadable, expanded, parse_json
from circuitfind.task.align import Aligner, RawPair
from circuitfind.task.columns import ColumnProblem, parse_columns, value_of
from circuitfind.task.dataset import DatasetPrompts
from circuitfind.task.outside import check_inside, named_file
from circuitfind.task.source import read_text, shown_path
from circuitfind.task.templates import Filled

ROWS_VARIABLE = "CIRCUITFIND_ROWS"
"""Environment variable that names a folder of data sets: a folder for each, by its name on the hub."""
_CONVERTED = "refs/convert/parquet"
"""Branch on which the hub keeps every data set as Parquet."""
_TEXT = (".jsonl", ".ndjson")
_ENDINGS = (*_TEXT, ".parquet")
Row = tuple[str, Mapping[str, Any]]


def read_rows(
    prompts: DatasetPrompts, owner: Path | None, aligner: Aligner, counterfactual: str, count: int | None
) -> tuple[list[RawPair], dict[str, int]]:
    """The first ``count`` rows that the task takes, as pairs, and why others were passed over, by reason.

    Args:
        prompts: What the task says of the rows.
        owner: The task file; None for a task that was made in Python.
        aligner: Counts tokens.
        counterfactual: Which corrupted prompt.
        count: How many; all if None.

    Raises:
        TaskError: No such data set, a damaged file, or a row that lacks a column (with its file and row).
        PromptError: No row is left.
    """
    files = rows_files(prompts, owner)
    pairs: list[RawPair] = []
    passed: Counter[str] = Counter()
    seen = 0
    for where, row in _all_rows(files):
        if count is not None and len(pairs) >= count:
            break
        seen += 1
        try:
            made = _pair(prompts, row, where, aligner, counterfactual)
        except ColumnProblem as problem:
            raise TaskError(str(problem), hint=problem.hint, where=where) from None
        if isinstance(made, str):
            passed[made] += 1
        else:
            pairs.append(made)
    if not pairs:
        raise PromptError(
            f"none of the {seen} rows of {prompts.name} can be used"
            if seen
            else f"{prompts.name} has no rows",
            hint="compare what the task asks of its rows (where, filled, equal-tokens, answer-tokens)"
            if seen
            else "get the data set again",
            where=shown_path(files[0].parent),
            details=[f"{number} rows: {reason}" for reason, number in passed.most_common(5)],
        )
    return pairs, {reason: number for reason, number in passed.items() if reason != _ELSE}


_ELSE = "another value in `where`"


def _pair(
    prompts: DatasetPrompts, row: Mapping[str, Any], where: str, aligner: Aligner, counterfactual: str
) -> RawPair | str:
    """The pair of a row, or why the task does not take it."""
    if any(value_of(row, column) != value for column, value in prompts.where.items()):
        return _ELSE
    for column in prompts.filled:
        if value_of(row, column) is None:
            return f"'{column}' is null"

    def text(template: str) -> str:
        return parse_columns(template).fill(row)

    clean, corrupted = text(prompts.clean), text(prompts.corrupted[counterfactual])
    lengths = {len(aligner.encode(text(template))) for template in prompts.equal_tokens}
    if len(lengths) > 1:
        return "what must have equally many tokens (equal-tokens) has not"
    answers: list[str | int] = []
    for template in (prompts.answer, prompts.wrong_of(counterfactual)):
        answer = text(template)
        tokens = aligner.encode(answer)
        if len(tokens) > 1 and prompts.answer_tokens == "one":
            return "an answer is several tokens"
        answers.append(tokens[0][0] if len(tokens) > 1 else answer)
    return RawPair(
        clean=Filled(clean, ()),
        corrupted=Filled(corrupted, ()),
        answer=(answers[0],),
        wrong=(answers[1],),
        where=where,
        group=text(prompts.group) if prompts.group else "",
    )


# Rows of files.


def _all_rows(files: tuple[Path, ...]) -> Iterator[Row]:
    for path in files:
        yield from _parquet(path) if path.suffix == ".parquet" else _lines(path)


def _lines(path: Path) -> Iterator[Row]:
    hint = "each line is one row as a JSON object; get the file again"
    for number, line in enumerate(read_text(path, "file of rows").split("\n"), 1):
        where = f"{shown_path(path)}:{number}"
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except Unreadable as error:
            raise TaskError(str(error), hint=hint, where=where) from None
        if not isinstance(row, dict):
            raise TaskError(f"is a {type(row).__name__}, not an object", hint=hint, where=where)
        yield where, row


def _parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise TaskError(
            f"a Parquet file needs pyarrow, which is not here: {error}",
            hint="install it (pip install pyarrow), or give the rows as .jsonl",
            where=shown_path(path),
        ) from error
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{shown_path(path)}, row {number}", row
    except (ArrowException, OSError, ValueError) as error:
        after = f" after row {number}" if number else ""
        raise TaskError(
            f"the Parquet file is damaged{after}: {str(error).splitlines()[0][:200]}",
            hint="get the file again",
            where=shown_path(path),
        ) from error


# Where the files are.


def rows_files(prompts: DatasetPrompts, owner: Path | None) -> tuple[Path, ...]:
    """The files of a split, in order; those of the hub are fetched, or taken from its cache.

    Raises:
        TaskError: They are nowhere, or outside of the folder of the task file, which is ``owner``.
    """
    if prompts.folder is not None:
        folder = named_file(owner, prompts.folder, "prompts.dataset.folder")
        found = _in_folder(prompts, folder)
        own = [] if owner is None else [folder, owner.parent, owner.resolve().parent]
        for path in found if own else ():
            check_inside(path, own, str(path.relative_to(folder)), shown_path(folder))
        return found
    named = os.environ.get(ROWS_VARIABLE)
    if named:
        root = expanded(named)
        if not root.is_dir():
            raise TaskError(
                f"${ROWS_VARIABLE} is '{named}', which is no folder",
                hint=f"name the folder that holds {prompts.name}",
            )
        for folder in (root / prompts.name, root / prompts.name.rpartition("/")[2]):
            if folder.is_dir():
                return _in_folder(prompts, folder)
    return _on_hub(prompts.name, prompts.config, prompts.split, prompts.revision)


def _in_folder(prompts: DatasetPrompts, folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        near = nearest(folder.name, [p.name for p in folder.parent.glob("*/")])
        raise TaskError(
            f"there is no folder of rows at '{shown_path(folder)}'",
            hint=f"did you mean '{folder.parent / near}'?" if near else "check the path",
        )
    there = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    found = _of_split(there, prompts.config, prompts.split)
    if not found:
        ours = [name for name in there if name.endswith(_ENDINGS)]
        config = f" of the configuration '{prompts.config}'" if prompts.config else ""
        raise TaskError(
            f"the folder holds no rows of the split '{prompts.split}'{config}",
            where=shown_path(folder),
            hint=f"put {prompts.split}.jsonl or {prompts.split}.parquet there"
            + (f", or into {prompts.config}/" if prompts.config else ""),
            details=[f"it holds {name}" for name in ours[:5]] or ["it holds no .jsonl and no .parquet file"],
        )
    if len({Path(name).suffix == ".parquet" for name in found}) > 1:
        raise TaskError(
            f"the split '{prompts.split}' is there twice, as text and as Parquet",
            where=shown_path(folder),
            hint="keep one of them",
            details=found[:5],
        )
    return tuple(folder / name for name in found)


def _of_split(names: list[str], config: str | None, split: str) -> list[str]:
    """The files of a split, as the hub lays them out: ``train.jsonl``, ``data/train-00000-of-00001.parquet``,
    ``CONFIG/train-...``, ``CONFIG/train/0000.parquet``.
    """
    found = []
    for name in names:
        *folders, file = Path(name).parts
        begins = file.startswith((f"{split}-", f"{split}_", f"{split}."))
        if file.endswith(_ENDINGS) and (begins or split in folders):
            found.append(name)
    own = [name for name in found if config is not None and config in Path(name).parts]
    flat = [name for name in found if len(Path(name).parts) == 1]
    return own or (flat if config is not None else found)


@cache
def _on_hub(name: str, config: str | None, split: str, revision: str | None) -> tuple[Path, ...]:
    problems: list[str] = []
    for at in (revision,) if revision else (None, _CONVERTED):
        try:
            root, found = _snapshot(name, config, split, at)
        except OSError as error:
            problems.append(str(error))
            continue
        if found:
            return tuple(root / file for file in found)
        problems.append("it has no JSONL or Parquet files of this split")
    if offline():
        problems.append("the network is switched off (HF_HUB_OFFLINE)")
    folder = "/".join(part for part in (name.rpartition("/")[2], config) if part)
    raise TaskError(
        f"the rows of '{name}' ({split}) are not here, and the hub did not give them",
        hint=f"set ${ROWS_VARIABLE} to a folder that holds {folder}/{split}.jsonl (or .parquet), "
        "or fetch them once with the network on",
        details=list(dict.fromkeys(problems)),
    )


def _snapshot(name: str, config: str | None, split: str, revision: str | None) -> tuple[Path, list[str]]:
    """Where a data set lies on this disk, and which of its files are the split's.

    Raises:
        OSError: The hub did not give it.
    """
    from huggingface_hub import HfApi, snapshot_download

    of: dict[str, Any] = {"repo_type": "dataset", "revision": revision}
    try:
        if offline():
            root = Path(snapshot_download(name, local_files_only=True, **of))
            files = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
            return root, _of_split(sorted(files), config, split)
        found = _of_split(sorted(HfApi().list_repo_files(name, **of)), config, split)
        return Path(snapshot_download(name, allow_patterns=found, **of)), found
    except Exception as error:  # the client raises errors of several libraries
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise OSError(lines[0][:300] if lines else type(error).__name__) from error
