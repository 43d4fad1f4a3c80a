"""``circuitfind discover --nodes``: circuits of neurons and features from the command line, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.circuit.graph import Circuit
from circuitfind.circuit.scores import Scores
from circuitfind.zoo.planted import build
from tests.cli.helpers import Cli
from tests.dictionaries.files import weights, write_cross, write_sae_lens

MODELS = os.environ.get("CIRCUITFIND_MODELS")


@pytest.mark.parametrize("kind", ["neurons", "features"])
def test_a_planted_lookup_is_found(cli: Cli, kind: str) -> None:
    found = cli.good("discover", "neuron-lookup", "--nodes", f"heads,{kind}", "--json").json
    truth = build("neuron-lookup", 0).units
    assert truth is not None
    assert (found["known"]["precision"], found["known"]["recall"]) == (1.0, 1.0)
    assert found["evaluations"][0]["faithfulness"]["value"] > 0.9
    assert found["units"]["signs_agree"] == found["units"]["signs_compared"]
    circuit = Circuit.load(Path(found["folder"]) / "circuit.json")
    wanted = set(truth.names) if kind == "neurons" else set(truth.features.values())
    assert {str(node) for node in circuit.units} == wanted
    assert not circuit.errors
    assert circuit.conditions.nodes == f"heads,{kind}"
    assert circuit.conditions.errors == ("frozen" if kind == "features" else "")
    units = json.loads((Path(found["folder"]) / "units.json").read_text())
    assert {name for name in units["kept"] if "." in name and not name.startswith("a")} == wanted
    # Every unit has a score, and those that were verified have what was measured beside it.
    nodes = Scores.load(Path(found["folder"]) / "nodes.npz")
    assert np.isfinite(nodes.values).all()
    assert len(nodes.anatomy.writers) > len(circuit.anatomy.writers)
    assert all(np.isfinite(row["effect"]) for row in units["verified"])
    if kind == "features":
        assert abs(found["units"]["share_through_errors"]) < 0.05


def test_a_second_run_reuses_the_first(cli: Cli) -> None:
    plain = ("discover", "neuron-lookup", "--no-backups", "--controls", "none", "--no-views", "--json")
    words = (*plain, "--nodes", "heads,neurons")
    first, second = cli.good(*words), cli.good(*words)
    assert "reused" in second.err
    assert second.json["evaluations"] == first.json["evaluations"]
    other = cli.good(*plain, "--nodes", "heads,mlps")
    assert other.json["folder"] != first.json["folder"]


def test_errors_are_frozen_or_recomputed(cli: Cli) -> None:
    words = ("discover", "neuron-lookup", "--nodes", "features, heads", "--errors", "recomputed", "--json")
    found = cli.good(*words, "--no-backups", "--controls", "none", "--no-views").json
    assert found["conditions"]["errors"] == "recomputed"
    circuit = Circuit.load(Path(found["folder"]) / "circuit.json")
    assert circuit.anatomy.live_errors
    assert found["evaluations"][0]["faithfulness"]["value"] > 0.9


def test_features_alone_with_attention_frozen(cli: Cli) -> None:
    words = ("discover", "neuron-lookup", "--nodes", "features")
    text = cli.good(*words).out
    assert "attention frozen" in text
    assert "live-attention resample" in text
    found = cli.good(*words, "--json").json
    truth = build("neuron-lookup", 0).units
    assert truth is not None
    graph = FeatureGraph.load(Path(found["graph"]))
    assert {str(node) for node in graph.features} == set(truth.features.values())
    frozen, live = found["evaluations"]
    assert frozen["faithfulness"]["value"] > 0.9
    assert frozen["faithfulness"]["low"] <= frozen["faithfulness"]["value"] <= frozen["faithfulness"]["high"]
    assert live["faithfulness"]["value"] > 0.9
    cli.fails_loosely(2, *words, "--ablation", "mean", says=("--ablation resample",))


def test_a_dry_run_says_that_units_come_first(cli: Cli) -> None:
    text = cli.good("discover", "neuron-lookup", "--nodes", "heads,neurons", "--dry-run").out
    assert "finds the units first" in " ".join(text.split())
    assert not cli.outputs.exists()


def test_what_it_says(cli: Cli) -> None:
    text = cli.good("discover", "neuron-lookup", "--nodes", "heads,features", "-v").out
    assert "features that fire here" in text
    assert "of the effect goes when what dictionaries miss is replaced" in text
    shown = cli.good("show", "latest").out
    assert "3 features" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--nodes", "fish"), ("heads,neurons",)),
        (("--nodes", "heads"), ("heads,mlps",)),
        (("--nodes", "heads,neurons", "--errors", "recomputed"), ("--errors",)),
        (("--nodes", "features", "--errors", "recomputed"), ("--errors",)),
        (("--errors", "recomputed"), ("--errors",)),
        (("--nodes", "features", "--method", "eap-ig"), ("--method",)),
        (("--nodes", "features", "--dry-run"), ("--dry-run",)),
        (("--nodes", "heads,neurons", "--method", "acdc"), ("acdc", "eap")),
        (("--nodes", "heads,neurons", "--direction", "denoising"), ("denoising",)),
        (("--nodes", "heads,neurons", "--ablation", "optimal"), ("optimal",)),
        (("--nodes", "heads,neurons", "--positions", "all"), ("positions",)),
        (("--nodes", "heads,neurons", "--edges", "5"), ("--faithfulness",)),
        (("--nodes", "heads,neurons", "--dictionaries", "here"), ("--nodes heads,features",)),
        (("--nodes", "heads,features", "--dictionaries", "no/such/folder"), ("no/such/folder",)),
        (("--nodes", "heads,features", "--errors", "melted"), ("melted", "recomputed")),
        (("--nodes", "heads,features", "--model", "mini-redundant"), ("--dictionaries",)),
    ],
)
def test_what_is_refused(cli: Cli, words: tuple[str, ...], says: tuple[str, ...]) -> None:
    cli.fails_loosely(2, "discover", "neuron-lookup", *words, says=says)


def test_dictionaries_of_another_width_are_refused(cli: Cli, tmp_path: Path) -> None:
    write_sae_lens(tmp_path / "others", weights(), "transcoder", layer=0)
    cli.fails_loosely(
        2, "discover", "neuron-lookup", "--nodes", "heads,features", "--dictionaries", tmp_path / "others"
    )


def test_cross_layer_transcoders_are_referred_to_features_alone(cli: Cli, tmp_path: Path) -> None:
    write_cross(tmp_path / "cross")
    cli.fails_loosely(
        2,
        "discover",
        "neuron-lookup",
        "--nodes",
        "heads,features",
        "--dictionaries",
        tmp_path / "cross",
        says=("--nodes features",),
    )


@pytest.mark.skipif(not MODELS, reason="CIRCUITFIND_MODELS is not set")
def test_a_model_without_mlps_has_no_neurons(cli: Cli, tmp_path: Path) -> None:
    folder = Path(MODELS or "") / "palindrome"
    task = tmp_path / "task.yaml"
    task.write_text(
        f"name: palindrome\nmodel: {folder}\nmin-accuracy: 0.5\nprompts: {{file: {folder / 'prompts.jsonl'}}}\n"
    )
    cli.fails_loosely(
        2,
        "discover",
        task,
        "--nodes",
        "heads,neurons",
        "--read-outside",
        says=("no MLPs", "--nodes heads,mlps"),
    )
