"""``show --stats``: the numbers of the library, on a screen of 80 columns, of runs and of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from circuitfind.attribution.export import to_circuit_tracer
from circuitfind.attribution.prune import prune
from circuitfind.circuit.graph import Circuit
from circuitfind.circuit.graph_stats import as_rows, order_of
from circuitfind.circuit.rewire import compare
from circuitfind.circuit.tracer_read import load_circuit_tracer
from tests.attribution.graphs import random_graph
from tests.cli.helpers import Cli
from tests.finished import QuickRun


@pytest.fixture
def run(cli: Cli, quick_run: QuickRun) -> Path:
    return quick_run(cli.folder)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "graph.json"
    data = to_circuit_tracer(prune(random_graph(3, n_layers=5, n_pos=6), 0.9, 0.9))
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_json_has_all_of_it(cli: Cli, run: Path) -> None:
    data = cli.good("show", run, "--stats", "--json", "--random", "20").json
    order = order_of(Circuit.load(run / "circuit.json"))
    assert {key: data[key] for key in as_rows(order)} == json.loads(json.dumps(as_rows(order)))
    assert data["random"] == json.loads(json.dumps(compare(order, 20).as_dict()))
    assert data["conditions"]["task"] == "small"
    assert cli.good("show", run, "--stats", "--json", "--random", "0").json["random"] is None


def test_a_table_for_80_columns(cli: Cli, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuitfind.cli.console.terminal_width", lambda stream: 80)
    told = cli.good("show", graph, "--stats", "--random", "30").out
    file = cli.good("show", graph).out
    assert max(map(len, file.splitlines())) <= 80, file
    rows = as_rows(order_of(load_circuit_tracer(graph)))
    assert max(map(len, told.splitlines())) <= 80, told
    assert f"{rows['paths']['count']:,} from the input and errors to the logits" in told
    assert f"{rows['motifs']['feed_forward']:,} feed-forward loops" in told
    for title in ("density", "communities", "betweenness", "PageRank", "mean path"):
        assert title in told
    assert rows["centrality"][0]["name"] in told
    assert f"10 of {rows['nodes']} nodes; --json has all" in told


def test_degrees_that_leave_no_choice_are_told(cli: Cli, run: Path) -> None:
    told = cli.good("show", run, "--stats").out
    assert "no other graph of these degrees was found" in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--random", "1"), "one random graph has no spread"),
        (("--random", "-1"), "-1 is not in the range"),
    ],
)
def test_mistakes(cli: Cli, run: Path, words: tuple[str, ...], says: str) -> None:
    cli.fails(2, "show", run, "--stats", *words, says=[says])


def test_a_circuit_without_edges(cli: Cli, run: Path) -> None:
    data = json.loads((run / "circuit.json").read_text(encoding="utf-8"))
    Path("empty.json").write_text(json.dumps({**data, "edges": [], "nodes": []}))
    cli.fails(2, "show", "empty.json", "--stats", says=["without edges"])


@pytest.mark.slow
def test_runs_of_features_pass_neuronpedia_s_schema(cli: Cli) -> None:
    import jsonschema

    from tests.attribution.test_export import NEURONPEDIA

    for nodes, count in (("features", "8"), ("heads,features", "8")):
        words = ("--nodes", nodes, "--count", count, "--no-views", "--controls", "none", "--no-backups")
        cli.good("discover", "greater-than", *words, "--outputs", nodes, "-q")
        told = cli.good(
            "export", "latest", "--outputs", nodes, "--to", "neuronpedia", "-o", "x.json", "--json"
        ).json
        data = json.loads(Path("x.json").read_text(encoding="utf-8"))
        jsonschema.validate(data, NEURONPEDIA)
        assert len(data["nodes"]) == told["nodes"] > 5
        kinds = {row["feature_type"] for row in data["nodes"]}
        assert {"cross layer transcoder", "embedding", "logit"} <= kinds
        assert ("attention head" in kinds) == ("heads" in nodes)
        shown = cli.good("show", "x.json", "--json").json
        assert shown["counts"]["nodes"] >= told["nodes"] - 1
    cli.good(
        "attribute",
        "--text",
        "When Mary and John went to the store, John gave a drink to",
        "--out",
        "graphs",
        "-q",
    )
    cli.good("export", "graphs", "--to", "neuronpedia", "-o", "y.json")
    data = json.loads(Path("y.json").read_text(encoding="utf-8"))
    jsonschema.validate(data, NEURONPEDIA)
    assert data == json.loads(Path("graphs/graph.json").read_text(encoding="utf-8"))
