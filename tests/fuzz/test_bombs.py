"""Files that stand for far more than they hold, and prompts as long as they come: refused or read within a cap on memory.

Bombs are set off in a process of their own, whose memory is capped: one that goes off takes nothing else with it.
"""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from circuitfind.circuit.scores import Scores
from circuitfind.errors import CircuitfindError
from circuitfind.reading import Unreadable, limits, parse_json, read_arrays, read_bytes, read_text
from tests.finished import QuickRun
from tests.fuzz.damage import as_npz, npy
from tests.fuzz.oracle import judge

MEGABYTE = 1_000_000


def aliases(levels: int = 12) -> str:
    """A hundred bytes a level, and ten times the values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def merges(levels: int = 12) -> str:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


YAML = {
    "aliases": aliases(),
    "merges": merges(),
    "itself": "a: &a [*a, *a]\n",
    "deep": "a: " + "[" * 100_000,
    "deep blocks": "".join(" " * i + "-\n" for i in range(3000)),
    "wide": "a: [" + "1," * 3 * MEGABYTE + "]",
    "keys": "".join(f"k{i}: {{}}\n" for i in range(300_000)),
    "long number": "name: 0x" + "f" * MEGABYTE,
    "base sixty": "name: " + ":".join(["1"] * 100_000),
    "long word": "name: " + "x" * 10 * MEGABYTE,
    "anchors": "".join(f"a{i}: &b{i} 1\n" for i in range(100_000)),
    "spaces": "name: x" + " " * 10 * MEGABYTE + "y",
    "lines": "\n" * 10 * MEGABYTE,
    "quotes": 'name: "' + "\\u0041" * MEGABYTE + '"',
    "tabs": "\t" * MEGABYTE,
    "questions": "? " * 100_000,
}

JSON = {
    "deep": "[" * 5 * MEGABYTE,
    "deep objects": '{"a":' * MEGABYTE,
    "closed": "[" * 150_000 + "]" * 150_000,
    "deep enough to pass json": "[" * 900 + "]" * 900,
    "long number": "[" + "9" * 5 * MEGABYTE + "]",
    "many long numbers": "[" + ",".join(["9" * 4000] * 1000) + "]",
    "steep": "[1e999999999]",
    "fraction": "[0." + "9" * 5 * MEGABYTE + "e400]",
    "keys": "{" + ",".join(f'"{i}":0' for i in range(MEGABYTE)) + "}",
    "word": '{"format": "' + "x" * 10 * MEGABYTE + '"}',
    "halves": '["' + "\\ud800" * MEGABYTE + '"]',
    "open": '"' + "\\" * MEGABYTE,
}

SIZES = {
    "layers": {"n_layers": 10**9, "n_heads": 1, "n_kv_heads": 1},
    "heads": {"n_layers": 1, "n_heads": 10**9, "n_kv_heads": 10**9},
    "both": {"n_layers": 10**5, "n_heads": 10**5, "n_kv_heads": 1},
    "no layer": {"n_layers": 0, "n_heads": 1, "n_kv_heads": 1},
    "less than one": {"n_layers": -3, "n_heads": -3, "n_kv_heads": -3},
    "uneven": {"n_layers": 2, "n_heads": 3, "n_kv_heads": 2},
    "truth": {"n_layers": True, "n_heads": 3, "n_kv_heads": 3},
}


def _capped() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000, 2_000_000_000))
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))


COMMAND = """
import json, sys, time
from circuitfind.cli import run
words = json.loads(sys.stdin.read())
for one in words:
    started = time.process_time()
    code = run(one)
    print("CODE", code, round(time.process_time() - started, 2), flush=True)
"""


def in_a_capped_process(commands: list[list[str]], folder: Path) -> list[tuple[int, float]]:
    """(exit code, seconds) of each command, one after another with 2 GB to live in."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=folder,
        preexec_fn=_capped,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "should not happen" not in done.stderr, done.stderr[-2000:]
    found = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("CODE ")]
    assert len(found) == len(commands)
    return [(int(code), float(seconds)) for code, seconds in found]


@pytest.mark.slow
def test_texts_that_grow(tmp_path: Path) -> None:
    commands = []
    for kind, ending, texts in (("yaml", "yaml", YAML), ("json", "json", JSON)):
        for number, text in enumerate(texts.values()):
            path = tmp_path / f"{kind}{number}.{ending}"
            path.write_text(text)
            commands.append(["validate", "--no-model", path.name] if kind == "yaml" else ["show", path.name])
    for (code, seconds), words in zip(in_a_capped_process(commands, tmp_path), commands, strict=True):
        assert code == 2, words
        assert seconds < 10, words


