"""Commands on what is there: ``show``, ``list``, ``render``."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.helpers import Cli

TASK = """\
name: small
model: planted/and-gate
prompts:
  zoo: {count: 8}
"""


@pytest.fixture
def finished(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """A folder with a task and a finished run, where no model can be loaded any more."""

    def boom(*args: object, **keys: object) -> None:
        raise AssertionError("a model was loaded")

    (cli.folder / "small.yaml").write_text(TASK, encoding="utf-8")
    cli.good("discover", "small.yaml", "-q")
    with monkeypatch.context() as patch:
        patch.setattr("circuitfind.model.load.load_model", boom)
        yield cli


@pytest.fixture
def no_graphviz(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A PATH on which nothing is."""
    monkeypatch.setenv("PATH", str(tmp_path))


# --- show ---------------------------------------------------------------------------------------------------


def test_show_says_what_discover_said(finished: Cli) -> None:
    said = finished.good("discover", "small.yaml", "-v").out
    assert finished.good("show").out == said + "  status        finished\n"
    for name in ("latest", finished.run_folder().name, finished.run_folder().name[:8]):
        assert finished.good("show", name).out.startswith(said)
    by_path = finished.good("show", finished.run_folder()).out
    assert by_path.splitlines()[:8] == said.splitlines()[:8]


def test_summary_holds_the_verdict(finished: Cli) -> None:
    out = finished.good("show").out
    lines = {line[:16].strip(): line[16:] for line in out.splitlines()[1:]}
    assert lines["under"] == (
        "resample ablation, counterfactual corrupted, metric logit-diff, noising, pruned to faithfulness 0.9"
    )
    assert lines["faithfulness"].startswith("0.99")
    assert "8 prompts" in lines["faithfulness"]
    assert "under mean ablation" in out
    assert lines["kept"] == (
        "5 nodes (2 heads, 1 MLP), 5 of 46 edges (11 %), none of which can be dropped alone"
    )
    assert lines["prompts"] == "8 used, accuracy 100 %"
    assert lines["known circuit"] == "precision 1.00, recall 1.00 over its edges"
    assert lines["strongest"].count("->") == 5
    assert "backward passes" in lines["cost"]
    assert Path(lines["run"]).is_dir()
    assert Path(lines["picture"]).is_file()


def test_show_nodes_edges_top(finished: Cli) -> None:
    found = finished.good("show", "--nodes", "--edges", "--top", "7", "--json").json
    assert len(found["nodes"]) == found["counts"]["nodes"] == 5
    assert len(found["edges"]) == found["counts"]["edges"] == 5
    assert len(found["top"]) == 7
    sizes = [abs(row["score"]) for row in found["top"]]
    assert sizes == sorted(sizes, reverse=True)
    assert {row["name"] for row in found["top"] if row["in_circuit"]} == {
        row["name"] for row in found["edges"]
    }
    table = finished.good("show", "--nodes", "--edges", "--top", "7").out
    assert "arm-a" in table
    assert table.count("in the circuit") == 5
    for row in found["edges"]:
        assert row["name"] in table
    assert "nodes" not in finished.good("show", "--json").json
    finished.fails(2, "show", "--top", "0", says=["give at least 1"])


def test_show_which_run(finished: Cli) -> None:
    finished.fails(
        2, "show", "smal-and-gate", says=["no run 'smal-and-gate'", "did you mean 'small-and-gate-"]
    )
    finished.fails(2, "show", "zzz", says=["no run 'zzz'", "circuitfind list runs"])
    assert finished.good("show", "small", "--json").json["run"] == finished.run_folder().name


def test_beginning_of_two_runs(cli: Cli) -> None:
    (cli.folder / "small.yaml").write_text(TASK, encoding="utf-8")
    cli.good("discover", "small.yaml", "-q")
    last = cli.good("discover", "small.yaml", "-q", "--edges", "5", "--json").json["run"]
    found = cli.fails(2, "show", "small", says=["is the beginning of 2 runs"])
    assert found.err.count("\n  small-and-gate-") == 2
    assert cli.good("show", "latest", "--json").json["run"] == last
    rows = cli.good("list", "runs", "--json").json["runs"]
    assert rows[0]["run"] == last, "the newest first"


def test_nothing_there(cli: Cli) -> None:
    cli.fails(2, "show", says=["no runs in outputs", "circuitfind discover"])
    cli.fails(2, "show", "small", says=["no run 'small' in outputs"])
    cli.fails(2, "render", says=["no runs in outputs"])
    assert "circuitfind discover ioi" in cli.good("list", "runs").out
    assert cli.good("list", "runs", "--json").json["runs"] == []
    assert not cli.outputs.exists()


# --- list ---------------------------------------------------------------------------------------------------


def test_list_tasks(cli: Cli) -> None:
    rows = {row["task"]: row for row in cli.good("list", "tasks", "--json").json["tasks"]}
    for name in ("ioi", "and-gate", "or-gate", "planted-induction", "ioi-planted"):
        assert rows[name]["description"]
        assert rows[name]["model"]
    mine = cli.folder / "tasks"
    mine.mkdir()
    (mine / "mine.yaml").write_text(TASK, encoding="utf-8")
    (mine / "broken.yaml").write_text("name: [", encoding="utf-8")
    out = cli.good("list", "tasks").out
    assert "mine" in out
    assert "damaged: broken YAML" in out


