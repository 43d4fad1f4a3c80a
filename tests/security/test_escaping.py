"""Text from anywhere (labels, tokens, names, prompts) is text in everything that is written: no markup, no code, no formula.

Pages that are looked at in a browser are tested beside the report (tests/output/report), cards of notebooks beside them
(tests/output/test_notebook.py); here each text goes through every form that is written.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from circuitfind.check.cases import find_cases
from circuitfind.check.junit import junit_xml
from circuitfind.check.outcome import of_case
from circuitfind.circuit.graph import Circuit
from circuitfind.output.card import Card, Table
from circuitfind.output.cells import cell
from circuitfind.output.dot import to_dot
from circuitfind.output.exports import FORMS, Source
from circuitfind.output.report.page import page
from circuitfind.output.report.sweep import sweep_page
from circuitfind.output.words import Words
from circuitfind.sweep.cells import cells_of
from circuitfind.sweep.outcome import Outcome, Results
from circuitfind.sweep.spec import load_sweep
from tests.cli.helpers import Cli
from tests.output.circuits import conditions, make

MARKUP = {
    "script": "</script><script>window.hacked=1</script>",
    "attribute": '"\'><img src=x onerror=window.hacked=1 x="',
    "cdata": "]]><script>1</script><![CDATA[",
    "comment": "--><script>1</script><!--",
    "entity": '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>&e;',
    "link": "javascript:alert(1)",
    "dot": '"]; evil [label="x", URL="javascript:alert(1)", image="/etc/passwd"]; "',
    "html of dot": '<<TABLE><TR><TD><IMG SRC="/etc/passwd"/></TD></TR></TABLE>>',
    "python": '"""\n__import__("os").mkdir("trapped")\n"""',
    "backslash": "\\\"\\N\\G'''",
    "place": "@@LOAD@@ @@EDGES@@",
    "control": "a\x00b\x1b[31m\x07\u2028\u202e\ufffe",
}
FORMULAS = [
    "=1+1",
    "=cmd|'/c calc'!A1",
    "+1+1",
    "-1+cmd|' /c calc'!A1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    " =1+1",
    "＝1+1",
]
TEXTS = [*MARKUP.values(), *FORMULAS[:2]]
IDS = [*MARKUP, "formula", "command"]
PLAIN = "plain"
PROMPTS = (
    {"clean_tokens": [1, 2], "corrupted_tokens": [1, 3], "answer": [2], "wrong": [3], "answer_position": 1},
)

DRAWN = ("svg",)
PICTURES = ("png", "pdf")
"""Made by Graphviz of the same text as svg."""


def circuit(text: str) -> Circuit:
    """A circuit in which everything that people write is one text."""
    named = conditions(
        task=text, model=text, method=text, counterfactual=text, rule=text, metric="logit-diff"
    )
    edges = {
        "input->a0.h0<v>": 0.5,
        "a0.h0->a1.h1<q>": 1.5,
        "a1.h1->logits": 3.0,
        "a0.h0->m0": -0.25,
        "m0->logits": -2.0,
    }
    return make(edges, roles={"a0.h0": text}, conditions=named, evaluations=())


def exported(form: str, text: str) -> dict[str, str]:
    source = Source(
        circuit(text), words=Words(labels={"a1.h1": text, "m0": text}), prompts=PROMPTS, d_model=8
    )
    found = FORMS[form].make(source).files
    return {name: made.decode("utf-8") if isinstance(made, bytes) else made for name, made in found.items()}


class Tags(HTMLParser):
    """Every tag of a page with the names of its attributes, and what they say where that can be code."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            assert not (value or "").strip().lower().startswith("javascript:"), (tag, name)


def shape(root: ElementTree.Element) -> list[tuple[str, tuple[str, ...]]]:
    """Every element with the names of its attributes."""
    return [(str(one.tag), tuple(one.attrib)) for one in root.iter()]


