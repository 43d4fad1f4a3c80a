"""``show`` and ``render`` of a run of ``discover --nodes features``, on a planted model with exact transcoders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.feature_store import stored_features, stored_scores
from circuitfind.output.manifest import read_manifest
from circuitfind.output.run import Run
from tests.cli.helpers import Cli, Result

WORDS = ("discover", "neuron-lookup", "--nodes", "features", "--count", "16")
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")


@pytest.fixture
def finished(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> tuple[Cli, Result]:
    """A folder with a finished run and what its command said, where no model can be loaded any more."""

    def boom(*args: object, **keys: object) -> None:
        raise AssertionError("a model was loaded")

    said = cli.good(*WORDS, "-q")
    monkeypatch.setattr("circuitfind.model.load.load_model", boom)
    return cli, said


def graph_of(cli: Cli) -> FeatureGraph:
    return FeatureGraph.load(cli.run_folder() / "graph.json")


def test_show_says_what_the_command_said(finished: tuple[Cli, Result]) -> None:
    cli, said = finished
    assert "features, attention frozen" in said.out
    assert cli.good("show").out == said.out + "  status        finished\n"
    told = cli.good(*WORDS, "--json").json
    assert {"prefix", "share_through_errors"} <= told.keys()
    assert cli.good("show", "--json").json == told
    folder = cli.run_folder()
    found = stored_features(Run(folder, read_manifest(folder)))
    assert found.graph == graph_of(cli)
    assert found.folder == folder


def test_nodes_edges_and_top(finished: tuple[Cli, Result]) -> None:
    cli, _ = finished
    graph = graph_of(cli)
    name = str(graph.features[0])
    cli.good("label", "latest", name, "a key of the table")
    words = ("show", "--nodes", "--edges", "--top", "5")
    data = cli.good(*words, "--json").json
    assert {row["name"]: row["score"] for row in data["nodes"]} == {
        str(n): graph.score(n) for n in graph.nodes
    }
    assert {row["name"]: row["label"] for row in data["nodes"] if row["label"]} == {
        name: "a key of the table"
    }
    assert {row["name"]: row["weight"] for row in data["edges"]} == {
        str(e): graph.weight(e) for e in graph.edges
    }
    folder = cli.run_folder()
    scores = stored_scores(Run(folder, read_manifest(folder)))
    assert len(data["top"]) == 5 < len(scores)
    sizes = [abs(row["score"]) for row in data["top"]]
    assert sizes == sorted(map(abs, scores.values()), reverse=True)[:5]
    inside = {row["name"] for row in data["top"] if row["in_circuit"]}
    assert inside == {str(n) for n in graph.nodes} & {row["name"] for row in data["top"]}
    assert 0 < len(inside) < 5, "some are left out, or the mark says nothing"
    text = cli.good(*words).out
    heads = [i for i, line in enumerate(text.splitlines()) if line.split()[-1:] in (["score"], ["weight"])]
    assert [text.splitlines()[i].split() for i in heads] == [
        ["nodes", "score"],
        ["edges", "weight"],
        ["strongest", "score"],
    ]
    (labelled,) = (line for line in text.splitlines() if "a key of the table" in line)
    assert labelled.split()[:2] == [name, f"{graph.score(graph.features[0]):+.4f}"]
    for edge in graph.edges:
        assert any(
            line.split()[:2] == [str(edge), f"{graph.weight(edge):+.4f}"] for line in text.splitlines()
        )
    assert text.count("in the circuit") == len(inside)
    assert not {"nodes", "edges", "top"} & cli.good("show", "--json").json.keys()
    everything = cli.good("show", "--top", "100000", "--json").json["top"]
    assert {row["name"]: row["score"] for row in everything} == scores


@pytest.mark.parametrize("flag", ["--backups", "--by-position", "--all"])
def test_flags_without_sense(finished: tuple[Cli, Result], flag: str) -> None:
    cli, _ = finished
    made = "`circuitfind discover --nodes features`"
    cli.fails(2, "show", flag, says=[f"a run of {made} has nothing to show for {flag}", "--nodes, --edges"])
    if flag == "--all":
        cli.fails(2, "show", "--top", "0", says=["give at least 1"])
        cli.fails(3, "backups", cli.run_folder().name, says=[made, "no circuit", "circuitfind show"])


def test_a_run_that_is_not_finished(finished: tuple[Cli, Result]) -> None:
    cli, _ = finished
    path = cli.run_folder() / "manifest.json"
    manifest = json.loads(path.read_text())
    for stage in ("pictures", "features", "prompts"):
        manifest["stages"].pop(stage, None)
        manifest["status"] = "finished" if stage == "pictures" else "failed"
        path.write_text(json.dumps(manifest))
        if stage == "pictures":  # the text alone, as where Graphviz is missing
            assert cli.good("show", "--json").json["pictures"] == [f"outputs/{path.parent.name}/graph.dot"]
            continue
        says = [f"'{stage}' (it is failed)", "the same `circuitfind discover --nodes features` command"]
        cli.fails(3, "show", says=says)
        cli.fails(3, "render", "--to", "x.svg", says=says)
        assert not (cli.folder / "x.svg").exists()


@needs_dot
def test_render(finished: tuple[Cli, Result]) -> None:
    cli, _ = finished
    folder = cli.run_folder()
    drawn = (folder / "graph.svg").read_bytes()
    before = {path.name for path in folder.iterdir()}
    (folder / "graph.svg").unlink()
    assert cli.good("render").out == f"outputs/{folder.name}/graph.svg\n"
    assert (folder / "graph.svg").read_bytes() == drawn, "as the command drew it"
    assert {path.name for path in folder.iterdir()} == before
    name = str(graph_of(cli).features[0])
    cli.good("label", "latest", name, "a key")
    for ending, start in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        assert cli.good("render", "--to", f"deep/figure.{ending}").out == f"deep/figure.{ending}\n"
        assert (cli.folder / "deep" / f"figure.{ending}").read_bytes().startswith(start)
    assert "a key" in (cli.folder / "deep" / "figure.svg").read_text(encoding="utf-8")
    cli.fails(2, "render", "--to", "figure.gif", says=["no ending that names a format"])


def test_render_looks(finished: tuple[Cli, Result]) -> None:
    cli, _ = finished

    def text(*more: str) -> str:
        cli.good("render", "--to", "figure.dot", *more)
        return Path(cli.folder / "figure.dot").read_text(encoding="utf-8")

    title, caption, legend = "Features for neuron-lookup in", "Metric logit-diff", "feature, with its score"
    parts = (title, caption, legend)
    full = text()
    assert full == (cli.run_folder() / "graph.dot").read_text(encoding="utf-8")
    for more, inside in (
        ((), parts),
        (("--no-legend",), (title, caption)),
        (("--no-caption",), (legend,)),
        (("--no-caption", "--no-legend"), ()),
        (("--title", "Mine"), ("Mine", caption, legend)),
        (("--title", "Mine", "--no-caption", "--no-legend"), ("Mine",)),
    ):
        below = text(*more).partition("labelloc=b")[2].partition(", label=")[2].partition("];")[0]
        assert [part for part in (*parts, "Mine") if part in below] == [
            part for part in (*parts, "Mine") if part in inside
        ], more
