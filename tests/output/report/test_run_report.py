"""Reports of runs, from the command line: complete, honest about what is missing, and made again by what changes a run."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.names import parse_edge, parse_node
from circuitfind.output.files import sha256
from circuitfind.output.report.circuit_graph import feature_graph
from circuitfind.output.report.data import SECTIONS
from circuitfind.output.report.page import page
from circuitfind.output.report.write import SCRIPTS, renew_report, write_report
from circuitfind.output.store import Store
from circuitfind.output.words import Words
from circuitfind.summary import Discovery
from tests.browser import opened
from tests.cli.helpers import Cli
from tests.finished import QuickRun
from tests.output.circuits import conditions, evaluation
from tests.output.report.test_page import data_of


@pytest.fixture
def folder(small_run: Discovery, tmp_path: Path) -> Path:
    """A run with backups and evidence and without views, to be changed; below ``outputs``."""
    made = small_run.folder
    return Path(shutil.copytree(made, tmp_path / "outputs" / made.name))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    return Cli(capsys, tmp_path)


def carried(path: Path) -> Any:
    """What a report carries."""
    return data_of(path.read_text(encoding="utf-8"))


def without(folder: Path, *stages: str, **config: Any) -> None:
    """Make a run forget stages, and change what it is of."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in stages:
        del manifest["stages"][name]
    manifest["config"].update(config)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_discover_writes_its_report(browser: Any, small_run: Discovery) -> None:
    found = small_run
    path = Path(found.summary["report"])
    assert path == found.folder / "report.html"
    assert path.stat().st_size < 2_000_000
    data = carried(path)
    assert data["manifest"]["status"] == "finished"
    rows = [found.circuit.anatomy.index_of(edge)[0] for edge in found.circuit.edges]
    assert [data["graph"]["writers"][w] for w in data["graph"]["own"]["w"]] == [
        str(found.circuit.anatomy.writers[row]) for row in rows
    ]
    assert all((data[name] is None) == (name in data["missing"]) for name in SECTIONS)
    assert set(data["missing"]) == {"heatmap", "curve", "patterns", "units"}
    with opened(browser, path) as shown:
        page = shown.page
        assert page.evaluate("[...document.querySelectorAll('section')].map((s) => s.id)") == list(SECTIONS)
        faithfulness = found.circuit.evaluations[0].faithfulness
        told = f"{faithfulness.value:.3f} [{faithfulness.low:.3f}, {faithfulness.high:.3f}]"
        assert told in shown.text("#verdict").replace("\u2212", "-")
        assert page.locator("svg.interval circle").count() == len(found.summary["evaluations"]) + len(
            found.summary["evidence"]["measured"]
        )
        assert sorted(page.evaluate("CF.shown.names()")) == sorted(map(str, found.circuit.edges))
        assert found.circuit.backups
        for backup in found.circuit.backups:
            page.evaluate(f"CF.select('{backup.node}')")
            assert f"{backup.kind} at {backup.reader}" in shown.text(".panel")
        assert page.locator("#prompts tbody tr").count() == found.summary["prompts"]["used"]
        assert "discover command again" in shown.text("#curve")
        assert "it has no views.json" in shown.text("#prompts")
        page.evaluate("CF.shown.setSize(3)")
        assert "not measured along this ranking" in shown.text("#told")
        shown.fine()


def test_a_run_with_views_shows_them(browser: Any, quick_run: QuickRun, tmp_path: Path) -> None:
    path = quick_run(tmp_path) / "report.html"
    data = carried(path)
    assert set(data["missing"]) == {"backups", "units"}
    curve = data["graph"]["curve"]
    with opened(browser, path) as shown:
        page = shown.page
        for size, one in zip(curve["edges"], curve["faithfulness"], strict=True):
            page.evaluate(f"CF.shown.setSize({size})")
            assert f"Measured: faithfulness {one['value']:.3f}" in shown.text("#told").replace("\u2212", "-")
        for size, connected in zip(curve["edges"], curve["connected"], strict=True):
            assert len(page.evaluate(f"CF.shown.pruning.strongest({size})")) == connected
        page.click("[data-node='logits'] .title", force=True)
        name = next(name for name in data["graph"]["nodes"] if name.startswith("a"))
        page.evaluate(f"CF.select('{name}')")
        noising = data["graph"]["nodes"][name]["effects"]["noising"][0]
        assert f"{noising:+.2f}" in shown.text(".panel").replace("\u2212", "-")
        headings = page.locator("#prompts th").all_inner_texts()
        assert {"clean", "corrupted", "circuit", "empty", "answer", "predicted"} <= set(headings)
        assert "circuitfind evaluate" in shown.text("#warnings")
        assert "circuitfind backups" in shown.text("#backups")
        assert page.locator("#state").count() == 0, "no verdict where nothing was held against controls"
        shown.fine()


