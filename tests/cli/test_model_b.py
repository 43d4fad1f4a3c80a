"""``discover --model-b``: where two models of one shape differ, from fine-tunes whose changed part is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import circuitfind
from circuitfind.circuit.graph import Circuit
from tests.cli.conftest import write_tl
from tests.cli.helpers import Cli, Toy
from tests.fine_tunes import TASK, tuned

WEAK, STRONG = 8.0, 25.0
QUICK = ("--method", "eap", "-q")


# --- two fine-tunes that differ in one behaviour ----------------------------------------------------------------


GRADIENTS = ("relp", "gim", "eap-ig-activations")


@pytest.mark.parametrize(
    ("part", "method"),
    [
        ("a1.h4", None),
        ("m2", "activation-patching"),
        *(
            pytest.param(part, method, marks=pytest.mark.slow)
            for part, methods in (("a1.h4", ("activation-patching", *GRADIENTS)), ("m2", (None, *GRADIENTS)))
            for method in methods
        ),
    ],
)
def test_the_part_that_was_trained_comes_first(part: str, method: str | None, tmp_path: Path) -> None:
    found = circuitfind.discover(
        TASK,
        tuned(part, STRONG),
        model_b=tuned(part, WEAK),
        method=method,
        count=16,
        faithfulness=0.8,
        outputs=tmp_path,
        formats=(),
    )
    scores = found.scores
    names = scores.anatomy.writer_names
    assert str(next(scores.top_nodes(1))[0]) == part
    if scores.level == "edge":
        assert str(next(scores.top_edges(1))[0].sender) == part
        strongest = max(found.circuit.edges, key=lambda edge: abs(found.circuit.edge_scores[str(edge)]))
        assert str(strongest.sender) == part
    # What stands below the part is the same in both models.
    row = scores.anatomy.row_of(part)
    np.testing.assert_allclose(
        scores.node_values[: scores.anatomy.head_slice(int(part[1])).start], 0, atol=1e-4
    )
    own, total = scores.extra["across.own"], scores.extra["across.total"]
    gap = found.circuit.evaluations[0].full - found.circuit.evaluations[0].empty
    assert own[row] == pytest.approx(gap, rel=1e-4)  # with its weights A is B
    assert total[row] == pytest.approx(gap, rel=1e-4)
    np.testing.assert_allclose(np.delete(own, row), 0, atol=1e-4)
    assert np.abs(np.delete(total, row)).max() > 0.1  # others differ in what they read
    told = found.summary["model_b"]
    assert [one["name"] for one in told["changed"]] == [part]
    assert told["changed"][0]["share"]["value"] == pytest.approx(1, abs=1e-4)
    assert told["n_parts"] == len(names)
    assert told["metric"]["model_b"] == pytest.approx(told["metric"]["read_by_model"], abs=1e-4)
    assert not told["unembedding_differs"]


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture
def other(toy: Toy, toy_parts: tuple[dict[str, Any], dict[str, torch.Tensor], list[dict[str, Any]]]) -> Path:
    """The toy model with an induction head of half its strength."""
    config, state, _ = toy_parts
    changed = {name: value.clone() for name, value in state.items()}
    changed["blocks.1.attn.W_O"][1] /= 2
    return write_tl(toy.folder / "other", config, changed)


def test_what_a_user_sees(cli: Cli, toy: Toy, other: Path) -> None:
    found = cli.good("discover", toy.task(), "--model-b", other, "--method", "eap")
    lines = {line[:16].strip(): line[16:] for line in found.out.splitlines()[1:]}
    assert lines["under"].startswith("resample ablation, counterfactual model B, ")
    assert lines["model B"].startswith(f"{other}: logit-diff ")
    assert lines["changed"] == "a1.h1 100 % of the difference by its own weights"
    assert "backups" not in lines
    assert "both are of one model" in found.err
    assert "backups" not in cli.states(found)
    assert [line for line in cli.good("show").out.splitlines() if "model B" in line][1:] == [
        line for line in found.out.splitlines() if line.startswith("  model B")
    ]
    data = cli.good("show", "--json").json
    assert data["model_b"]["changed"][0]["name"] == "a1.h1"
    circuit = Circuit.load(cli.run_folder() / "circuit.json")
    assert circuit.conditions.model_b == str(other)
    assert circuit.conditions.counterfactual == "model B"
    manifest = json.loads((cli.run_folder() / "manifest.json").read_text())
    assert manifest["hashes"]["model_b"] == manifest["config"]["model_b_hash"] != manifest["hashes"]["model"]


def test_a_run_is_of_both_models(cli: Cli, toy: Toy, other: Path) -> None:
    task = toy.task()
    plain = cli.good("discover", task, "--method", "eap", "--no-backups", "--controls", "none")
    found = cli.good("discover", task, "--method", "eap", "--model-b", other)
    assert cli.states(plain)["prompts"] == "finished"
    assert cli.states(found) == {
        "prompts": "reused",
        "scores": "finished",
        "circuit": "finished",
        "views": "finished",
        "pictures": "finished",
    }
    assert set(cli.states(cli.good("discover", task, "--method", "eap", "--model-b", other)).values()) == {
        "reused"
    }
    from safetensors.torch import load_file, save_file

    state = load_file(other / "model.safetensors")
    state["blocks.1.attn.W_O"] = state["blocks.1.attn.W_O"] / 2
    save_file(state, other / "model.safetensors")
    changed = cli.good("discover", task, "--method", "eap", "--model-b", other)
    assert cli.states(changed)["scores"] == "finished"
    assert len(list(cli.outputs.iterdir())) == 3


def test_a_plan_counts_both(cli: Cli, toy: Toy, other: Path) -> None:
    plain, both = (
        cli.good("discover", toy.task(), "--dry-run", "--json", "--method", "eap", *extra).json
        for extra in ((), ("--model-b", other))
    )
    passes = [{s["name"]: s["forward"] for s in plan["stages"]} for plan in (plain, both)]
    writers = 1 + 2 * 3 + (2 if "m0" in str(plain) else 0)
    assert passes[1]["scores"] >= passes[0]["scores"] + 2 * writers
    assert "backups" not in passes[1]
    assert "evidence" not in passes[1]
    assert not cli.outputs.exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--direction", "denoising"], ["exchange --model and --model-b"]),
        (["--ablation", "mean"], ["--ablation mean says nothing with --model-b"]),
        (["--ablation", "zero"], ["--ablation zero"]),
        (["--nodes", "heads,neurons"], ["--nodes heads,neurons"]),
        (["--include-backups"], ["--include-backups"]),
        (["--precision", "bf16"], ["--precision bf16"]),
        (["--counterfactual", "corrupted"], ["--counterfactual corrupted"]),
        (
            ["--method", "clean-corrupted"],
            ["method clean-corrupted does not compare models", "use one of eap,"],
        ),
        (["--method", "edge-pruning"], ["does not compare models"]),
        (["--edges", "5"], ["--faithfulness in place of --edges"]),
        (["--method", "atp-star"], ["does not compare models"]),
    ],
)
def test_what_says_nothing_of_two_models_is_refused(
    cli: Cli, toy: Toy, other: Path, flags: list[str], says: list[str]
) -> None:
    cli.fails(2, "discover", toy.task(), "--model-b", other, *flags, says=says)


def test_backups_and_evidence_are_of_one_model(cli: Cli, toy: Toy, other: Path) -> None:
    cli.good("discover", toy.task(), "--model-b", other, *QUICK)
    name = cli.run_folder().name
    for command in ("backups", "evaluate"):
        cli.fails(2, command, name, says=["backups and evidence are of one model", "without --model-b"])


def test_one_model_twice(cli: Cli, toy: Toy) -> None:
    task = toy.task()
    cli.fails(2, "discover", task, "--model-b", toy.model, says=["is the model itself"])
    twin = toy.folder / "twin"
    twin.mkdir()
    for path in toy.model.iterdir():
        (twin / path.name).write_bytes(path.read_bytes())
    cli.fails(
        2, "discover", task, "--model-b", twin, *QUICK[:2], says=["are one model: they have the same weights"]
    )


def test_another_shape_and_no_model(cli: Cli, toy: Toy) -> None:
    says = ["of different shape", "layers of", "`circuitfind diff`"]
    cli.fails(2, "discover", toy.task(), "--model-b", "planted/ioi-planted", *QUICK[:2], says=says)
    cli.fails(2, "discover", toy.task(), "--model-b", "./nowhere", *QUICK[:2], says=["no folder"])


def test_the_better_one_must_be_the_model(cli: Cli, toy: Toy, other: Path) -> None:
    says = ["does the task better", "exchange --model and --model-b"]
    cli.fails(3, "discover", toy.task(), "--model", other, "--model-b", toy.model, *QUICK[:2], says=says)


def test_models_that_do_the_task_alike(
    cli: Cli, toy: Toy, toy_parts: tuple[dict[str, Any], dict[str, torch.Tensor], list[dict[str, Any]]]
) -> None:
    """A word that no prompt has was changed."""
    config, state, pairs = toy_parts
    used = {word for pair in pairs[:2] for word in pair["clean"].split()}
    (unused, *_) = [i for i in range(config["d_vocab"]) if f"w{i}" not in used]
    changed = {name: value.clone() for name, value in state.items()}
    changed["embed.W_E"][unused] += 1
    twin = write_tl(toy.folder / "twin", config, changed)
    says = ["the two do not differ on this task", "choose another task"]
    cli.fails(3, "discover", toy.task(prompts={"pairs": pairs[:2]}), "--model-b", twin, *QUICK[:2], says=says)


def test_files_of_before_there_were_two_models(cli: Cli, toy: Toy) -> None:
    cli.good("discover", toy.task(), *QUICK, "--no-backups", "--controls", "none")
    path = cli.run_folder() / "circuit.json"
    data = json.loads(path.read_text())
    assert data["conditions"].pop("model_b") == ""
    assert "model_b" not in json.loads((cli.run_folder() / "manifest.json").read_text())["config"]["settings"]
    assert Circuit.from_dict(data) == Circuit.load(path)
