"""The interactive circuit in a browser: the same edges as Python, and everything that can be done with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitfind.circuit.graph import Backup
from circuitfind.circuit.scores import Scores
from circuitfind.model.anatomy import Anatomy
from circuitfind.output.words import Words
from tests.browser import opened
from tests.output.circuits import GPT2
from tests.output.report.pages import circuit_of, graph_page, scores_of, strongest_edges, wide_circuit

SMALL = Anatomy(n_layers=4, n_heads=4, n_kv_heads=4)
SIZES = (1, 2, 7, 23, 60, 200)
EVIL = "<script>window.hacked=1</script></script><img src=x onerror=window.hacked=1>\u2028&amp;\"'"


@pytest.fixture(scope="module")
def scores() -> Scores:
    return scores_of(SMALL, seed=1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, scores: Scores) -> Path:
    """The page of a small circuit with a backup and a curve that was measured at three sizes."""
    circuit = circuit_of(scores, 40)
    spare = next(n for n in SMALL.writers if str(n).startswith("a") and n not in circuit.nodes)
    covered = circuit.heads[0] if circuit.heads else circuit.nodes[1]
    circuit = replace(circuit, backups=(Backup(spare, "backup", (covered,), "logits", 0.4),))
    found = [{"value": v, "low": v - 0.1, "high": v + 0.1} for v in (0.1, 0.5, 0.9)]
    sizes = {"edges": [5, 23, 100], "connected": [3, 20, 95]}
    curve = {"ablation": "resample", "n_prompts": 16, **sizes, "faithfulness": found}
    path = tmp_path_factory.mktemp("page") / "plain.html"
    return graph_page(path, circuit, scores, Words({str(covered): "the first one"}), views={"curve": curve})


def names(page: Any) -> list[str]:
    """The edges that are shown."""
    return sorted(page.evaluate("CF.shown.names()"))


@pytest.mark.parametrize(
    "anatomy",
    [
        SMALL,
        Anatomy(n_layers=3, n_heads=4, n_kv_heads=2),
        Anatomy(n_layers=3, n_heads=3, n_kv_heads=3, parallel=True),
        Anatomy(n_layers=3, n_heads=3, n_kv_heads=3, has_mlp=False),
        Anatomy(
            n_layers=2,
            n_heads=2,
            n_kv_heads=2,
            parts=(("m0.n1", "m0.n2+5", "m0.rest"), ("t1.f3", "t1.f4", "t1.err")),
        ),
    ],
    ids=["plain", "grouped", "parallel", "attention-only", "units"],
)
def test_the_slider_prunes_as_python_does(browser: Any, tmp_path: Path, anatomy: Anatomy) -> None:
    scores = scores_of(anatomy, seed=3)
    circuit = circuit_of(scores, 60)
    path = graph_page(tmp_path / "page.html", circuit, scores)
    with opened(browser, path) as found:
        assert names(found.page) == sorted(map(str, circuit.edges))
        sizes = [n for n in (*SIZES, anatomy.n_edges) if n <= anatomy.n_edges]
        for n in sizes:
            found.page.evaluate(f"CF.shown.setSize({n})")
            assert names(found.page) == strongest_edges(scores, n), n
        found.page.click("#reset")
        assert names(found.page) == sorted(map(str, circuit.edges))
        found.fine()


def test_node_scores_prune_by_the_weaker_end(browser: Any, tmp_path: Path) -> None:
    whole = scores_of(SMALL, seed=5)
    values = np.asarray(whole.node_values).copy()
    values[3] = np.nan  # never scored
    scores = replace(whole, level="node", values=values, nodes=None)
    circuit = circuit_of(whole, 40)
    with opened(browser, graph_page(tmp_path / "page.html", circuit, scores)) as found:
        for n in (10, 50, 150):
            found.page.evaluate(f"CF.shown.setSize({n})")
            assert names(found.page) == strongest_edges(scores, n)
        strokes = "[...document.querySelectorAll('.edge .line')].map((line) => line.getAttribute('stroke'))"
        assert set(found.page.evaluate(strokes)) == {"var(--unscored)"}, "strengths have no sign"
        assert "strength ≥" in found.text("#told")
        found.fine()


def test_a_circuit_of_other_parts_than_were_scored_is_drawn_alone(
    browser: Any, tmp_path: Path, scores: Scores
) -> None:
    split = replace(SMALL, parts=(("m0.n1", "m0.rest"), (), (), ()))
    circuit = circuit_of(scores_of(split), 60)
    with opened(browser, graph_page(tmp_path / "page.html", circuit, scores)) as found:
        assert names(found.page) == sorted(map(str, circuit.edges))
        assert found.page.locator("#edges-slider").count() == 0
        found.fine()


def test_the_slider_says_what_was_measured_and_what_was_not(
    browser: Any, plain: Path, scores: Scores
) -> None:
    with opened(browser, plain) as found:
        page = found.page
        page.focus("#edges-slider")
        page.evaluate("CF.shown.setSize(23)")
        assert (
            "Measured: faithfulness 0.500 [0.400, 0.600] under resample ablation on 16 prompts"
            in found.text("#told")
        )
        page.keyboard.press("ArrowRight")
        assert page.evaluate("CF.shown.state.n") > 23
        assert "Not measured at this size; the nearest that was, 23 strongest edges" in found.text("#told")
        before = page.evaluate("CF.shown.state.n")
        page.keyboard.press("ArrowLeft")
        assert page.evaluate("CF.shown.state.n") < before
        page.fill(".count", "77")
        page.press(".count", "Enter")
        assert names(page) == strongest_edges(scores, 77)
        assert page.get_attribute("#reset", "aria-pressed") == "false"
        found.fine()


def test_a_click_and_the_keyboard_select(browser: Any, plain: Path) -> None:
    with opened(browser, plain) as found:
        page = found.page
        page.click("[data-node=m0] .title", force=True)
        assert found.text("#selected-name") == "m0"
        assert page.get_attribute("[data-node=m0]", "aria-pressed") == "true"
        assert page.locator(".panel .edges li").count() >= 2
        lit = page.locator(".edge.lit").count()
        assert lit == page.evaluate(
            "CF.shown.names().filter((n) => n.startsWith('m0->') || n.endsWith('->m0')).length"
        )
        page.keyboard.press("Escape")
        assert page.locator("#selected-name").count() == 0
        # Tab goes from node to node, Enter selects; the focus is seen.
        page.focus("[data-node=input]")
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.dataset.node")
        assert name not in (None, "input")
        dashes = "getComputedStyle(document.activeElement.querySelector('rect')).strokeDasharray"
        assert page.evaluate(dashes) != "none"
        page.keyboard.press("Enter")
        assert found.text("#selected-name") == name
        # Arrows move the slider from there, and the focus stays where it was.
        page.keyboard.press("ArrowRight")
        assert page.evaluate("CF.shown.state.n") is not None
        assert page.evaluate("document.activeElement.dataset.node") == name
        found.fine()


@pytest.mark.parametrize("text", ["a0.h{h}", "0.{h}", "L0H{h}", "the first one"])
def test_search_lights_up(browser: Any, plain: Path, text: str) -> None:
    with opened(browser, plain) as found:
        page = found.page
        labelled = page.evaluate(
            "Object.entries(CF.data.graph.nodes).find(([, n]) => n.label === 'the first one')[0]"
        )
        layer, head = labelled[1:].split(".h")
        page.fill("#find", text.replace("0.", f"{layer}.", 1).replace("L0", f"L{layer}").format(h=head))
        assert page.evaluate("[...document.querySelectorAll('.node.match')].map((n) => n.dataset.node)") == [
            labelled
        ]
        page.press("#find", "Enter")
        assert found.text("#selected-name") == labelled
        assert "the first one" in found.text(".panel")
        page.fill("#find", "a99.h1")
        assert "no such node" in found.text("#hits")
        found.fine()


def center(page: Any, node: str) -> tuple[float, float]:
    box = page.locator(f"[data-node='{node}'] rect").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_nodes_are_dragged_with_their_edges_and_the_ground_is_panned(browser: Any, plain: Path) -> None:
    with opened(browser, plain) as found:
        page = found.page
        page.evaluate("document.querySelector('#graph').scrollIntoView()")
        x, y = center(page, "m1")
        edge = page.locator(".edge[data-edge$='->m1'] .line").first
        before = edge.get_attribute("d")
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 60, y + 12, steps=4)
        page.mouse.up()
        assert center(page, "m1") == pytest.approx((x + 60, y + 12), abs=2)
        assert edge.get_attribute("d") != before
        assert page.locator("#selected-name").count() == 0, "a drag is no click"
        page.click("[data-node=m1] .title", force=True)
        assert found.text("#selected-name") == "m1", "the next click is one"
        box = page.locator("svg.circuit").bounding_box()
        page.mouse.move(box["x"] + 5, box["y"] + 5)
        page.mouse.down()
        page.mouse.move(box["x"] + 35, box["y"] + 25, steps=3)
        page.mouse.up()
        assert center(page, "m1") == pytest.approx((x + 90, y + 32), abs=3)
        width = page.evaluate("document.querySelector('svg.circuit').viewBox.baseVal.width")
        page.click("text=+ >> nth=0")
        assert page.evaluate("document.querySelector('svg.circuit').viewBox.baseVal.width") < width
        found.fine()


def test_a_finger_drags_too(browser: Any, plain: Path) -> None:
    with opened(browser, plain, has_touch=True) as found:
        page = found.page
        page.evaluate("document.querySelector('#graph').scrollIntoView()")
        x, y = center(page, "m1")
        touch = page.context.new_cdp_session(page)
        for kind, at in (("touchStart", 0), ("touchMove", 20), ("touchMove", 50), ("touchEnd", None)):
            points = [] if at is None else [{"x": x + at, "y": y}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        assert center(page, "m1") == pytest.approx((x + 50, y), abs=3)
        found.fine()


def test_layers_fold_and_backups_come_and_go(browser: Any, plain: Path) -> None:
    with opened(browser, plain) as found:
        page = found.page
        total = len(names(page))
        heads = page.locator(".node.head").count()
        assert page.locator(".node.ghost").count() == 1
        page.click("button:has-text('backups')")
        assert page.locator(".node.ghost").count() == 0
        label = page.locator(".layer[role=button]").first
        label.focus()
        page.keyboard.press("Enter")
        assert page.locator(".node.fold").count() == 1
        assert page.locator(".node.head:not(.fold)").count() < heads
        assert len(names(page)) == total, "folded edges are still counted"
        page.click(".node.fold .title", force=True)
        assert page.locator(".node.fold").count() == 0
        found.fine()


def test_an_edge_tells_its_name_and_score(browser: Any, plain: Path, scores: Scores) -> None:
    with opened(browser, plain) as found:
        page = found.page
        page.evaluate("document.querySelector('#graph').scrollIntoView()")
        edge = page.locator(".edge:not(.acts):not(.covers)").last
        name = edge.get_attribute("data-edge")
        point = edge.evaluate(
            """(g) => { const p = g.querySelector('.line'), m = p.getPointAtLength(p.getTotalLength() * 0.5);
            const at = new DOMPoint(m.x, m.y).matrixTransform(p.getScreenCTM()); return [at.x, at.y]; }"""
        )
        page.mouse.move(*point)
        page.mouse.move(point[0] + 1, point[1])
        score = scores.values[scores.anatomy.index_of(name)]
        assert name in found.text("#cf-tip")
        assert f"{abs(score):.2f}" in found.text("#cf-tip")
        assert page.locator(".edge.lit").count() == 1
        found.fine()


def test_what_people_wrote_is_text(browser: Any, tmp_path: Path, scores: Scores) -> None:
    circuit = circuit_of(scores, 40)
    roles = {str(node.bare): EVIL for node in circuit.heads[1:]}
    circuit = replace(
        circuit, roles=roles, conditions=replace(circuit.conditions, task=EVIL, counterfactual=EVIL)
    )
    words = Words({str(n): EVIL for n in circuit.heads[:1]}, {str(n): EVIL for n in circuit.mlps})
    columns = ["pair", "clean", "corrupted", "answer", "where", "outlier"]
    prompts = {
        "metric": EVIL,
        "total": 1,
        "columns": columns,
        "rows": [[0, EVIL, EVIL, EVIL, EVIL, EVIL]],
        "partial": EVIL,
    }
    manifest = {"name": EVIL, "stages": {EVIL: {"files": {EVIL: {}}, "facts": {}, "finished": EVIL}}}
    path = graph_page(
        tmp_path / "page.html", circuit, scores, words, title=EVIL, prompts=prompts, manifest=manifest
    )
    assert "<script>window" not in path.read_text(encoding="utf-8")
    with opened(browser, path) as found:
        page = found.page
        for node in (str(circuit.heads[0]), str(circuit.mlps[0])):
            page.click(f"[data-node='{node}'] .title", force=True)
            assert EVIL.split("\u2028")[0] in page.text_content(".panel")
        page.hover("#prompts th button >> nth=1")
        page.fill("#find", EVIL)
        assert page.text_content("#prompts .prompt") == EVIL
        assert page.title() == EVIL
        assert page.evaluate("window.hacked") is None
        found.fine()


def test_sixty_nodes_and_three_hundred_edges(browser: Any, tmp_path: Path) -> None:
    scores = scores_of(GPT2)
    circuit = wide_circuit(scores, 60, 300)
    path = graph_page(tmp_path / "page.html", circuit, scores)
    assert scores.anatomy.n_edges == 32_491
    assert path.stat().st_size < 2_000_000
    with opened(browser, path) as found:
        page = found.page
        assert page.locator(".node").count() == 60
        assert page.locator(".edge").count() == 300
        boxes = page.evaluate(
            "[...document.querySelectorAll('.node rect')].map((r) => r.getBoundingClientRect().toJSON())"
        )
        apart = [
            a["right"] <= b["left"]
            or b["right"] <= a["left"]
            or a["bottom"] <= b["top"]
            or b["bottom"] <= a["top"]
            for i, a in enumerate(boxes)
            for b in boxes[:i]
        ]
        assert all(apart), "nodes lie on each other"
        page.evaluate("CF.shown.setSize(4000)")
        assert names(page) == strongest_edges(scores, 4000)
        assert page.locator(".edge").count() <= 1200
        assert "The strongest 1,200 are drawn" in found.text("#told")
        found.fine()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 700])
def test_nothing_hangs_over(browser: Any, plain: Path, scheme: str, width: int) -> None:
    with opened(browser, plain, width=width, color_scheme=scheme, reduced_motion="reduce") as found:
        page = found.page
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        shade = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
        assert (shade < 60) == (scheme == "dark")
        page.click("#theme")
        flipped = page.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
        )
        assert (flipped < 60) != (scheme == "dark")
        found.fine()