VIEWS = "views.json"


def rewrite(folder: Path, text: str, *, known: bool) -> None:
    """Another ``views.json``, which the manifest knows of or not."""
    (folder / VIEWS).write_text(text, encoding="utf-8")
    if known:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["stages"]["views"]["files"][VIEWS]["sha256"] = sha256(text.encode())
        (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("text", "known", "says"),
    [
        ("{}", False, "views.json is missing or was changed"),
        ("{", True, "views.json cannot be read"),
        ("[1]", True, "views.json cannot be read"),
        (
            '{"format": "circuitfind.views", "version": 99}',
            True,
            "of version 1 (found: circuitfind.views version 99)",
        ),
        ('{"format": "circuitfind.views", "version": 1}', True, "is incomplete"),
    ],
)
def test_damaged_views_are_noted(
    cli: Cli, quick_run: QuickRun, tmp_path: Path, text: str, known: bool, says: str
) -> None:
    folder = quick_run(tmp_path)
    rewrite(folder, text, known=known)
    cli.good("report", folder.name, "--outputs", folder.parent)
    data = carried(folder / "report.html")
    assert {"heatmap", "curve", "patterns"} <= set(data["missing"])
    assert says in data["missing"]["curve"]
    assert data["missing"]["curve"] in data["verdict"]["warnings"]
    assert "its views.json cannot be used" in data["prompts"]["partial"]


def test_prompts_that_a_curve_was_measured_on(browser: Any, quick_run: QuickRun, tmp_path: Path) -> None:
    folder = quick_run(tmp_path)
    with opened(browser, folder / "report.html") as shown:
        assert "over 8 prompts under resample" in shown.text("#curve")
        assert "in the verdict" not in shown.text("#curve")
    views = json.loads((folder / VIEWS).read_text(encoding="utf-8"))
    for part in (views["curve"], views["curve"]["random"], views["effects"]):
        part["n_prompts"] = 4
    views["curve"]["random"]["n_prompts"] = 2
    rewrite(folder, json.dumps(views), known=True)
    write_report(Store(folder.parent).find(folder.name))
    with opened(browser, folder / "report.html") as shown:
        told = shown.text("#curve")
        assert "over 4 prompts under resample" in told
        assert "(random ones: over 2 prompts)" in told
        assert "The faithfulness in the verdict is over 8 prompts." in told
        assert "Means over 4 prompts." in shown.text("#heatmap")
        shown.page.evaluate("CF.shown.setSize(3)")
        assert "on 4 prompts" in shown.text("#told")
        shown.fine()


def test_the_command_makes_the_same_run(
    cli: Cli, small_run: Discovery, quick_run: QuickRun, tmp_path: Path
) -> None:
    for made in (small_run.folder, quick_run(tmp_path)):
        words = shlex.split(carried(made / "report.html")["verdict"]["command"])
        assert words[:2] == ["circuitfind", "discover"]
        plan = cli.good(*words[1:], "--no-views", "--dry-run", "--json", "--outputs", made.parent).json
        assert Path(plan["run"]).name == made.name
        states = {stage["name"]: stage["state"] for stage in plan["stages"]}
        assert {states[name] for name in ("prompts", "scores", "circuit")} == {"cached"}


def test_a_run_without_a_stage_says_so(browser: Any, cli: Cli, folder: Path) -> None:
    without(folder, "backups", "evidence")
    cli.good("report", "latest", "--outputs", folder.parent)
    with opened(browser, folder / "report.html") as shown:
        assert "circuitfind evaluate" in shown.text("#warnings")
        assert "circuitfind backups" in shown.text("#backups")
        shown.fine()


def test_a_changed_run_has_a_new_report(cli: Cli, folder: Path) -> None:
    path = folder / "report.html"
    name = next(name for name in carried(path)["graph"]["nodes"] if name.startswith("a"))
    cli.good("label", "latest", name, "<b>mover</b>", "--outputs", folder.parent)
    assert carried(path)["graph"]["nodes"][name]["label"] == "<b>mover</b>"
    assert cli.good("show", "latest", "--json", "--outputs", folder.parent).json["report"] == str(path)


