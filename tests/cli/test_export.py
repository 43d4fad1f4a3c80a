"""``export``: the files, what is told of them, what is refused; and files of other programs read where a circuit is asked for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from circuitfind.attribution.export import to_circuit_tracer
from circuitfind.attribution.prune import prune
from circuitfind.circuit.graph import Circuit
from circuitfind.circuit.mib import read_circuit
from circuitfind.circuit.scores import Scores
from circuitfind.cli.export import FORMATS
from circuitfind.errors import UsageError
from circuitfind.output.exports import FORMS, width_of
from tests.attribution.graphs import random_graph
from tests.cli.helpers import Cli
from tests.finished import QuickRun


@pytest.fixture
def run(cli: Cli, quick_run: QuickRun) -> Path:
    """The folder of a run, which tests may write into."""
    return quick_run(cli.folder)


@pytest.fixture
def tracer(tmp_path: Path) -> Path:
    """A graph of circuit-tracer."""
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(to_circuit_tracer(prune(random_graph(2), 0.8, 0.9))), encoding="utf-8")
    return path


def own(run: Path) -> Circuit:
    return Circuit.load(run / "circuit.json")


def test_a_run_is_written_beside_its_circuit(cli: Cli, run: Path) -> None:
    told = cli.good("export", "latest", "--to", "eap-ig")
    path = run / "circuit.eap-ig.json"
    edges = own(run).anatomy.n_edges
    assert f"circuit.eap-ig.json: {edges} edges, " in told.out
    circuit, scores = read_circuit(path)
    assert circuit.edges == own(run).edges
    assert circuit.conditions == own(run).conditions
    assert scores is not None
    np.testing.assert_array_equal(scores.values, Scores.load(run / "scores.npz").values)
    assert json.loads(path.read_text(encoding="utf-8"))["cfg"]["d_model"] == 48


def test_the_width_of_a_run_is_written_down(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    width = width_of("planted/induction")
    monkeypatch.setattr("circuitfind.zoo.planted.build", None)  # it takes torch to build the model
    told = cli.good("export", "latest", "--to", "eap-ig", "--json").json
    data = json.loads(Path(told["file"]).read_text(encoding="utf-8"))
    assert data["cfg"]["d_model"] == width


def test_json_says_what_is_in_the_file(cli: Cli, run: Path) -> None:
    data = cli.good("export", run, "--to", "eap-ig", "-o", "importances.json", "--json").json
    circuit = own(run)
    assert data == {
        "version": 1,
        "to": "eap-ig",
        "file": "importances.json",
        "nodes": len(circuit.anatomy.writers) + 1,
        "edges": circuit.anatomy.n_edges,
        "nodes_in_graph": len(circuit.nodes),
        "edges_in_graph": len(circuit.edges),
        "notes": data["notes"],
    }
    assert read_circuit(Path("importances.json"))[0].edges == circuit.edges


def test_several_forms_at_once(cli: Cli, run: Path) -> None:
    told = cli.good(
        "export", run, "--to", "graphml,csv", "--to", "node-link", "-o", "figures/", "--json"
    ).json
    assert [row["to"] for row in told["exports"]] == ["graphml", "csv", "node-link"]
    assert told["exports"][1]["files"] == ["figures/circuit.nodes.csv", "figures/circuit.edges.csv"]
    graph = nx.node_link_graph(json.loads(Path("figures/circuit.node-link.json").read_text()), edges="edges")
    assert set(graph.edges(keys=True)) == set(own(run).graph.edges(keys=True))
    assert sorted(path.name for path in Path("figures").iterdir()) == [
        "circuit.edges.csv",
        "circuit.graphml",
        "circuit.node-link.json",
        "circuit.nodes.csv",
    ]


def test_all_forms(cli: Cli, run: Path) -> None:
    told = cli.good("export", run, "--to", "all", "-o", "all/")
    made = {path.name for path in Path("all").iterdir()}
    assert {"circuit.gexf", "circuit.py", "circuit.neuronpedia.json", "circuit.dot"} <= made
    if shutil.which("dot"):
        assert len(made) == len(FORMS) + 1, told.err  # csv has two
    compile(Path("all/circuit.py").read_text(), "circuit.py", "exec")


def test_what_cannot_be_made_is_left_out_of_all(cli: Cli, tracer: Path) -> None:
    told = cli.good("export", tracer, "--to", "all", "-o", "all/")
    assert "note: not as eap-ig: a feature graph cannot be written as eap-ig" in told.err
    assert Path("all/graph.graphml").is_file()
    assert not Path("all/graph.py").exists()


def test_labels_of_people_are_in_the_files(cli: Cli, run: Path) -> None:
    node = next(str(node) for node in own(run).heads)
    cli.good("label", run.name, node, 'a <b> & "c"')
    cli.good("export", run, "--to", "graphml", "-o", "x.graphml")
    assert nx.read_graphml("x.graphml", force_multigraph=True).nodes[node]["label"] == 'a <b> & "c"'


def test_stdout(cli: Cli, run: Path) -> None:
    told = cli.good("export", "--to", "eap-ig", "-o", "-")
    assert set(json.loads(told.out)) == {"cfg", "nodes", "edges", "circuitfind"}
    assert not (run / "circuit.eap-ig.json").exists()
    error = cli("export", "--to", "eap-ig", "-o", "-", "--json")
    assert error.code == 2
    assert "both want stdout" in error.json["what"]
    cli.fails_loosely(2, "export", "--to", "csv", "-o", "-", says=["stdout takes one file, and these are 2"])


def test_a_circuit_file_has_the_scores_of_its_own_edges(cli: Cli, run: Path) -> None:
    told = cli.good("export", run / "circuit.json", "--to", "eap-ig", "-o", "out.json")
    left = own(run).anatomy.n_edges - len(own(run).edges)
    assert f"note: {left} edges have no score; they are written with the score 0" in told.err
    again = cli.good("export", "out.json", "--to", "eap-ig", "-o", "again.json")
    assert f"{len(own(run).edges)} of them in the graph" in again.out
    assert Path("again.json").read_text() == Path("out.json").read_text()


def test_a_file_in_a_run_s_folder_knows_its_prompts(cli: Cli, run: Path) -> None:
    cli.good("prune", run, "--edges", "12")
    told = cli.good(
        "export", run / "circuit-edges-12.json", "--to", "python", "-o", "small.py", "--json"
    ).json
    assert told["prompts"] == 8
    shutil.copy(run / "circuit-edges-12.json", "alone.json")
    cli.fails(2, "export", "alone.json", "--to", "python", says=["does not have them", "export the run"])


def test_width_is_found_or_asked_for(cli: Cli, run: Path, tmp_path: Path) -> None:
    assert width_of("mini") == 128
    assert width_of("planted/induction") == 48
    circuit = json.loads((run / "circuit.json").read_text(encoding="utf-8"))
    circuit["conditions"]["model"] = "nobody/no-model"
    Path("elsewhere.json").write_text(json.dumps(circuit))
    cli.fails(2, "export", "elsewhere.json", "--to", "eap-ig", says=["'nobody/no-model'", "--d-model 768"])
    cli.good("export", "elsewhere.json", "--to", "eap-ig", "--d-model", "48")
    data = json.loads(Path("elsewhere.eap-ig.json").read_text())
    assert data["cfg"]["d_model"] == 48
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"layers": 3}')
    with pytest.raises(UsageError, match="not known here") as caught:
        width_of(str(tmp_path / "odd"))
    assert "none of d_model, hidden_size, n_embd" in caught.value.details[0]


# Files of other programs.


def test_a_graph_of_circuit_tracer_is_shown_and_written(cli: Cli, tracer: Path) -> None:
    data = json.loads(tracer.read_text(encoding="utf-8"))
    told = cli.good("show", tracer, "--json", "--nodes", "--edges").json
    assert told["of"] == "feature graph"
    assert told["counts"]["edges"] == len(data["links"]) == len(told["edges"])
    assert len(told["nodes"]) == len(data["nodes"])
    assert "faithfulness  not measured" in cli.good("show", tracer).out
    cli.good("export", tracer, "--to", "json")
    again = cli.good("show", "graph.circuitfind.json", "--json", "--edges").json
    assert again["edges"] == told["edges"]
    cli.good("export", tracer, "--to", "neuronpedia", "-o", "back.json")
    assert json.loads(Path("back.json").read_text()) == data
    assert cli.good("show", "graph.circuitfind.json", "--stats", "--json").json["edges"] == len(data["links"])


def test_folders_of_attribution_graphs(cli: Cli, tracer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "attribution"
    folder.mkdir()
    shutil.copy(tracer, folder / "graph.json")
    (folder / "graph-metadata.json").write_text('{"graphs": [{"slug": "graph"}]}')
    cli.good("export", folder, "--to", "node-link", "-o", "out.json")
    assert cli.good("show", folder, "--json").json["counts"]["nodes"] > 3
    (folder / "graph-metadata.json").write_text('{"graphs": [{"slug": "graph-000"}, {"slug": "graph-001"}]}')
    cli.fails(2, "export", folder, "--to", "dot", says=["holds 2 attribution graphs", "graph-000.json"])


def test_a_graph_of_eap_ig_is_shown_compared_and_imported(cli: Cli, run: Path) -> None:
    cli.good("export", run, "--to", "eap-ig", "-o", "mib.json")
    told = cli.good("show", "mib.json", "--json", "--edges").json
    assert {row["name"] for row in told["edges"]} == {str(edge) for edge in own(run).edges}
    same = cli.good("diff", run, "mib.json", "--json").json
    assert same["edges"]["jaccard"] == 1
    assert "scores of what is not in it" not in json.dumps(same)
    cli.good("export", "mib.json", "--to", "json", "-o", "mine.json")
    assert Circuit.load(Path("mine.json")).edge_scores == own(run).edge_scores


# What is refused.


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("export", "nope", "--to", "eap-ig"), "no run 'nope'"),
        (("export", "nope.json", "--to", "eap-ig"), "there is no file nope.json"),
        (("export", "latest"), "Missing option '--to'"),
        (("export", "latest", "--to", "grafml"), "there is no form 'grafml': did you mean 'graphml'?"),
        (("export", "latest", "--to", "eap-ig", "--d-model", "0"), "0 is not in the range"),
        (("export", "latest", "--to", "dot,csv", "-o", "x.dot"), "one file, and 2 forms are asked for"),
        (("export", "broken.json", "--to", "eap-ig"), "cannot read the circuit"),
        (("export", "list.json", "--to", "eap-ig"), "no JSON object"),
        (("export", "graph.pt", "--to", "eap-ig"), "Graph.from_pt(FILE).to_json"),
        (("export", "odd.json", "--to", "dot"), "neither a circuit.json nor a graph of EAP-IG"),
        (("show", "broken.json"), "cannot read the circuit"),
        (("show", "circuit.json", "--backups"), "nothing to show for --backups"),
    ],
)
def test_mistakes(cli: Cli, run: Path, words: tuple[str, ...], says: str) -> None:
    Path("broken.json").write_text("{")
    Path("list.json").write_text("[]")
    Path("odd.json").write_text('{"a": 1}')
    Path("graph.pt").write_bytes(b"\x80\x04")
    shutil.copy(run / "circuit.json", "circuit.json")
    cli.fails(2, *words, says=[says])
    assert not (run / "circuit.eap-ig.json").exists()


def test_the_file_that_is_read_is_not_written_over(cli: Cli, run: Path) -> None:
    before = (run / "circuit.json").read_bytes()
    cli.fails(2, "export", run, "--to", "json", "-o", run / "circuit.json", says=["is the file that is read"])
    cli.fails(
        2, "export", run / "circuit.json", "--to", "dot", "-o", run / "circuit.json", says=["is the file"]
    )
    assert (run / "circuit.json").read_bytes() == before


def test_neurons_are_refused(cli: Cli, run: Path) -> None:
    data: dict[str, Any] = json.loads((run / "circuit.json").read_text())
    layers = data["anatomy"]["n_layers"]
    data["anatomy"] |= {
        "has_mlp": True,
        "parts": [["m0.n1", "m0.rest"], *[[]] * (layers - 1)],
        "live_errors": False,
    }
    data["edges"], data["nodes"] = [], []
    Path("neurons.json").write_text(json.dumps(data))
    cli.fails(2, "export", "neurons.json", "--to", "eap-ig", says=["whole MLPs", "discover` without --nodes"])


def test_every_form_is_offered() -> None:
    assert tuple(FORMS) == FORMATS


@pytest.mark.slow
def test_the_script_of_mini_s_ioi_circuit_in_a_process_of_its_own(cli: Cli) -> None:
    cli.good(
        "discover",
        "ioi",
        "--method",
        "eap",
        "--edges",
        "20",
        "--count",
        "8",
        "--no-backups",
        "--controls",
        "none",
        "-q",
    )
    cli.good("export", "latest", "--to", "python", "-o", "circuit.py")
    done = subprocess.run([sys.executable, "circuit.py"], capture_output=True, text=True, check=True)
    wanted = own(cli.run_folder()).evaluations[0]
    values = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()[1:]}
    assert values["faithfulness"] == pytest.approx(wanted.faithfulness.value, abs=1e-4)
    assert values["circuit"] == pytest.approx(wanted.circuit, abs=1e-4)
    assert f"(circuitfind measured {wanted.faithfulness.value:.6f})" in done.stdout