@pytest.mark.parametrize("name", ["aliases", "merges", "itself", "long number", "base sixty", "questions"])
def test_yaml_that_grows(tmp_path: Path, name: str) -> None:
    from circuitfind.task.spec import load_task

    path = tmp_path / "b.yaml"
    path.write_text(YAML[name])
    assert judge(lambda: load_task(path), "b.yaml") is not None


@pytest.mark.parametrize(
    "name", ["closed", "deep enough to pass json", "many long numbers", "steep", "halves"]
)
def test_json_that_grows(name: str) -> None:
    started = time.thread_time()
    with pytest.raises(Unreadable) as caught:
        parse_json(JSON[name])
    assert len(str(caught.value)) < 200
    assert time.thread_time() - started < 10


def test_what_json_may_hold() -> None:
    assert parse_json(
        '[9223372036854775807, -9223372036854775808, 1e308, 1E2, "\\ud83d\\ude00", "12345678901234567890"]'
    ) == [
        2**63 - 1,
        -(2**63),
        1e308,
        100.0,
        "😀",
        "12345678901234567890",
    ]
    assert parse_json('{"x": 0.12345678901234567890123, "y": 123.5e-400}') == {
        "x": 0.12345678901234568,
        "y": 0.0,
    }
    assert str(parse_json("[NaN, Infinity]", words=True)) == "[nan, inf]"
    for text in (
        "9223372036854775808",
        "-9223372036854775809",
        "NaN",
        "-Infinity",
        "1e309",
        "-1e309",
        '"\\udc00"',
    ):
        with pytest.raises(Unreadable):
            parse_json(text)


@pytest.mark.parametrize("name", SIZES)
def test_circuits_of_models_that_cannot_be(tmp_path: Path, quick_run: QuickRun, name: str) -> None:
    from circuitfind.circuit.graph import Circuit

    path = quick_run(tmp_path) / "circuit.json"
    data = json.loads(path.read_bytes())
    data["anatomy"] |= SIZES[name]
    path.write_text(json.dumps(data))
    assert judge(lambda: Circuit.load(path), "circuit.json") is not None


# Archives.


def _zeros() -> bytes:
    return npy("<f8", (40 * MEGABYTE,), False, b"") + bytes(320 * MEGABYTE)


def _small() -> bytes:
    return npy("<f8", (1,), False, bytes(8))


BOMBS: dict[str, Callable[[], bytes]] = {
    "zeros": lambda: as_npz([("values.npy", _zeros())], packed=True),
    "lies of its size": lambda: _lying(_zeros()),
    "many": lambda: as_npz([(f"{i}.npy", _small()) for i in range(10_001)]),
    "declared": lambda: as_npz([("values.npy", npy("<f8", (2**60,), False, bytes(8)))]),
    "declared without a size": lambda: as_npz([("values.npy", npy("|V0", (2**62,), False, b""))]),
    "negative": lambda: as_npz([("values.npy", npy("<f8", (-1, -1), False, bytes(8)))]),
    "pickle": lambda: as_npz([("values.npy", npy("|O", (1,), False, b"cos\nsystem\n(S'true'\ntR."))]),
    "twice": lambda: _twice(),
    "in itself": lambda: as_npz([("values.npy", as_npz([("x.npy", _small())]))]),
    "a folder above": lambda: as_npz([("../../values.npy", _small())]),
    "locked": lambda: _locked(),
}
"""By name, archives that unpack to more than they should."""


def _twice() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("values.npy", _small())
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("values.npy", _small())
    return out.getvalue()


def _lying(content: bytes) -> bytes:
    """Says in its table that it unpacks to a hundred bytes."""
    data = as_npz([("values.npy", content)], packed=True)
    return data.replace(struct.pack("<I", len(content)), struct.pack("<I", 100))


def _locked() -> bytes:
    """Says that it is encrypted."""
    data = bytearray(as_npz([("values.npy", _small())]))
    for mark, at in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        data[data.index(mark) + at] |= 1
    return bytes(data)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) for n in list(BOMBS)[:3]] + list(BOMBS)[3:]
)
def test_archives_that_grow(tmp_path: Path, name: str) -> None:
    from circuitfind.dictionaries.load import load_dictionaries

    path = tmp_path / "params.npz"
    path.write_bytes(BOMBS[name]())
    (tmp_path / "cfg.json").write_text('{"hook_name": "blocks.3.hook_resid_post"}')
    assert judge(lambda: Scores.load(path), "params.npz") is not None
    assert judge(lambda: load_dictionaries(path), "params.npz") is not None
    assert not list(tmp_path.parent.glob("values*"))