def test_a_report_that_cannot_be_written_ends_no_run(folder: Path) -> None:
    notes: list[str] = []
    (folder / "pruned.json").write_text("{}")
    assert renew_report(Store(folder.parent).find(folder.name), notes.append) is None
    assert notes == [
        "no report written: the run has no finished stage 'circuit' (a file of it is missing or was changed)"
    ]


def test_a_fault_in_a_report_ends_no_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(run: Any) -> Any:
        raise IndexError("13 of 12")

    monkeypatch.setattr("circuitfind.output.report.write.collect", fails)
    notes: list[str] = []
    assert renew_report(Store(folder.parent).find(folder.name), notes.append) is None
    assert notes == ["no report written: IndexError: 13 of 12 (`circuitfind report --debug` tells more)"]


def test_a_search_for_backups_alone_has_one(browser: Any, cli: Cli, folder: Path) -> None:
    without(folder, "scores", "circuit", "evidence", backups={})
    cli.good("report", "--outputs", folder.parent)
    data = carried(folder / "report.html")
    assert data["graph"] is None
    assert data["backups"]["rows"]
    with opened(browser, folder / "report.html") as shown:
        assert "a search for backups has none" in shown.text("#graph")
        assert data["backups"]["verdict"] in shown.text("#verdict")
        shown.fine()


def test_a_feature_graph_has_one(browser: Any, tmp_path: Path) -> None:
    edges = {
        "s0.f1@S2->s2.f7@END": 0.5,
        "input@S2->s0.f1@S2": -0.25,
        "s2.f7@END->logits@END": 1.5,
        "s0.err@END->logits@END": 0.1,
    }
    parsed = {name: parse_edge(name) for name in edges}
    nodes = tuple(dict.fromkeys(edge.sender for edge in parsed.values()))
    graph = FeatureGraph(
        nodes=nodes,
        edges=tuple(parsed.values()),
        conditions=conditions(),
        node_scores={str(node): 0.5 for node in nodes},
        edge_weights=edges,
        evaluations=(evaluation(),),
        labels={str(parse_node("s2.f7@END")): "months"},
    )
    data = {"graph": feature_graph(graph, Words()), "tables": True, "missing": {}}
    path = tmp_path / "page.html"
    path.write_text(page("features", data, SCRIPTS), encoding="utf-8")
    with opened(browser, path) as shown:
        assert sorted(shown.page.evaluate("CF.shown.names()")) == sorted(edges)
        shown.page.evaluate("CF.shown.setSize(2)")
        assert shown.page.locator(".edge").count() == 2
        assert len(shown.page.evaluate("CF.shown.names()")) == len(edges), "thinned out, not pruned"
        shown.page.click("#reset")
        assert shown.page.locator(".edge").count() == len(edges)
        shown.page.click("[data-node='s2.f7@END'] .title", force=True)
        assert "months" in shown.text(".panel")
        shown.fine()


def test_the_command_line(cli: Cli, folder: Path, tmp_path: Path) -> None:
    outputs = folder.parent
    to = tmp_path / "new" / "page.html"
    told = cli.good("report", folder.name[:9], "-o", to, "--outputs", outputs, "--json").json
    assert told["report"] == str(to)
    assert told["bytes"] == to.stat().st_size
    assert str(folder / "report.html") in cli.good("report", "--outputs", outputs).out
    cli.fails_loosely(
        2, "report", "gated-bakcup", "--outputs", outputs, says=["no run 'gated-bakcup'", folder.name]
    )
    cli.fails_loosely(2, "report", "a", "b", "c", "--outputs", outputs, says=["3 runs"])
    cli.fails_loosely(2, "report", "-o", tmp_path, "--outputs", outputs, says=["folder"])
    cli.fails_loosely(2, "report", "-o", "page.pdf", "--outputs", outputs, says=["page.pdf"])
    (folder / "pruned.json").write_text("{}")
    cli.fails_loosely(3, "report", "--outputs", outputs, says=["no finished stage 'circuit'"])


def test_it_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys; from circuitfind.cli import run; "
        f"assert run(['report', '--outputs', {str(folder.parent)!r}]) == 0; "
        "assert not {'torch', 'transformer_lens', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
