"""How objects show themselves: every class has a card, nothing in it is code, and it suits light and dark."""

from __future__ import annotations

import base64
import importlib
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import circuitfind
from circuitfind.attribution.graph import AttributionGraph, Nodes
from circuitfind.attribution.prune import PrunedGraph, prune
from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.circuit.graph import Circuit, Conditions, Evaluation, Interval
from circuitfind.circuit.scores import Scores
from circuitfind.errors import RunError
from circuitfind.evidence.certify import certify
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import parse_edge, parse_node
from circuitfind.output import notebook
from circuitfind.output.card import Card, Table, is_number
from circuitfind.shown import MAKERS, Shown, card_of
from circuitfind.summary import Discovery
from circuitfind.task.pairs import PromptPair, PromptPairs

EVIL = "<script>alert(1)</script>&\"'"


class _Read(HTMLParser):
    """The tags and attributes of some HTML, and the text between."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attrs: list[tuple[str, str, str]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attrs += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def found(small_run: Discovery) -> Discovery:
    return small_run


def conditions(**changed: str) -> Conditions:
    names = ("task", "model", "method", "metric", "ablation", "direction", "counterfactual", "rule")
    return Conditions(**{**dict.fromkeys(names, EVIL), **changed})


def evil_circuit() -> Circuit:
    anatomy = Anatomy(2, 2, 2)
    edges = tuple(map(parse_edge, ("input->a0.h0<v>", "a0.h0->m1", "m1->logits")))
    good = Evaluation("resample", EVIL, Interval(0.9, 0.8, 1.0), 1.0, 2.0, 0.0, 8)
    scores = {str(edge): 1.5 for edge in edges[:2]}
    return Circuit(anatomy, edges, conditions(), scores, evaluations=(good,), roles={"m1": EVIL})


def evil_features() -> FeatureGraph:
    nodes = tuple(map(parse_node, ("t0.f1", "t1.f2")))
    scores = {"t0.f1": 2.0, "t1.f2": float("nan")}
    return FeatureGraph(nodes, (), conditions(), scores, n_active=9, labels={"t0.f1": EVIL})


def evil_attribution() -> PrunedGraph:
    kind, layer = np.array([0, 1, 3]), np.array([-1, 0, 2])
    nodes = Nodes(kind, layer, np.array([0, 0, 0]), np.array([5, 7, 9]), np.ones(3))
    edges = np.array([[2.0, 0.0], [0.0, 3.0]])
    graph = AttributionGraph(
        model=EVIL,
        dictionaries=EVIL,
        prompt=EVIL,
        tokens=(5,),
        pieces=(EVIL,),
        n_layers=2,
        nodes=nodes,
        probability=np.array([0.9]),
        logit_pieces=(EVIL,),
        row_nodes=np.array([1, 2]),
        edges=edges,
        bias=np.zeros(2),
        inputs=edges.sum(1),
    )
    return prune(graph)


def evil_pair() -> PromptPair:
    return PromptPair((1, 2, 3), (1, 4, 3), (8,), (9,), 2, {"S": 1}, EVIL, EVIL, EVIL, EVIL)


@pytest.fixture(scope="module")
def things(found: Discovery) -> dict[str, Shown]:
    """One of each class that shows itself; where text can come from people, it tries to be code."""
    evidence = found.evidence
    task = circuitfind.load_task("ioi").model_copy(update={"description": EVIL})
    pair = evil_pair()
    return {
        "TaskSpec": task,
        "PromptPair": pair,
        "PromptPairs": PromptPairs((pair,) * 8, EVIL, asked=9),
        "Scores": found.scores,
        "Evaluation": evil_circuit().evaluations[0],
        "Circuit": evil_circuit(),
        "FeatureGraph": evil_features(),
        "PrunedGraph": evil_attribution(),
        "BackupReport": found.backups,
        "Evidence": evidence,
        "Verdict": certify(evidence),
        "Patched": circuitfind.patch(found, "a0.h1", alphas=[0.5]),
        "Discovery": found,
    }


NAMES = [name.rpartition(".")[2] for name in MAKERS]


@pytest.mark.parametrize("name", NAMES)
def test_every_class_shows_itself(name: str, things: dict[str, Shown]) -> None:
    thing = things[name]
    bundle = thing._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    assert bundle["text/html"] == thing._repr_html_()
    assert len(bundle["text/plain"]) < 6000
    seen = _Read(bundle["text/html"])
    assert not {"script", "style", "link", "iframe", "object", "a", "svg"} & set(seen.tags)
    for tag, attribute, value in seen.attrs:
        assert attribute in ("class", "style", "alt", "src"), f"{tag} {attribute}"
        assert attribute != "src" or value.startswith("data:image/svg+xml;base64,")
        # Text keeps the notebook's colours; only a picture has a ground of its own.
        assert attribute != "style" or tag == "img" or not re.search(r"(?<!-)\bcolor:|background", value)
    if "script" in repr(thing):
        assert "<script>alert(1)</script>" in seen.text


@pytest.mark.parametrize("name", list(MAKERS))
def test_the_table_names_what_there_is(name: str) -> None:
    module, _, kind = name.rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), kind), Shown)
    where, _, function = MAKERS[name].partition(":")
    assert callable(getattr(importlib.import_module(where), function))


def test_what_inherits_is_shown_too(found: Discovery) -> None:
    stored = circuitfind.open_run(found.folder)
    assert type(stored).__name__ == "Found"
    assert stored._repr_html_() == found._repr_html_()
    with pytest.raises(KeyError, match="int"):
        card_of(3)


def test_pictures_cannot_run_and_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def svg_of(text: str, *, timeout: float) -> str:
        drawn.append(text)
        return f"<svg>{len(drawn)}</svg>"

    monkeypatch.setattr(notebook, "svg_of", svg_of)
    monkeypatch.setattr(notebook, "dot_binary", lambda: Path("dot"))
    notebook._drawn.cache_clear()
    html = evil_circuit()._repr_html_()
    data = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)
    assert [base64.b64decode(text).decode() for text in data] == ["<svg>1</svg>"]
    assert evil_circuit()._repr_html_() == html
    assert len(drawn) == 1
    notebook._drawn.cache_clear()


def test_without_graphviz_there_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "dot_binary", lambda: None)
    seen = _Read(evil_circuit()._repr_html_())
    assert "img" not in seen.tags
    assert "a0.h0->m1" in seen.text
    assert "no picture: Graphviz's dot is not installed" in seen.text


def test_a_picture_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(text: str, *, timeout: float) -> str:
        raise RunError("'dot' could not draw the circuit", hint="")

    monkeypatch.setattr(notebook, "svg_of", fails)
    monkeypatch.setattr(notebook, "dot_binary", lambda: Path("dot"))
    notebook._drawn.cache_clear()
    assert "no picture: 'dot' could not draw the circuit" in _Read(evil_circuit()._repr_html_()).text


def test_scores_are_those_of_the_file(found: Discovery) -> None:
    text = found.scores._repr_mimebundle_()["text/plain"]
    edge, score = next(iter(found.scores.top_edges(1)))
    assert re.search(rf"{re.escape(str(edge))} +{re.escape(f'{score:+.3g}')}", text)
    scored = int(np.isfinite(found.scores.values).sum())
    assert f"{scored:,} edges" in text
    left = scored - notebook.ROWS
    assert (f"and {left:,} more" in text) is (left > 0)


def test_scores_of_nodes() -> None:
    anatomy = Anatomy(1, 2, 2)
    values = np.array([np.nan, 0.5, -2.0, 1.0])
    extra = {"noising": np.array([1.0, 2.0, np.nan, 4.0])}
    text = Scores(anatomy, "node", values, "atp", "noising", "logit-diff", "resample", extra=extra)
    rows = text._repr_mimebundle_()["text/plain"].splitlines()
    assert [row.split() for row in rows[-3:]] == [
        ["a0.h1", "-2", "–"],
        ["m0", "+1", "+4"],
        ["a0.h0", "+0.5", "+2"],
    ]


def test_a_pair_says_where_it_differs() -> None:
    assert "1 (S)" in evil_pair()._repr_html_()


def test_tables() -> None:
    table = Table(("name", "n"), (("a", "+1.5"), ("b", "1,519 [2, 3]"), ("c", "–")), "title", "and 3 more")
    card = Card("top", (("fact", "one\ntwo"),), (table,), note="end")
    assert card.as_text().splitlines() == [
        "top",
        "  fact  one",
        "        two",
        "",
        "  title",
        "  name             n",
        "  a             +1.5",
        "  b     1,519 [2, 3]",
        "  c                –",
        "  and 3 more",
        "end",
    ]
    html = card.as_html()
    assert html.count("text-align:right") == 4
    assert "one<br>two" in html
    assert [is_number(text) for text in ("-1", "1e-3 x", "3 %", "−2", "", "a", "x 3")] == [True] * 5 + [
        False
    ] * 2