def test_arrays_that_shrink_well_are_read(tmp_path: Path) -> None:
    """Scores that are mostly NaN shrink a thousandfold, and are no bomb."""
    path = tmp_path / "s.npz"
    values = np.full((300, 2000), np.nan)
    np.savez_compressed(path, values=values)
    assert path.stat().st_size * limits.MAX_RATIO < values.nbytes
    assert np.isnan(read_arrays(path)["values"]).all()


# Prompts as long as they come.


LONG = {
    "one line": "word " * 2 * MEGABYTE,
    "no blanks": "x" * 10 * MEGABYTE,
    "beyond the plane": "😀" * (5 * MEGABYTE // 2),
    "marks": "e\u0301" * 3 * MEGABYTE,
}


@pytest.mark.parametrize(
    "name", [next(iter(LONG)), *(pytest.param(n, marks=pytest.mark.slow) for n in list(LONG)[1:])]
)
def test_lines_of_ten_megabytes(tmp_path: Path, name: str) -> None:
    from circuitfind.dictionaries.texts import read_text as read_texts
    from circuitfind.task.files import read_pairs

    text = LONG[name]
    row = {"clean": text, "corrupted": text + "!", "answer": " a", "wrong": " b"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row, ensure_ascii=False) + "\n")
    (tmp_path / "p.csv").write_text("clean,corrupted,answer,wrong\n" + f'"{text}","{text}!", a, b\n')
    for file, rows in (("p.jsonl", 2), ("p.csv", 1)):
        path, found = tmp_path / file, []
        assert judge(lambda path=path, found=found: found.extend(read_pairs(path, None)[0])) is None
        assert [pair.clean.text for pair in found] == [text] * rows
    (tmp_path / "t.txt").write_text(text)
    assert read_texts(tmp_path / "t.txt") == [text]


@pytest.mark.slow
def test_a_task_with_a_prompt_of_ten_megabytes(tmp_path: Path) -> None:
    from circuitfind.task.spec import load_task

    text = "word " * 2 * MEGABYTE
    pair = {"clean": text + "a", "corrupted": text + "b", "answer": " a", "wrong": " b"}
    path = tmp_path / "long.yaml"
    path.write_text(json.dumps({"name": "long", "prompts": {"pairs": [pair]}}))
    assert judge(lambda: load_task(path)) is None


# What is no file.


def test_pipes_and_devices(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert read_bytes(pipe) == b""  # nobody writes to it, and nobody waits
    writer = threading.Thread(target=lambda: pipe.write_text("é" * 100_000))
    writer.start()
    while not (text := read_text(pipe)):
        time.sleep(0.01)
    writer.join()
    assert text == "é" * 100_000
    with pytest.raises(Unreadable, match="more than"):
        read_bytes(Path("/dev/zero"))
    with pytest.raises(Unreadable, match="none"):
        read_bytes(tmp_path / "a\0b")
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.truncate(limits.MAX_TEXT + 1)  # a hole, which takes no room
    with pytest.raises(Unreadable, match=r"1,073,741,825 bytes, and at most 1,073,741,824"):
        read_text(path)


def every_reader() -> dict[str, Callable[[Path], object]]:
    from circuitfind.circuit.graph import Circuit
    from circuitfind.dictionaries.texts import read_text as read_texts
    from circuitfind.sweep.spec import load_sweep
    from circuitfind.task.files import read_pairs
    from circuitfind.task.spec import load_task

    return {
        "x.yaml": load_task,
        "y.yaml": load_sweep,
        "x.csv": lambda path: read_pairs(path, None),
        "x.json": Circuit.load,
        "x.npz": Scores.load,
        "x.txt": read_texts,
    }


@pytest.mark.parametrize("name", ["x.yaml", "y.yaml", "x.csv", "x.json", "x.npz", "x.txt"])
def test_folders_links_to_themselves_and_devices_are_told(tmp_path: Path, name: str) -> None:
    read = every_reader()[name]
    path = tmp_path / name
    path.mkdir()
    assert isinstance(judge(lambda: read(path), name), CircuitfindError)
    path.rmdir()
    path.symlink_to(path)
    assert isinstance(judge(lambda: read(path), name), CircuitfindError)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert isinstance(judge(lambda: read(path), name), CircuitfindError)
