"""Rows of data sets that are nowhere, damaged, or no rows; and where they are looked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuitfind.errors import CircuitfindError, PromptError, TaskError
from circuitfind.task.prompts import make_pairs
from circuitfind.task.rows import ROWS_VARIABLE, rows_files
from circuitfind.task.spec import load_task
from tests.task.conftest import FakeTokenizer
from tests.task.test_rows import TASKS, made, row, task, write


def refused(
    kind: type[CircuitfindError], work: Callable[[], object], says: str, where: str = "", hint: str = ""
) -> None:
    with pytest.raises(kind) as caught:
        work()
    assert says in caught.value.what
    assert where in (caught.value.where or "")
    assert hint in caught.value.hint


def test_wrong_columns_name_file_and_row(tmp_path: Path) -> None:
    rows = [row("up"), {**row("down"), "a": {"promt": "x", "answer": "down"}}]
    refused(
        TaskError, lambda: made(tmp_path, rows), "column 'a.prompt' is missing", "train.jsonl:2", "'promt'"
    )
    (tmp_path / "rows" / "train.jsonl").unlink()
    rows = [row("up"), {**row("down"), "a": None}]
    refused(
        TaskError,
        lambda: made(tmp_path, rows, ending=".parquet"),
        "'a.prompt' is null",
        "train.parquet, row 2",
        "`filled`",
    )


@pytest.mark.parametrize(
    ("line", "says"), [("{", "broken JSON"), ("[1]", "is a list, not an object"), ('"x"', "is a str")]
)
def test_lines_that_are_no_rows(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path / "rows" / "train", [row("up")], ".jsonl")
    path.write_text(path.read_text() + "\n" + line + "\n")
    refused(TaskError, lambda: make_pairs(task(tmp_path), FakeTokenizer()), says, "train.jsonl:3")


@pytest.mark.parametrize("keep", [0, 4, 200, -40])
def test_damaged_parquet(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "rows" / "train", [row("up"), row("down")], ".parquet")
    path.write_bytes(path.read_bytes()[:keep])
    refused(
        TaskError,
        lambda: make_pairs(task(tmp_path), FakeTokenizer()),
        "the Parquet file is damaged",
        "train.parquet",
        "get the file again",
    )


def test_parquet_damaged_inside(tmp_path: Path) -> None:
    path = write(tmp_path / "rows" / "train", [row(f"w{n}", f"v{n}") for n in range(300)], ".parquet")
    content = bytearray(path.read_bytes())
    content[10:400] = b"\xff" * 390
    path.write_bytes(bytes(content))
    refused(TaskError, lambda: make_pairs(task(tmp_path), FakeTokenizer()), "damaged", "train.parquet")


def test_no_folder_no_files_no_split(tmp_path: Path) -> None:
    spec = task(tmp_path)
    work: Callable[[], object] = lambda: make_pairs(spec, FakeTokenizer())  # noqa: E731
    (tmp_path / "row").mkdir()
    refused(TaskError, work, "there is no folder of rows at", hint="did you mean")
    (tmp_path / "rows").mkdir()
    refused(TaskError, work, "no rows of the split 'train'", "rows", "put train.jsonl or train.parquet there")
    write(tmp_path / "rows" / "test", [row("up")], ".jsonl")
    write(tmp_path / "rows" / "training", [row("up")], ".jsonl")
    with pytest.raises(TaskError) as caught:
        work()
    assert caught.value.details == ("it holds test.jsonl", "it holds training.jsonl")
    write(tmp_path / "rows" / "train", [row("up")], ".jsonl")
    assert work()
    write(tmp_path / "rows" / "train", [row("up")], ".parquet")
    refused(TaskError, work, "is there twice, as text and as Parquet", hint="keep one")


def test_configurations_do_not_mix(tmp_path: Path) -> None:
    for config in ("one", "two"):
        write(tmp_path / "rows" / config / "train-00000-of-00001", [row(config)], ".jsonl")
    (pair,) = make_pairs(task(tmp_path, config="two"), FakeTokenizer())
    assert pair.clean_text == "go two and"
    refused(
        TaskError,
        lambda: make_pairs(task(tmp_path, config="three"), FakeTokenizer()),
        "of the configuration 'three'",
        hint="or into three/",
    )


def test_parts_of_a_split_are_read_in_order(tmp_path: Path) -> None:
    for part in (1, 0, 2):
        write(
            tmp_path / "rows" / "data" / f"train-0000{part}-of-00003",
            [row(f"part{chr(97 + part)}")],
            ".parquet",
        )
    pairs = make_pairs(task(tmp_path), FakeTokenizer())
    assert [pair.clean_text for pair in pairs] == ["go parta and", "go partb and", "go partc and"]


def test_no_row_is_left(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="none of the 2 rows of own/rows can be used") as caught:
        made(tmp_path, [row("sideways"), row("backwards")])
    assert caught.value.details == ("2 rows: an answer is several tokens",)
    refused(PromptError, lambda: made(tmp_path, []), "own/rows has no rows")


def test_without_folder_variable_or_network(rows_at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_task(TASKS / "mib-mcqa.yaml")
    dataset = spec.prompts.dataset
    assert dataset is not None
    with pytest.raises(TaskError, match="are not here, and the hub did not give them") as caught:
        rows_files(dataset, Path())
    assert "copycolors_mcqa/4_answer_choices/train.jsonl" in caught.value.hint
    assert "the network is switched off (HF_HUB_OFFLINE)" in caught.value.details
    monkeypatch.setenv(ROWS_VARIABLE, str(rows_at / "nowhere"))
    refused(TaskError, lambda: rows_files(dataset, Path()), "which is no folder")


def test_from_the_cache_of_the_hub(rows_at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Laid out as the hub's client keeps a data set that it fetched."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / "datasets--own--cached"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("c0ffee")
    write(kept / "snapshots" / "c0ffee" / "data" / "train-00000-of-00001", [row("up")], ".parquet")
    spec = task(tmp_path, name="own/cached", folder=None)
    (pair,) = make_pairs(spec, FakeTokenizer())
    assert pair.clean_text == "go up and"


def test_from_the_hub(rows_at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no JSONL and no Parquet there is taken from the branch of Parquet files that the hub makes."""
    import huggingface_hub

    asked: list[Any] = []

    def listed(self: Any, name: str, *, repo_type: str, revision: str | None) -> list[str]:
        asked.append((name, repo_type, revision))
        if revision is None:
            return ["README.md", "train.csv"]
        return ["default/train/0000.parquet", "default/test/0000.parquet", "other/train/0000.parquet"]

    def fetched(name: str, *, repo_type: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(tmp_path / "fetched")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", listed)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    write(tmp_path / "fetched" / "default" / "train" / "0000", [row("up")], ".parquet")
    spec = task(tmp_path, name="own/fetched", config="default", folder=None)
    (pair,) = make_pairs(spec, FakeTokenizer())
    assert pair.clean_text == "go up and"
    assert [one for one in asked if isinstance(one, tuple)] == [
        ("own/fetched", "dataset", None),
        ("own/fetched", "dataset", "refs/convert/parquet"),
    ]
    assert asked[-1] == ["default/train/0000.parquet"]


def test_models_without_a_tokenizer(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "train", [row("up")], ".jsonl")
    refused(PromptError, lambda: make_pairs(task(tmp_path), None), "the model has no tokenizer")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"clean": "{a.}"}, "names no column"),
        ({"clean": "no column"}, "every row would give the same"),
        ({"corrupted": {}}, "corrupted"),
        ({"wrong": {"flop": "{x}"}}, "'wrong' has answers for flop, and 'corrupted' has prompts for flip"),
        ({"answer-tokens": "two"}, "answer-tokens"),
        ({"name": "a/b/c"}, "name"),
        ({"splitt": "train"}, "split"),
    ],
)
def test_task_files_that_do_not_fit(tmp_path: Path, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(TaskError) as caught:
        task(tmp_path, **keys)
    assert says in str(caught.value)
    assert "own.yaml:1" in str(caught.value)
