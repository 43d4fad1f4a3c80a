"""``circuitfind diff``: runs and files, what is printed and what is refused; and two fine-tunes whose changed part is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import circuitfind
from circuitfind.output.draw import dot_binary
from tests.cli.helpers import Cli, Toy
from tests.fine_tunes import TASK, tuned

PLAIN = ("--no-backups", "--controls", "none", "-q")


# --- two fine-tunes that differ in one behaviour ----------------------------------------------------------------


@pytest.mark.parametrize("part", [pytest.param("a1.h4", marks=pytest.mark.slow), "m2"])
def test_edges_of_the_trained_part_come_first(cli: Cli, part: str) -> None:
    for target in (8.0, 25.0):
        circuitfind.discover(
            TASK,
            tuned(part, target),
            method="eap-ig",
            count=16,
            faithfulness=0.8,
            backups=False,
            controls="none",
            formats=(),
        )
    found = cli.good("diff", f"{TASK}-{part}-8", f"{TASK}-{part}-25", "--json").json
    first, *_ = found["edges"]["changes"]
    assert part in (first["name"].partition("->")[0], first["name"].partition("->")[2].partition("<")[0])
    assert found["nodes"]["changes"][0]["name"] == part
    assert found["scores"]["nodes"]["moved"][0]["name"] == part
    assert [row["what"] for row in found["differs"]] == ["model", "weights"]
    assert found["shares_of"]["what"] == "full - empty"


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture
def runs(cli: Cli, toy: Toy) -> list[str]:
    """Names of two runs: the three edges of the planted circuit, and three or so more."""
    task = toy.task()
    names = []
    for flags in ((), ("--edges", "6")):
        cli.good("discover", task, "--method", "eap", *PLAIN, *flags)
        names.append(next(p.name for p in cli.outputs.iterdir() if p.name not in names))
    return names


def test_what_a_user_sees(cli: Cli, runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = cli.good("diff", *runs)
    out = found.out.splitlines()
    assert out[0] == f"{runs[0]} -> {runs[1]}"
    assert out[1].startswith("  differs       pruned to: faithfulness 0.9 -> ")
    assert "method eap" in found.out
    assert "(resample)" in found.out
    data = cli.good("diff", *runs, "--json").json
    edges = data["edges"]
    assert (
        f"  edges         {edges['kept']} kept, {edges['gained']} gained, {edges['lost']} lost" in found.out
    )
    kept, gained, lost = (
        {row["name"] for row in edges["changes"] if row["fate"] == fate}
        for fate in ("kept", "gained", "lost")
    )
    sides = [json.loads((cli.outputs / name / "circuit.json").read_text()) for name in runs]
    before, after = ({row["name"] for row in side["edges"]} for side in sides)
    assert (kept, gained, lost) == (before & after, after - before, before - after)
    assert edges["jaccard"] == len(before & after) / len(before | after)
    assert data["scores"]["edges"]["spearman"] == pytest.approx(
        1.0
    )  # one method on one model: the same scores
    monkeypatch.setattr("circuitfind.cli.console.terminal_width", lambda stream: 80)
    narrow = cli.good("diff", *runs).out.splitlines()
    assert all(len(line) <= 80 for line in narrow), max(narrow, key=len)


def test_names_are_looked_up_as_by_show(cli: Cli, runs: list[str]) -> None:
    first = cli.good("diff", *runs, "--json").json
    assert cli.good("diff", runs[0], "latest", "--json").json == first
    assert cli.good("diff", cli.outputs / runs[0], runs[1], "--json").json == first
    wrong = runs[1].replace("model", "modle")
    cli.fails(2, "diff", runs[0], wrong, says=[f"no run '{wrong}'", f"did you mean '{runs[1]}'?"])
    cli.fails(2, "diff", "nowhere.json", runs[0], says=["there is no file nowhere.json"])
    cli.fails(2, "diff", runs[0], says=["Missing argument"])


def test_a_run_and_itself(cli: Cli, runs: list[str]) -> None:
    found = cli.good("diff", runs[0], runs[0], "--at-least", "1")
    assert "nothing that they were found under" in found.out
    assert "0 gained, 0 lost (Jaccard 1.00)" in found.out
    assert "before" not in found.out  # no table of changes


def test_files_are_circuits_too(cli: Cli, runs: list[str]) -> None:
    paths = [cli.outputs / name / "circuit.json" for name in runs]
    data = cli.good("diff", *paths, "--json").json
    assert data["edges"]["jaccard"] == cli.good("diff", *runs, "--json").json["edges"]["jaccard"]
    assert data["scores"] == {"nodes": None, "edges": None}
    assert "is a circuit alone" in cli.good("diff", paths[0], runs[1]).out.replace("\n" + " " * 16, " ")
    text = Path("text.json")
    text.write_text("{}")
    cli.fails(2, "diff", text, runs[0], says=["neither a circuit.json nor a graph of EAP-IG"])


def test_a_bar_for_ci(cli: Cli, runs: list[str]) -> None:
    jaccard = cli.good("diff", *runs, "--json").json["edges"]["jaccard"]
    assert 0 < jaccard < 1
    cli.good("diff", *runs, "--at-least", str(jaccard))
    found = cli("diff", *runs, "--at-least", str(jaccard + 0.01))
    assert found.code == 1
    assert "of their edges in common, less than" in found.err
    assert found.out == cli.good("diff", *runs).out
    as_json = cli("diff", *runs, "--at-least", "1", "--json")
    assert as_json.code == 1
    assert as_json.json["edges"]["jaccard"] == jaccard
    cli.fails(2, "diff", *runs, "--at-least", "7", says=["7"])


def test_a_picture(cli: Cli, runs: list[str]) -> None:
    runs = runs[::-1]
    cli.good("diff", *runs, "--to", "changes.dot")
    text = Path("changes.dot").read_text()
    edges = cli.good("diff", *runs, "--json").json["edges"]["changes"]
    for fate, look in (("lost", "style=dashed"), ("kept", "#8A8A8A")):
        some = [row["name"] for row in edges if row["fate"] == fate]
        assert some
        for name in some:
            (line,) = (line for line in text.splitlines() if f'tooltip="{name}: {fate}, ' in line)
            assert look in line
    assert f"{sum(row['fate'] == 'lost' for row in edges)} edges lost" in text
    cli.fails(2, "diff", *runs, "--to", "changes.txt", says=["no ending that names a format"])
    if dot_binary() is not None:
        assert cli.good("diff", *runs, "--to", "changes.svg", "--json").json["picture"] == "changes.svg"
        assert Path("changes.svg").stat().st_size > 1000


def test_models_of_different_shape(cli: Cli, runs: list[str], tmp_path: Path) -> None:
    task = tmp_path / "gate.yaml"
    task.write_text("name: gate\nmodel: planted/and-gate\nprompts:\n  zoo: {count: 8}\n")
    cli.good("discover", task, "--method", "eap", *PLAIN)
    found = cli.good("diff", runs[0], "gate")
    assert "the models have different parts" in found.out
    cli.fails(2, "diff", runs[0], "gate", "--to", "x.svg", says=["different shape are not drawn as one"])


def test_runs_without_a_circuit_are_refused_by_name(cli: Cli, runs: list[str], toy: Toy) -> None:
    other = toy.task("other.yaml")
    other.write_text(json.dumps({**toy.text(), "name": "other"}))
    cli.good("backups", other, "--primaries", "a1.h1", "-q")
    cli.fails(3, "diff", runs[0], "other", says=["the run looked for backups alone", "discover"])


@pytest.mark.slow
def test_feature_graphs_are_refused_by_name(cli: Cli, runs: list[str]) -> None:
    cli.good("discover", "gendered-pronoun", "--nodes", "features", "--count", "8", "-q")
    cli.fails(3, "diff", runs[0], "gendered-pronoun", says=["it has a feature graph, and no circuit"])


def test_no_model_and_no_torch(cli: Cli, runs: list[str]) -> None:
    code = f"""
import sys
from circuitfind.cli import run
assert run({["diff", *runs, "--outputs", str(cli.outputs)]!r}) == 0
assert not {{"torch", "transformers", "transformer_lens"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_damaged_scores(cli: Cli, runs: list[str]) -> None:
    (cli.outputs / runs[0] / "scores.npz").write_bytes(b"nothing")
    found: Any = cli("diff", *runs)
    assert found.code == 3
    assert "Traceback" not in found.err
