"""Two runs beside each other: what the page holds is what the comparison says, and the page works in a browser."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from circuitfind.backup_stage import circuit_text
from circuitfind.circuit.compare import compare, shared_scores
from circuitfind.circuit.graph import Circuit
from circuitfind.circuit.scores import Scores
from circuitfind.errors import UsageError
from circuitfind.names import parse_edge
from circuitfind.output.files import sha256
from circuitfind.output.report.compare import collect, write_comparison
from circuitfind.output.report.sides import side_of
from circuitfind.output.store import Run, Store
from circuitfind.summary import stored
from tests.browser import opened
from tests.finished import QuickRun
from tests.sweeps import Swept, said

EVIL = '<img src=x onerror="document.title=1"></script><script>document.title=2</script>'


@pytest.fixture(scope="module")
def pair(swept: Swept) -> tuple[Run, Run]:
    """The same model by two methods, scored by edges and by nodes."""
    store = Store(swept.outputs)
    return store.find(swept.runs[0]), store.find(swept.runs[1])


@pytest.fixture(scope="module")
def other(quick_run: QuickRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A run with all that a report shows, and one like it with another circuit, other scores and other effects."""
    folder = tmp_path_factory.mktemp("other")
    first = quick_run(folder)
    second = shutil.copytree(first, first.with_name("small-changed"))
    store = Store(first.parent)
    changed(store.find(second.name))
    return store.find(first.name), store.find(second.name)