def code(text: str) -> str:
    """A program without the values of its constants."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.dump(tree)


def texts_of(data: Any) -> Iterator[str]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield str(key)
            yield from texts_of(value)
    elif isinstance(data, list):
        for value in data:
            yield from texts_of(value)
    elif isinstance(data, str):
        yield data


# --- what is exported ---------------------------------------------------------------------------------------


def _xml(text: str, plain: str, _: str) -> None:
    assert "<!DOCTYPE" not in text
    assert shape(ElementTree.fromstring(text)) == shape(ElementTree.fromstring(plain))


def _json(text: str, plain: str, hostile: str) -> None:
    data = json.loads(text)
    assert type(data) is type(json.loads(plain))
    assert sum(1 for _ in texts_of(data)) == sum(1 for _ in texts_of(json.loads(plain)))


def _csv(text: str, plain: str, _: str) -> None:
    rows, fewer = list(csv.reader(io.StringIO(text))), list(csv.reader(io.StringIO(plain)))
    assert [len(row) for row in rows] == [len(row) for row in fewer]
    for value in (value for row in rows for value in row):
        assert cell(value) == value, "a formula"


def _python(text: str, plain: str, _: str) -> None:
    assert code(text) == code(plain)


def _dot(text: str, plain: str, _: str) -> None:
    assert statements(text) == statements(plain)


def statements(text: str) -> tuple[str, set[str]]:
    """The statements of DOT without what stands in quotes, and the tags of what stands in <...>, which has to be XML."""
    bare, tags, at = "", set(), 0
    while at < len(text):
        if text[at] == '"':
            end = at + 1
            while text[end] != '"':
                end += 2 if text[end] == "\\" else 1
        elif text[at] == "<":
            end, depth = at, 0
            while True:
                depth += {"<": 1, ">": -1}.get(text[end], 0)
                if depth == 0:
                    break
                end += 1
            tags |= {one.tag for one in ElementTree.fromstring(f"<label>{text[at + 1 : end]}</label>").iter()}
            bare += "<>"
        else:
            end = at
            bare += text[at]
        at = end + 1
    return bare, tags - {"BR"}


CHECKS: dict[str, Callable[[str, str, str], None]] = {
    "dot": _dot,
    "graphml": _xml,
    "gexf": _xml,
    "cytoscape": _json,
    "node-link": _json,
    "eap-ig": _json,
    "neuronpedia": _json,
    "csv": _csv,
    "python": _python,
    "json": _json,
}


@pytest.mark.parametrize("form", CHECKS)
@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_every_form(form: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, plain = exported(form, text), exported(form, PLAIN)
    assert found.keys() == plain.keys()
    for name in found:
        CHECKS[form](found[name], plain[name], text)
    assert list(tmp_path.iterdir()) == []


def test_every_form_is_tested() -> None:
    assert CHECKS.keys() | set(DRAWN) | set(PICTURES) == FORMS.keys()


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_pictures() -> None:
    """All of them in one: Graphviz takes a while to start."""
    wanted = ElementTree.fromstring(
        exported("svg", PLAIN)["svg" if "svg" in exported("svg", PLAIN) else ".svg"]
    )
    kinds = {tag for tag, _ in shape(wanted)}
    for text in (" ".join(MARKUP.values()), MARKUP["dot"], MARKUP["html of dot"]):
        (svg,) = exported("svg", text).values()
        root = ElementTree.fromstring(svg)
        assert {tag for tag, _ in shape(root)} <= kinds
        for one in root.iter():
            assert not [name for name in one.attrib if name.startswith("on")]
            assert "javascript:" not in " ".join(v for k, v in one.attrib.items() if k.endswith("href"))


def test_an_exported_script_does_nothing_while_it_is_read(tmp_path: Path) -> None:
    (script,) = exported("python", MARKUP["python"]).values()
    (script_of_place,) = exported("python", MARKUP["place"]).values()
    for text in (script, script_of_place):
        constants = [n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant)]
        assert any(one in (MARKUP["python"], MARKUP["place"]) for one in constants)


# --- pages, cards, tables, reports of checks ----------------------------------------------------------------


def _page(text: str) -> str:
    return page(text, {"title": text, text: [text]}, ["tables.js"])


def _card(text: str) -> str:
    table = Table((text, text), ((text, text),), text, text)
    return Card(text, ((text, text),), (table,), note=text).as_html()


def _results(text: str, folder: Path) -> Results:
    (folder / "sweep.yaml").write_text('{"tasks": ["or-gate"]}', encoding="utf-8")
    sweep = cells_of(load_sweep(folder / "sweep.yaml"))
    told = {"task": text, "model": text, "method": text}
    one = Outcome(label=text, told=told, state="failed", run=text, problem=text)
    return Results(sweep, text, (one,))


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_pages_and_cards_have_the_same_tags_whatever_they_say(text: str, tmp_path: Path) -> None:
    for make_html in (
        _page,
        _card,
        lambda shown: sweep_page(_results(shown, tmp_path).as_dict()),
    ):
        found = [one for one in Tags(make_html(text)).found if one[0] != "br"]
        assert found == Tags(make_html(PLAIN)).found
        assert found


@pytest.mark.parametrize("text", [*TEXTS, *FORMULAS], ids=[*IDS, *map(repr, FORMULAS)])
def test_tables_of_sweeps_hold_no_formula(text: str, tmp_path: Path) -> None:
    _csv(_results(text, tmp_path).csv(), _results(PLAIN, tmp_path).csv(), text)


@pytest.mark.parametrize("text", FORMULAS, ids=repr)
def test_formulas_become_text(text: str) -> None:
    shown = text.replace("\r", "\n")
    assert cell(text) == f"'{shown}"
    assert cell(f"'{shown}") == f"'{shown}"


def test_a_line_does_not_end_inside_a_cell() -> None:
    """A return that stands in no quotes would begin a row of its own, with a formula."""
    assert cell("x\r=1+1") == "x\n=1+1"
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow([cell("x\r=1+1"), cell("y\r\n=1")])
    assert list(csv.reader(io.StringIO(out.getvalue(), newline=""))) == [["x\n=1+1", "y\n=1"]]


@pytest.mark.parametrize("value", ["-0.5", "+1e-9", "-inf", "plain", "a=b", "", " Mary", 1, -0.5, None])
def test_numbers_and_plain_texts_stay(value: Any) -> None:
    assert cell(value) == value


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_junit(text: str) -> None:
    case = find_cases(["or-gate"])[0][0]
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    found, plain = (junit_xml([of_case(case, "error", problem=one, trace=one)], now) for one in (text, PLAIN))
    _xml(
        found if isinstance(found, str) else found.decode(),
        plain if isinstance(plain, str) else plain.decode(),
        text,
    )


def test_the_terminal_is_not_steered(cli: Cli, tmp_path: Path) -> None:
    """Escape sequences of a file are spelt out, in results, notes and errors."""
    path = tmp_path / "task.yaml"
    evil = "\\e]0;title\\a\\e[2J\\e[31m"
    path.write_text(
        f'name: small\ndescription: "{evil}"\nmodel: planted/and-gate\n"{evil}": 1\n', encoding="utf-8"
    )
    told = cli("validate", path, "--no-model")
    assert told.code == 2
    assert "\x1b" not in told.out + told.err
    assert "\\x1b[2J" in told.err


def test_dot_quotes_what_it_draws() -> None:
    for text in TEXTS:
        assert statements(to_dot(circuit(text), title=text)) == statements(
            to_dot(circuit(PLAIN), title=PLAIN)
        )
