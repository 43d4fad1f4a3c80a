"""What damaged files once brought out: each must be refused in words that say what is wrong and where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitfind.errors import CircuitfindError, UsageError, nearest, shortened, shown
from circuitfind.names import parse_edge, parse_node
from tests.finished import QuickRun, plainly
from tests.fuzz.damage import array_bytes, as_json, as_npz, npz_members, raw
from tests.fuzz.oracle import check_error, judge
from tests.fuzz.targets import Target

Change = Callable[[Any], Any]


def put(*path: str | int, value: Any) -> Change:
    """Data with a value in place of another."""

    def change(data: Any) -> Any:
        inside = data
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = value
        return data

    return change


DEEP = raw("[" * 300 + "]" * 300)
JSON: list[tuple[str, Change, str]] = [
    ("circuit.json", lambda _: [], "no JSON object"),
    ("circuit.json", put("nodes", 0, "name", value="c0.h1"), "'c0.h1' is not the name of a node"),
    ("circuit.json", put("nodes", 0, "name", value="a" + "9" * 5000 + ".h0"), "more characters"),
    ("circuit.json", put("edges", 0, "name", value=7), "incomplete"),
    ("circuit.json", put("edges", 0, "score", value=raw("NaN")), "NaN"),
    ("circuit.json", put("edges", 0, "score", value=raw("1e400")), "beyond the largest number"),
    ("circuit.json", put("edges", 0, "score", value=10**30), "a whole number of 31 digits"),
    ("circuit.json", put("edges", 0, "score", value=raw("9" * 5000)), "a whole number of 5000 digits"),
    ("circuit.json", put("conditions", "task", value=["x"]), "'task' is a list"),
    ("circuit.json", put("conditions", "task", value=raw('"\\ud800"')), "half a character"),
    ("circuit.json", put("conditions", value=0), "0 stands where an object belongs"),
    ("circuit.json", put("evaluations", 0, "faithfulness", "value", value="x"), "'value' is the text 'x'"),
    ("circuit.json", put("evaluations", 0, "n_prompts", value=True), "'n_prompts' is true"),
    ("circuit.json", put("anatomy", "n_heads", value=0), "'n_heads' is 0"),
    ("circuit.json", put("anatomy", "n_layers", value=10**9), "more than any model has"),
    ("circuit.json", put("x", value=DEEP), "nested more than"),
    ("evidence.json", put("conditions", value=0), "'conditions' is 0"),
    ("evidence.json", put("measured", value=[1]), "incomplete"),
    ("views.json", put("conditions", value="x"), "'conditions' is the text 'x'"),
    ("backups.json", put("notes", value=[{}]), "'notes' is a list"),
    ("manifest.json", put("config", value=raw("1e400")), "beyond the largest number"),
    ("manifest.json", put("stages", value=[]), "damaged at 'stages'"),
    ("EAP-IG", put("cfg", "n_layers", value=10**9), "too many edges"),
    ("EAP-IG", put("edges", "input->logits", "score", value=raw("Infinity")), "infinite"),
    ("circuit-tracer", put("metadata", "prompt_tokens", value=3), "incomplete"),
    ("feature graph", put("nodes", 0, "score", value=raw("NaN")), "NaN"),
    ("baseline", put("metric", value=None), "null stands where an object belongs"),
    ("edges.json", lambda _: "x" * 10_000, "xxx"),
    ("sae-lens cfg.json", put("d_in", value=DEEP), "nested more than"),
    ("TransformerLens config.json", put("config", "n_heads", value=0), "n_heads is 0"),
    ("TransformerLens config.json", put("config", "n_layers", value=10**9), "weights of 2 layers"),
    ("TransformerLens config.json", put("config", "d_model", value=10**9), "no weight has so many"),
    ("TransformerLens config.json", put("config", "d_model", value=[1]), "d_model is [1]"),
    ("width of a model", lambda _: 0, "its config.json has none of"),
    ("width of a model", put("config", value=3), "its config.json has none of"),
]


@pytest.mark.parametrize(("name", "change", "says"), JSON)
def test_json(good: dict[str, Target], tmp_path: Path, name: str, change: Change, says: str) -> None:
    target = good[name]
    path = Path(shutil.copytree(target.folder, tmp_path / target.folder.name)) / target.file
    path.write_bytes(as_json(change(json.loads(target.good[0]))))
    with plainly(tmp_path):
        error = judge(lambda: target.read(path), target.says)
    assert error is not None
    assert says in str(error), str(error)


LINES: list[tuple[str, str, bytes, str]] = [
    ("prompts.jsonl", "p.jsonl:1", b'{"clean": ' + b"9" * 30 + b"}\n", "a whole number of 30 digits"),
    ("prompts.jsonl", "p.jsonl:2", b"\n" + b"[" * 5000, "nested"),
    ("prompts.jsonl", "p.jsonl:1", b'{"clean": "\\udfff"}', "half a character"),
    ("prompts.jsonl", "p.jsonl", b"\xed\xa0\x80", "no UTF-8 text (byte 0)"),
    ("rows", "train.jsonl:1", b'{"a": 1e999}', "beyond the largest number"),
    ("texts.jsonl", "t.jsonl:1", b'{"text": 1' + b"0" * 5000 + b"}", "no JSON object with a text"),
    ("task", "small.yaml", b"name: x\nprompts: &a {b: *a}\n", "refers to itself"),
    ("task", "small.yaml", b"a: 0x" + b"f" * 100, "a whole number of 102 digits"),
    ("task", "small.yaml", b'a: "\\ud800"', "half a character"),
    ("task", "small.yaml", b'a: "\\U00110000"', "broken YAML"),
    ("task", "small.yaml", b"a: 2001-99-99", "month"),
    ("task", "small.yaml", b"a: !!python/object/apply:os.system [id]", "broken YAML"),
    ("task", "small.yaml", b"? [1, 2]\n: 3", "unhashable key"),
    ("labels", "labels.yaml", b"a@bbbbbbbbbbbb: &a {m1.n2: *a}", "refers to itself"),
    ("circuit-tracer config", "config.yaml", b"&a [*a]", "refers to itself"),
    ("circuitfind.toml", "circuitfind.toml", b"[discover]\nedges = inf", "is not what 'edges' takes"),
    ("circuitfind.toml", "circuitfind.toml", b"[discover]\nedges = 0x" + b"f" * 9000, "beyond 64 bits"),
    ("circuitfind.toml", "circuitfind.toml", b"[discover]\nx = " + b"[" * 3000, "broken TOML"),
    ("circuitfind.toml", "circuitfind.toml", b"[discover]\nx" + b" " * 900_000, "broken TOML"),
]


@pytest.mark.parametrize(("name", "where", "content", "says"), LINES)
def test_texts(
    good: dict[str, Target], tmp_path: Path, name: str, where: str, content: bytes, says: str
) -> None:
    target = good[name]
    path = Path(shutil.copytree(target.folder, tmp_path / target.folder.name)) / target.file
    path.write_bytes(content)
    with plainly(tmp_path):
        error = judge(lambda: target.read(path), where)
    assert error is not None
    assert says in str(error), str(error)


def _text(value: Any) -> bytes:
    return array_bytes(np.array(as_json(value).decode()))


@pytest.mark.parametrize(
    ("name", "member", "content", "says"),
    [
        ("scores.npz", "header", lambda header: _text({**header, "level": "nodes"}), "no level"),
        ("scores.npz", "header", lambda header: _text({**header, "facts": 3}), "'facts' is no object"),
        ("scores.npz", "header", lambda header: _text([]), "cannot read the scores"),
        ("scores.npz", "header", lambda header: _text({**header, "anatomy": {}}), "incomplete"),
        ("scores.npz", "values", lambda _: array_bytes(np.zeros(3)), "scores of shape (3,)"),
        ("scores.npz", "values", lambda _: array_bytes(np.array("x")), "not numbers"),
        ("scores.npz", "nodes", lambda _: array_bytes(np.zeros((2, 2))), "'nodes' is [2, 2]"),
        ("attribution.npz", "row_nodes", lambda _: array_bytes(np.array([10**6])), "no attribution graph"),
        ("attribution.npz", "nodes_layer", lambda _: array_bytes(np.array(3)), "no attribution graph"),
        ("gemma-scope", "W_enc", lambda _: array_bytes(np.zeros(3, dtype=int)), "holds int64"),
    ],
)
def test_arrays(
    good: dict[str, Target], tmp_path: Path, name: str, member: str, content: Change, says: str
) -> None:
    import io

    target = good[name]
    members = npz_members(target.good[0])
    header = json.loads(str(np.load(io.BytesIO(members["header.npy"])))) if "header.npy" in members else None
    members[f"{member}.npy"] = content(header)
    path = Path(shutil.copytree(target.folder, tmp_path / target.folder.name)) / target.file
    path.write_bytes(as_npz(list(members.items())))
    error = judge(lambda: target.read(path), target.says)
    assert error is not None
    assert says in str(error), str(error)


@pytest.mark.parametrize(
    "text", ["a" + "9" * 5000 + ".h0", "a1.h٢", "m" + "1" * 10, "m1.n" + "2" * 4000, "x" * 10**7]
)
def test_names_are_of_a_few_digits(text: str) -> None:
    for read in (parse_node, lambda name: parse_edge(f"{name}->logits")):
        error = judge(lambda read=read: read(text))
        assert isinstance(error, UsageError)


def test_an_error_is_as_long_as_one_reads() -> None:
    long = "x" * 10**6
    error = CircuitfindError(long, hint=long, where=long, details=[long] * 1000)
    check_error(error)
    assert "more characters" in error.what
    assert error.details[-1] == "... and 996 more"
    assert shortened("word", 4) == "word"
    assert len(shortened(long, 100)) <= 100
    assert nearest("m" * 300, ["m" * 299]) is None
    assert shown("a\u202eb\ud800\x1b\u2028c") == "a\\u202eb\\ud800\\x1b\\u2028c"


# Whole commands.


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("prune latest --threshold 1e400", "inf is no finite number"),
        ("prune latest --threshold nan", "nan is no finite number"),
        ("prune latest --edges 99999999999999999999", "beyond 64 bits"),
        ("show " + "x" * 5000, "can be no file"),
        ("discover ~nobody-at-all/task.yaml", "~nobody-at-all"),
        ("diff latest \udcff", "\\udcff"),
    ],
)
def test_commands(cli: Any, quick_run: QuickRun, words: str, says: str) -> None:
    quick_run(cli.folder)
    found = cli.fails_loosely(2, *words.split(), says=[says])
    assert len(found.err) < 3000


def test_a_text_with_a_zero_byte_from_a_file(cli: Any, quick_run: QuickRun) -> None:
    quick_run(cli.folder)
    (cli.folder / "circuitfind.toml").write_text('[prune]\noutput = "a\\u0000b"\n')
    cli.fails_loosely(
        2,
        "prune",
        "latest",
        "--edges",
        "3",
        says=["circuitfind.toml:2 (prune.output)", "is not what 'output' takes"],
    )