def test_list_models(cli: Cli) -> None:
    rows = [row["model"] for row in cli.good("list", "models", "--json").json["models"]]
    assert rows[:2] == ["mini", "planted/induction"]
    assert {"FOLDER", "HUB NAME"} <= set(rows)


def test_list_methods(cli: Cli) -> None:
    rows = {row["method"]: row for row in cli.good("list", "methods", "--json").json["methods"]}
    assert rows["eap"]["scores"] == "edge"
    assert rows["activation-patching"]["scores"] == "node"
    assert all(row["source"] for row in rows.values())
    assert rows["eap"]["options"] == {}
    assert rows["hybrid"]["options"] == {"propose": "eap-ig", "verify": 64, "seed": 0}
    out = cli.good("list", "methods").out
    assert "hybrid  scores edges, the default of discover" in out
    assert "    options: propose=eap-ig, verify=64, seed=0" in out
    assert out.count("the default of discover") == 1


def test_list_runs(finished: Cli) -> None:
    (row,) = finished.good("list", "runs", "--json").json["runs"]
    assert row["run"] == finished.run_folder().name
    assert (row["status"], row["task"], row["model"]) == ("finished", "small", "planted/and-gate")
    out = finished.good("list", "runs").out
    assert row["run"] in out
    assert row["started"] in out


# --- render -------------------------------------------------------------------------------------------------


def test_render_into_the_run_folder(finished: Cli) -> None:
    folder = finished.run_folder()
    (folder / "circuit.svg").unlink()
    assert finished.good("render").out == f"outputs/{folder.name}/circuit.svg\n"
    root = ET.parse(folder / "circuit.svg").getroot()
    assert root.tag.endswith("svg")
    found = finished.good("render", "--format", "png", "--format", "pdf", "--format", "dot", "--json").json
    assert {Path(name).name for name in found["files"]} == {"circuit.png", "circuit.pdf", "circuit.dot"}
    assert (folder / "circuit.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "circuit.pdf").read_bytes().startswith(b"%PDF")
    assert (folder / "circuit.dot").read_text(encoding="utf-8").lstrip().startswith("digraph")
    finished.tidy()


@pytest.mark.parametrize("name", ["figure.pdf", "deep/er/figure.svg", "figure.v2.png", "figure.dot"])
def test_render_to_a_file(finished: Cli, name: str) -> None:
    before = set(finished.run_folder().iterdir())
    assert finished.good("render", "--to", name).out == f"{name}\n"
    path = finished.folder / name
    assert path.stat().st_size > 500
    assert [p for p in path.parent.iterdir() if p.name.startswith((".", "figure"))] == [path]
    assert set(finished.run_folder().iterdir()) == before, "the run folder is as it was"


def test_render_what_it_cannot(finished: Cli) -> None:
    finished.fails(2, "render", "--to", "figure", says=["no ending that names a format", "figure.svg"])
    finished.fails(2, "render", "--to", "figure.gif", says=["no ending that names a format", "figure.dot"])
    finished.fails(2, "render", "--format", "gif", says=["'gif'", "'svg'"])
    (finished.folder / "file").write_text("")
    finished.fails(2, "render", "--to", "file/figure.svg", says=["cannot be written to"])


def test_render_looks(finished: Cli) -> None:
    plain = finished.folder / "plain.dot"
    finished.good("render", "--to", "plain.dot", "--no-legend", "--no-caption", "--title", "A <title> & more")
    finished.good("render", "--to", "full.dot")
    full = (finished.folder / "full.dot").read_text(encoding="utf-8")
    assert "title" in plain.read_text(encoding="utf-8")
    assert len(plain.read_text(encoding="utf-8")) < len(full)
    assert "resample" in full
    finished.good("render", "--to", "odd.svg", "--title", "A <title> & more")
    assert "A &lt;title&gt; &amp; more" in (finished.folder / "odd.svg").read_text(encoding="utf-8")


# --- without Graphviz ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_graphviz")
def test_discover_without_graphviz(cli: Cli) -> None:
    (cli.folder / "small.yaml").write_text(TASK, encoding="utf-8")
    found = cli.good("discover", "small.yaml")
    assert "note: no picture drawn: Graphviz's 'dot' is missing (install it with" in found.err
    assert "circuit.dot" in found.out
    assert (cli.run_folder() / "circuit.dot").read_text(encoding="utf-8").lstrip().startswith("digraph")
    assert not (cli.run_folder() / "circuit.svg").exists()
    assert cli.good("discover", "small.yaml", "--json").json["pictures"]
    says = ["'dot' is not installed", "install it with", "everything but pictures works without it"]
    cli.fails(3, "render", says=says)
    assert cli.good("render", "--format", "dot").code == 0
    doctor = cli("doctor", "--json").json
    (dot,) = (row for row in doctor["findings"] if row["what"] == "dot")
    assert dot["state"] == "note"
    assert "install it with" in dot["hint"]


def test_graphviz_comes_later(cli: Cli) -> None:
    (cli.folder / "small.yaml").write_text(TASK, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(cli.folder))
        cli.good("discover", "small.yaml")
    found = cli.good("discover", "small.yaml")
    assert cli.states(found)["circuit"] == "reused"
    assert "circuit.svg" in found.out
