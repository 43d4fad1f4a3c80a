"""``export``: the file, what is told of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitfind.circuit.graph import Circuit
from circuitfind.circuit.mib import read_circuit
from circuitfind.circuit.scores import Scores
from circuitfind.cli.export import FORMATS
from circuitfind.errors import UsageError
from circuitfind.output.exports import FORMS, width_of
from tests.cli.helpers import Cli, Toy

QUICK = ("--no-backups", "--controls", "none", "--method", "eap")


@pytest.fixture
def run(cli: Cli, toy: Toy) -> Path:
    """The folder of a run."""
    cli.good("discover", toy.task(), *QUICK, "-q")
    return cli.run_folder()


def test_a_run_is_written_beside_its_circuit(cli: Cli, toy: Toy, run: Path) -> None:
    told = cli.good("export", "latest", "--to", "eap-ig")
    path = run / "circuit.eap-ig.json"
    assert "circuit.eap-ig.json: 75 edges, " in told.out
    circuit, scores = read_circuit(path)
    own = Circuit.load(run / "circuit.json")
    assert circuit.edges == own.edges
    assert circuit.conditions == own.conditions
    assert circuit.edge_scores == own.edge_scores
    assert scores is not None
    np.testing.assert_array_equal(scores.values, Scores.load(run / "scores.npz").values)
    assert json.loads(path.read_text(encoding="utf-8"))["cfg"]["d_model"] == 48


def test_json_says_what_is_in_the_file(cli: Cli, run: Path) -> None:
    data = cli.good("export", run, "--to", "eap-ig", "-o", "importances.json", "--json").json
    own = Circuit.load(run / "circuit.json")
    assert data == {
        "version": 1,
        "to": "eap-ig",
        "file": "importances.json",
        "nodes": 10,
        "edges": 75,
        "nodes_in_graph": len(own.nodes),
        "edges_in_graph": len(own.edges),
        "notes": [],
    }
    assert read_circuit(Path("importances.json"))[0].edges == own.edges


def test_stdout(cli: Cli, run: Path) -> None:
    told = cli.good("export", "--to", "eap-ig", "-o", "-")
    assert set(json.loads(told.out)) == {"cfg", "nodes", "edges", "circuitfind"}
    assert not (run / "circuit.eap-ig.json").exists()
    error = cli("export", "--to", "eap-ig", "-o", "-", "--json")
    assert error.code == 2
    assert "both want stdout" in error.json["what"]


def test_a_circuit_file_has_the_scores_of_its_own_edges(cli: Cli, run: Path) -> None:
    told = cli.good("export", run / "circuit.json", "--to", "eap-ig", "-o", "out.json")
    kept = len(Circuit.load(run / "circuit.json").edges)
    assert f"note: {75 - kept} edges have no score; they are written with the score 0" in told.err
    again = cli.good("export", "out.json", "--to", "eap-ig", "-o", "again.json")
    assert f"{kept} of them in the graph" in again.out
    assert Path("again.json").read_text() == Path("out.json").read_text()


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


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("export", "nope", "--to", "eap-ig"), "no run 'nope'"),
        (("export", "latest"), "Missing option '--to'"),
        (("export", "latest", "--to", "dot"), "'dot' is not 'eap-ig'"),
        (("export", "latest", "--to", "eap-ig", "--d-model", "0"), "0 is not in the range"),
        (("export", "latest", "--to", "eap-ig", "-o", "."), "is a folder"),
        (("export", "broken.json", "--to", "eap-ig"), "cannot read the circuit"),
        (("export", "list.json", "--to", "eap-ig"), "no JSON object"),
        (("export", "graph.pt", "--to", "eap-ig"), "Graph.from_pt(FILE).to_json"),
    ],
)
def test_mistakes(cli: Cli, run: Path, words: tuple[str, ...], says: str) -> None:
    Path("broken.json").write_text("{")
    Path("list.json").write_text("[]")
    Path("graph.pt").write_bytes(b"\x80\x04")
    cli.fails(2, *words, says=[says])
    assert not (run / "circuit.eap-ig.json").exists()


def test_neurons_are_refused(cli: Cli, run: Path) -> None:
    data: dict[str, Any] = json.loads((run / "circuit.json").read_text())
    data["anatomy"] |= {"parts": [["m0.n1", "m0.rest"], []], "live_errors": False}
    Path("neurons.json").write_text(json.dumps(data))
    cli.fails(2, "export", "neurons.json", "--to", "eap-ig", says=["whole MLPs", "discover` without --nodes"])


def test_every_form_is_offered() -> None:
    assert tuple(FORMS) == FORMATS
