"""``prune``: circuits of any size from what is stored, and what is known of how faithful they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.graph import Circuit, connected
from circuitfind.circuit.prune import prune as discover_s
from circuitfind.circuit.rule import Rule
from circuitfind.circuit.scores import Scores
from circuitfind.evidence_subjects import subject_of_run
from circuitfind.output.store import Store
from tests.cli.helpers import Cli
from tests.finished import QuickRun


@pytest.fixture
def run(cli: Cli, quick_run: QuickRun) -> Path:
    """The folder of a run, which tests may write into."""
    return quick_run(cli.folder)


def by_hand(scores: Scores, take: Any) -> set[str]:
    """Edges by |score| one after the other, as long as ``take`` wants the circuit that they make: the slow way."""
    anatomy, order = (
        scores.anatomy,
        sorted(
            zip(*np.nonzero(~np.isnan(scores.values)), strict=True), key=lambda at: -abs(scores.values[at])
        ),
    )
    mask, best = np.zeros_like(anatomy.edge_mask), np.zeros_like(anatomy.edge_mask)
    for at in order:
        mask[at] = True
        if not take(mask, at):
            break
        best = connected(anatomy, mask)
    return {str(anatomy.edge_at(int(w), int(r))) for w, r in np.argwhere(best)}


@pytest.mark.parametrize("edges", [1, 3, 6, 11])
def test_a_number_of_edges(cli: Cli, run: Path, edges: int) -> None:
    scores = Scores.load(run / "scores.npz")
    wanted = by_hand(scores, lambda mask, at: connected(scores.anatomy, mask).sum() <= edges)
    if not wanted:
        cli.fails(3, "prune", run, "--edges", edges, says=["no way from the input to the logits is left"])
        return
    told = cli.good("prune", run, "--edges", edges, "--json").json
    path = run / f"circuit-edges-{edges}.json"
    assert told["file"] == str(path)
    made = Circuit.load(path)
    assert {str(edge) for edge in made.edges} == wanted
    assert told["counts"]["edges"] == len(wanted) <= edges
    assert made.conditions.rule == told["rule"] == f"edges {edges}"
    for edge in made.edges:
        assert made.edge_scores[str(edge)] == scores.values[scores.anatomy.index_of(edge)]


def test_a_threshold(cli: Cli, run: Path) -> None:
    scores = Scores.load(run / "scores.npz")
    threshold = float(np.sort(np.abs(scores.values[~np.isnan(scores.values)]))[-8])
    wanted = by_hand(scores, lambda mask, at: abs(scores.values[at]) >= threshold)
    cli.good("prune", run, "--threshold", repr(threshold), "-o", "small.json")
    assert {str(edge) for edge in Circuit.load(Path("small.json")).edges} == wanted


def test_it_is_what_discover_makes(cli: Cli, run: Path) -> None:
    """The same code decides, and the same circuit comes out."""
    subject = subject_of_run(Store(cli.outputs).find(run.name), device="cpu")
    assert subject.scores is not None
    for rule, words in ((Rule(edges=5), ("--edges", "5")), (Rule(threshold=0.01), ("--threshold", "0.01"))):
        found = discover_s(subject.scores, rule, Evaluator(subject.session.runs, "resample"))
        cli.good("prune", run, *words, "-o", "small.json")
        np.testing.assert_array_equal(Circuit.load(Path("small.json")).mask, found.mask)


def test_a_target_takes_the_smallest_measured_circuit_that_reaches_it(cli: Cli, run: Path) -> None:
    views = json.loads((run / "views.json").read_text(encoding="utf-8"))
    curve = views["curve"]
    values = [one["value"] for one in curve["faithfulness"]]
    target = 0.9
    size = min(n for n, value in zip(curve["connected"], values, strict=True) if value >= target)
    told = cli.good("prune", run, "--target", target, "--json").json
    assert told["counts"]["edges"] == size
    assert told["measured"]["faithfulness"]["value"] == values[curve["connected"].index(size)] >= target
    below = [n for n in curve["connected"] if 0 < n < size]
    assert (told["smaller"] or {}).get("edges") == (max(below) if below else None)
    # It is true of this circuit: run it.
    subject = subject_of_run(Store(cli.outputs).find(run.name), device="cpu")
    made = Circuit.load(run / "circuit-target-0.9.json")
    measured = Evaluator(subject.session.runs, "resample").evaluate(made.mask)
    assert measured.faithfulness.value == pytest.approx(told["measured"]["faithfulness"]["value"], abs=1e-5)
    assert measured.circuit == pytest.approx(made.evaluations[0].circuit, abs=1e-4)
    assert "measured when the run was made" in cli.good("prune", run, "--target", target).out


def test_faithfulness_is_told_only_where_it_was_measured(cli: Cli, run: Path) -> None:
    circuit = Circuit.load(run / "circuit.json")
    curve = json.loads((run / "views.json").read_text(encoding="utf-8"))["curve"]
    told = [cli.good("prune", run, "--edges", edges, "--json").json for edges in (4, 9, 20, 40, 60)]
    sizes = [one["counts"]["edges"] for one in told]
    known = {*curve["connected"], len(circuit.edges)}
    assert [one["measured"] is not None for one in told] == [size in known for size in sizes]
    unknown = next(one for one, size in zip(told, sizes, strict=True) if size not in known)
    assert Circuit.load(Path(unknown["file"])).evaluations == ()
    assert "not measured of these edges" in cli.good("prune", run, "--edges", unknown["counts"]["edges"]).out
    same = cli.good(
        "prune", run / "circuit.json", "--edges", len(circuit.edges), "-o", "same.json", "--json"
    ).json
    assert same["measured"]["faithfulness"] == vars(circuit.evaluations[0].faithfulness)
    (run / "views.json").write_text("{}")  # cannot be read: nothing is known
    cli.good("prune", run, "--edges", "10000", "-o", "all.json")
    assert len(Circuit.load(Path("all.json")).edges) > len(circuit.edges)
    assert Circuit.load(Path("all.json")).evaluations == ()


def test_the_run_stays_as_it_is(cli: Cli, run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    cli.good("prune", run, "--edges", "5", "--format", "dot")
    after = {path.name: path.read_bytes() for path in run.iterdir()}
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"circuit-edges-5.json", "circuit-edges-5.dot"}
    assert cli.good("show", run, "--json").json["counts"]["edges"] == len(
        Circuit.load(run / "circuit.json").edges
    )


def test_the_file_is_a_circuit_for_the_others(cli: Cli, run: Path) -> None:
    cli.good("prune", run, "--edges", "5")
    path = run / "circuit-edges-5.json"
    size = len(Circuit.load(path).edges)
    assert cli.good("show", path, "--json").json["counts"]["edges"] == size
    assert cli.good("diff", run, path, "--json").json["edges"]["kept"] <= size
    assert cli.good("export", path, "--to", "csv", "-o", "x.csv", "--json").json["edges"] == size
    told = cli.good(
        "evaluate", path, "--task", "small.yaml", "--controls", "none", "--parts", "completeness", "--json"
    ).json
    assert told["edges"] == size


def test_files_of_eap_ig_are_pruned_by_their_scores(cli: Cli, run: Path) -> None:
    cli.good("export", run, "--to", "eap-ig", "-o", "mib.json")
    cli.good("prune", "mib.json", "--edges", "5")
    cli.good("prune", run, "--edges", "5")
    assert Circuit.load(Path("mib-edges-5.json")).edges == Circuit.load(run / "circuit-edges-5.json").edges
    cli.good("prune", run / "circuit.json", "--edges", "3", "-o", "fewer.json")
    assert set(Circuit.load(Path("fewer.json")).edges) <= set(Circuit.load(run / "circuit.json").edges)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "give exactly one of --edges, --threshold and --target"),
        (("--edges", "3", "--target", "0.9"), 2, "give exactly one"),
        (("--edges", "0"), 2, "0 edges make no circuit"),
        (("--threshold", "-1"), 2, "keeps no order"),
        (("--threshold", "nan"), 2, "nan is no finite number"),
        (("--threshold", "1e9"), 3, "no way from the input to the logits is left (threshold 1e+09)"),
        (("--target", "1.5"), 2, "cannot be reached for certain"),
        (("--edges", "3", "-o", "."), 2, "is a folder"),
        (("--edges", "many"), 2, "not a valid integer"),
    ],
)
def test_mistakes(cli: Cli, run: Path, words: tuple[str, ...], code: int, says: str) -> None:
    before = sorted(run.iterdir())
    cli.fails(code, "prune", run, *words, says=[says])
    assert sorted(run.iterdir()) == before


def test_the_run_s_own_circuit_is_not_written_over(cli: Cli, run: Path) -> None:
    for name in ("circuit.json", "pruned.json"):
        before = (run / name).read_bytes()
        cli.fails(2, "prune", run, "--edges", "3", "-o", run / name, says=["stays as it is"])
        assert (run / name).read_bytes() == before


def test_a_target_needs_a_curve_of_the_same_scores(cli: Cli, run: Path) -> None:
    cli.fails(2, "prune", run / "circuit.json", "--target", "0.9", says=["a file has none"])
    path = run / "views.json"
    views = json.loads(path.read_text(encoding="utf-8"))
    other = {**views, "curve": {**views["curve"], "connected": [n + 1 for n in views["curve"]["connected"]]}}
    path.write_text(json.dumps(other))
    cli.fails(3, "prune", run, "--target", "0.9", says=["they are of different runs"])
    path.write_text(json.dumps({**views, "curve": None, "missing": {"curve": "it was not asked for"}}))
    cli.fails(2, "prune", run, "--target", "0.9", says=["no measured curve: it was not asked for"])
    path.unlink()
    cli.fails(2, "prune", run, "--target", "0.9", says=["no measured curve", "--edges or --threshold"])


def test_a_target_out_of_reach(cli: Cli, run: Path) -> None:
    path = run / "views.json"
    views = json.loads(path.read_text(encoding="utf-8"))
    for one in views["curve"]["faithfulness"]:
        one["value"] = min(one["value"], 0.5)
    path.write_text(json.dumps(views))
    cli.fails(2, "prune", run, "--target", "0.9", says=["the best has 0.500"])
