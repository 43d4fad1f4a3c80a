"""``circuitfind patch``: what it prints and writes, on models whose curves are known, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import Cli

GROUP = "m0.n15+16+21+28+33+39"
FEW = ("--count", "12")


def doses_of(data: dict[str, Any]) -> list[tuple[float, float]]:
    (patch,) = data["patches"]
    return [(dose["alpha"], dose["metric"]["value"]) for dose in patch["doses"]]


def test_a_saturated_group_has_a_plateau_that_gradients_do_not_see(cli: Cli) -> None:
    found = cli.good("patch", "saturated-lookup", "--nodes", GROUP, *FEW)
    for part in (
        "doses of " + GROUP,
        "flat from alpha 0 to 0.",
        "small doses do nothing",
        "threshold     from a quarter to three quarters",
        "AtP, the slope at alpha 0, predicts",
        "blind to it",
        "EAP-IG",
        "●",
    ):
        assert part in found.out, found.out
    assert all(len(line) <= 104 for line in found.out.splitlines() if "outputs" not in line)
    (folder,) = (cli.outputs / "patches").iterdir()
    assert folder.name.startswith("saturated-lookup-saturated-lookup-")
    data = json.loads((folder / "dose.json").read_text(encoding="utf-8"))
    shape = data["patches"][0]["shape"]
    assert shape["plateaus"][0]["start"] == 0
    assert shape["plateaus"][-1]["stop"] == 1
    assert abs(shape["predicted"]["slope_at_0"]["value"]) < 0.05
    assert shape["predicted"]["along_the_path"]["value"] == pytest.approx(1, abs=0.05)
    rows = list(csv.DictReader((folder / "dose.csv").read_text(encoding="utf-8").splitlines()))
    assert [float(row["alpha"]) for row in rows] == pytest.approx([i / 20 for i in range(21)])
    assert float(rows[0]["accuracy"]) == 1
    svg = (folder / "dose.svg").read_bytes()
    assert b"<svg" in svg
    assert b"alpha: 0 is the unpatched run" in svg
    cli.good("patch", "saturated-lookup", "--nodes", GROUP, *FEW, "-q")
    assert (folder / "dose.svg").read_bytes() == svg, "the same command draws the same picture"
    cli.tidy()


def test_a_model_that_is_linear_in_a_head_gives_a_straight_line(cli: Cli) -> None:
    words = ("patch", "co-workers", "--nodes", "a1.h0,a1.h2", "--each", "--format", "none", *FEW, "--json")
    data = cli.good(*words).json
    for patch in data["patches"]:
        shape = patch["shape"]
        assert shape["straight"]
        assert shape["plateaus"] == []
        assert shape["predicted"]["slope_at_0"]["value"] == pytest.approx(1, abs=0.02)
        assert shape["predicted"]["slope_at_1"]["value"] == pytest.approx(1, abs=0.02)


def test_nodes_are_patched_together_or_one_by_one(cli: Cli) -> None:
    words = ("patch", "and-gate", "--nodes", "a0.h0,0.1", "--alpha", "0,0.5,1", "--format", "none", *FEW)
    (together,) = cli.good(*words, "--json").json["patches"]
    assert together["nodes"] == ["a0.h0", "a0.h1"]
    data = cli.good(*words, "--each", "--json").json
    assert [patch["label"] for patch in data["patches"]] == ["a0.h0", "a0.h1"]
    assert data["facts"]["backward_passes"] >= 1
    printed = cli.good(*words, "--each").out
    assert "a0.h0" in printed
    assert "what it looks like" in printed


def test_edges_positions_directions_and_doses_beyond(cli: Cli) -> None:
    edge = cli.good(
        "patch", "and-gate", "--edges", "a0.h0->m0", "--steps", "2", "--format", "none", *FEW, "--json"
    )
    assert [alpha for alpha, _ in doses_of(edge.json)] == [0, 0.5, 1]
    assert edge.json["patches"][0]["edges"] == ["a0.h0->m0"]
    words = ("patch", "and-gate", "--nodes", "a0.h0", "--format", "none", *FEW)
    noising = doses_of(cli.good(*words, "--alpha", "0,1", "--json").json)
    away = cli.good(*words, "--alpha", "0,1", "--direction", "denoising", "--json").json
    assert away["conditions"]["direction"] == "denoising"
    assert doses_of(away) != noising
    at_end = cli.good(*words, "--alpha", "1", "--positions", "END,-1", "--json")
    assert [alpha for alpha, _ in doses_of(at_end.json)] == [0, 1]
    assert "all positions together" in at_end.err
    beyond = cli.good(*words, "--alpha", "-0.5..1.5", "--steps", "4", "--no-gradient", "--json")
    assert [alpha for alpha, _ in doses_of(beyond.json)] == [-0.5, 0, 0.5, 1, 1.5]
    assert "where the model never was" in beyond.err
    assert beyond.json["patches"][0]["doses"][0]["slope"] is None
    assert beyond.json["facts"]["backward_passes"] == 0


def test_a_finished_run_is_patched_with_its_own_prompts(cli: Cli, one_run: Path) -> None:
    shutil.copytree(one_run, cli.folder, dirs_exist_ok=True)
    run = cli.run_folder()
    found = cli.good(
        "patch", "latest", "--nodes", "m0", "--alpha", "0,0.5,1", "--format", "pdf", "--json"
    ).json
    folder = Path(found["folder"])
    assert folder.parent == Path("outputs") / run.name / "patches"
    assert sorted(path.name for path in folder.iterdir()) == ["dose.csv", "dose.json", "dose.pdf"]
    assert found["conditions"]["n_prompts"] == 8
    assert cli.good("list", "runs", "--json").json["runs"][0]["status"] == "finished"
    cli.fails(2, "patch", "latest", "--nodes", "m0", "--count", "3", says=("cannot be changed",))
    out = cli.folder / "elsewhere"
    cli.good("patch", run.name, "--nodes", "m0", "--alpha", "0,1", "--out", out, "--format", "png", "-q")
    assert (out / "dose.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), ("nothing is named to patch",)),
        (("--nodes", "a9.h9"), ("has no 'a9.h9'",)),
        (("--nodes", "foo"), ("is not the name of a node",)),
        (("--nodes", "logits"), ("writes nothing",)),
        (("--nodes", "a0.h0@END"), ("--positions END",)),
        (("--nodes", "m0.n99999"), ("has no neuron",)),
        (("--nodes", "m9.n1"), ("no layer 9",)),
        (("--nodes", "m0.n1,t0.f1"), ("not patched together",)),
        (("--edges", "m0->a0.h0<q>"), ("no edge",)),
        (("--edges", "a0.h0->m0", "--positions", "END"), ("all positions",)),
        (("--nodes", "a0.h0", "--positions", "EDN"), ("did you mean 'END'",)),
        (("--nodes", "a0.h0", "--positions", "99"), ("no prompt has",)),
        (("--nodes", "a0.h0", "--alpha", "0-1"), ("names no doses",)),
        (("--nodes", "a0.h0", "--alpha", "1..0"), ("is no range",)),
        (("--nodes", "a0.h0", "--alpha", "nan"), ("is no dose",)),
        (("--nodes", "a0.h0", "--steps", "0"), ("0 steps are none",)),
        (("--nodes", "a0.h0", "--steps", "1000"), ("too many",)),
        (("--nodes", "a0.h0", "--metric", "logit"), ("logit-diff",)),
        (("--nodes", "a0.h0", "--direction", "denoising", "--ablation", "zero"), ("denoising",)),
    ],
)
def test_what_cannot_be_patched_is_told(cli: Cli, words: tuple[str, ...], says: tuple[str, ...]) -> None:
    cli.fails(2, "patch", "and-gate", *FEW, "--format", "none", *words, says=says)
    assert not cli.outputs.exists()


def test_the_accuracy_has_no_slope(cli: Cli) -> None:
    words = (
        "patch",
        "and-gate",
        "--nodes",
        "a0.h0",
        "--metric",
        "accuracy",
        "--alpha",
        "0,1",
        "--format",
        "none",
    )
    found = cli.good(*words, *FEW)
    assert "has no gradient" in found.err
    assert "slope" not in found.out