def changed(run: Run) -> None:
    """Make another run of one: two edges are gone and one is new, every score and effect has moved."""
    manifest = run.manifest
    manifest["name"] = run.name
    manifest["hashes"]["prompts"] = "0" * 64
    scores = Scores.load(run.path / "scores.npz")
    noise = np.random.default_rng(0).normal(0, 0.1, scores.values.shape)
    moved = replace(scores, values=scores.values * 1.5 + noise)
    circuit = Circuit.load(run.path / "pruned.json")
    names = {str(edge) for edge in circuit.edges}
    new = next(edge for edge in map(parse_edge, _edges(scores)) if str(edge) not in names)
    edges = (circuit.edges[0], *circuit.edges[3:], new)
    at = scores.anatomy.index_of
    kept = replace(circuit, edges=edges, edge_scores={str(e): float(moved.values[at(e)]) for e in edges})
    views = json.loads((run.path / "views.json").read_text(encoding="utf-8"))
    for kind in ("noising", "denoising"):
        for key in ("value", "low", "high"):
            views["effects"][kind][key] = [
                None if x is None else x + 0.5 for x in views["effects"][kind][key]
            ]
    texts = {
        "scores.npz": moved.to_bytes(),
        "pruned.json": circuit_text(kept).encode(),
        "views.json": json.dumps(views).encode(),
    }
    (run.path / "circuit.json").write_bytes(texts["pruned.json"])
    for stage in manifest["stages"].values():
        for name, entry in stage["files"].items():
            if name in texts:
                (run.path / name).write_bytes(texts[name])
                entry |= {"sha256": sha256(texts[name]), "bytes": len(texts[name])}
    (run.path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def _edges(scores: Scores) -> list[str]:
    anatomy = scores.anatomy
    return [
        f"{anatomy.writer_names[w]}->{anatomy.reader_names[r]}"
        for w, r in np.argwhere(np.isfinite(scores.values))
    ]


def test_the_data_is_that_of_the_comparison(other: tuple[Run, Run]) -> None:
    sides = [side_of(run) for run in other]
    made, data = compare(*sides), collect(*other, other[1].path)
    assert data["conditions"]["differs"] == made.as_dict()["differs"]
    assert {row["what"] for row in data["conditions"]["differs"]} == {"prompts"}
    edges = {row["name"]: row["fate"] for row in data["changes"]["edges"]["rows"]}
    mine, new = ({str(e) for e in side.circuit.edges} for side in sides)
    assert {n for n, fate in edges.items() if fate == "lost"} == mine - new
    assert {n for n, fate in edges.items() if fate == "gained"} == new - mine
    assert {n for n, fate in edges.items() if fate == "kept"} == mine & new
    assert (len(mine - new), len(new - mine)) == (2, 1), "else nothing is tested"
    drawn = {row["name"]: row["fate"] for row in data["merged"]["edges"]}
    assert drawn == edges
    ends = {row[side] for row in data["merged"]["edges"] for side in ("from", "to")}
    assert ends <= data["merged"]["nodes"].keys()


def test_the_scatter_is_of_all_that_both_score(other: tuple[Run, Run]) -> None:
    data = collect(*other, other[1].path)["scatter"]
    first, second = (stored(run).scores for run in other)
    both = np.isfinite(first.values) & np.isfinite(second.values)
    a, b = first.values[both], second.values[both]
    assert data["level"] == "edge"
    assert data["common"] == len(data["points"]) == both.sum()
    assert data["pearson"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)
    points = {name: (x, y) for name, x, y, _ in data["points"]}
    for w, r in np.argwhere(both):
        name = f"{first.anatomy.writer_names[w]}->{first.anatomy.reader_names[r]}"
        assert points[name] == pytest.approx((first.values[w, r], second.values[w, r]), rel=1e-5)
    level, names, x, y = shared_scores(*(side_of(run) for run in other))
    assert (level, len(names)) == ("edge", len(points))
    assert np.allclose(sorted(x), sorted(a))
    assert np.allclose(sorted(y), sorted(b))


def test_the_difference_is_after_less_before(other: tuple[Run, Run]) -> None:
    data = collect(*other, other[1].path)
    assert data["difference"] is not None
    views = [json.loads((run.path / "views.json").read_text(encoding="utf-8"))["effects"] for run in other]
    panel = next(p for p in data["difference"]["panels"] if p["title"] == "Noising")
    assert panel["cells"]
    assert all(cell["after"][0] - cell["before"][0] == pytest.approx(0.5) for cell in panel["cells"])
    for cell in panel["cells"]:
        for side, found in zip(("before", "after"), views, strict=True):
            at = found["nodes"].index(cell["node"])
            assert cell[side] == [found["noising"][key][at] for key in ("value", "low", "high")]


def test_methods_of_two_levels_are_compared_by_nodes(pair: tuple[Run, Run]) -> None:
    data = collect(*pair, pair[1].path)
    assert data["scatter"]["level"] == "node"
    assert any("scores of nodes" in note for note in data["conditions"]["notes"])


def test_a_comparison_with_itself_is_refused(pair: tuple[Run, Run], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="compared with itself"):
        write_comparison(pair[0], pair[0], tmp_path / "x.html")


def test_the_command_and_diff(other: tuple[Run, Run], tmp_path: Path) -> None:
    shutil.copytree(other[0].path.parent, tmp_path / "outputs")
    names = [run.name for run in other]
    made = said("report", *names, "--outputs", tmp_path / "outputs", "--json").json
    assert Path(made["report"]) == tmp_path / "outputs" / names[1] / f"compare-{names[0]}.html"
    told = said("diff", *names, "--outputs", tmp_path / "outputs").out
    assert f"circuitfind report {names[0]} {names[1]}" in told
    elsewhere = said("report", *names, "--outputs", tmp_path / "outputs", "-o", tmp_path / "c.html", "--json")
    assert Path(elsewhere.json["report"]).stat().st_size < 2_000_000


def test_the_page_in_a_browser(browser: Any, other: tuple[Run, Run], tmp_path: Path) -> None:
    shutil.copytree(other[0].path.parent, tmp_path / "outputs")
    store = Store(tmp_path / "outputs")
    runs = [store.find(run.name) for run in other]
    for run in runs:
        assert said("report", run.path).code == 0
    path = write_comparison(*runs, tmp_path / "outputs" / "both.html")
    circuits = [Circuit.load(run.path / "circuit.json") for run in runs]
    mine, new = ({str(e) for e in circuit.edges} for circuit in circuits)
    with opened(browser, path) as found:
        page = found.page
        assert "prompts" in found.text("#differs")
        for name in (run.name for run in runs):
            assert name in found.text("#verdict-table")
        for link in page.locator("main a[href]").all():
            assert (path.parent / unquote(link.get_attribute("href"))).is_file()
        edges = page.locator("#merged .edge")
        assert edges.count() == len(mine | new)
        assert page.locator("#merged .edge.lost").count() == len(mine - new)
        page.uncheck("#merged input[data-fate=lost]")
        assert edges.count() == len(new)
        page.uncheck("#merged input[data-fate=kept]")
        page.uncheck("#merged input[data-fate=gained]")
        assert "No edge is left" in found.text("#merged")
        page.check("#merged input[data-fate=kept]")
        assert edges.count() == len(mine & new)
        page.click("#merged .node[data-node=input]")
        assert "input" in found.text("#merged-told")
        page.keyboard.press("Tab")
        before = page.locator("#scatter circle").first.get_attribute("cx")
        page.check("#linear")
        assert page.locator("#scatter circle").count() > 0
        assert before != page.locator("#scatter circle").first.get_attribute("cx")
        assert page.locator("#curves path.line").count() == 2
        assert page.locator("#difference td[data-node]").count() > 0
        rows = page.locator("#changes tbody").first.locator("tr")
        assert rows.count() == len(mine | new)
        found.fine()


def test_words_are_text(browser: Any, pair: tuple[Run, Run], tmp_path: Path) -> None:
    shutil.copytree(pair[0].path.parent, tmp_path / "outputs")
    store = Store(tmp_path / "outputs")
    first, second = (store.find(run.name) for run in pair)
    manifest = json.loads((first.path / "manifest.json").read_text(encoding="utf-8"))
    manifest["stages"]["circuit"]["facts"]["notes"] = [EVIL]
    del manifest["stages"]["circuit"]["seal"]  # as in runs of before there was one
    manifest["hashes"]["task"] = EVIL
    manifest["config"]["settings"]["task"] = manifest["config"]["version"] = EVIL
    (first.path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    path = write_comparison(store.find(first.name), second)
    with opened(browser, path, color_scheme="dark") as found:
        assert found.page.title() == f"{first.name} and {second.name}"
        assert EVIL in found.text("#differs")
        found.fine()
