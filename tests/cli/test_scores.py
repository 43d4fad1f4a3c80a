"""What a user sees of scores: how they were checked, the strongest of all kinds, position by position."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.helpers import Cli

TASK = """\
name: small
model: planted/and-gate
prompts:
  zoo: {count: 8}
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A small task in a file."""
    path = tmp_path / "small.yaml"
    path.write_text(TASK, encoding="utf-8")
    return path


def lines_of(out: str) -> dict[str, str]:
    """Title to text of the lines of a summary."""
    return {line[:16].strip(): line[16:] for line in out.splitlines()[1:]}


def test_what_was_verified_is_told(cli: Cli, task: Path) -> None:
    found = cli.good("discover", task, "-o", "verify=6", "-v")
    assert found.out.startswith("small on planted/and-gate: a circuit found by hybrid (verify=6)\n")
    out = found.out.splitlines()
    at = next(i for i, line in enumerate(out) if line.startswith("  checked"))
    assert "exact patching of the 6 strongest and 6 random edges" in out[at]
    assert out[at + 1].startswith(f"{'':<16}at 95 % confidence at most ")
    facts = cli.good("show", "--json").json["verification"]
    assert f"at most {facts['bounds'][0]['at_most']} of the 34 others" in out[at + 1]
    assert out[at + 1].endswith("are as strong as the 6th strongest verified")
    assert (facts["proposed_by"], facts["level"], facts["confidence"]) == ("eap-ig", "edge", 0.95)
    assert cli.good("discover", task, "-o", "verify=6", "--json").json["verification"] == facts


def test_a_small_model_is_verified_whole(cli: Cli, task: Path) -> None:
    out = cli.good("discover", task, "-v").out
    assert "exact patching of the 23 strongest and 23 random edges" in out
    assert "that is every edge: none was missed" in out
    assert "checked" not in cli.good("discover", task, "--method", "eap", "-v").out


def test_proposed_and_exact_stand_beside_the_score(cli: Cli, task: Path) -> None:
    cli.good("discover", task, "-o", "verify=3", "-q")
    found = cli.good("show", "--top", "46", "--json").json
    assert len(found["top"]) == 46
    for row in found["top"]:
        assert abs(row["score"]) == max(abs(row["proposed"]), abs(row["exact"] or 0.0))
    assert sum(row["exact"] is not None for row in found["top"]) == 6
    out = cli.good("show", "--top", "4").out
    assert "proposed" in out
    assert "exact" in out


def test_all_that_a_method_says(cli: Cli, task: Path) -> None:
    cli.good("discover", task, "--method", "atp", "-o", "neurons=yes", "-q")
    found = cli.good("show", "--top", "5", "--json").json
    assert [len(found[key]) for key in ("top", "readers", "neurons")] == [5, 5, 5]
    assert all(row["name"].startswith("m") and ".n" in row["name"] for row in found["neurons"])
    out = cli.good("show", "--top", "5").out
    for title in ("strongest", "strongest inputs", "strongest neurons"):
        assert title in out
    cli.good("discover", task, "--method", "activation-patching", "-o", "both=yes", "-q")
    found = cli.good("show", "latest", "--top", "3", "--json").json
    assert {"noising", "denoising", "interaction"} <= found["top"][0].keys()


@pytest.mark.parametrize("method", ["eap", "activation-patching", "hybrid"])
def test_by_position(cli: Cli, task: Path, method: str) -> None:
    cli.good("discover", task, "--method", method, "--positions", "named", "-q")
    found = cli.good("show", "--by-position", "--top", "3", "--json").json["by_position"]
    assert found["positions"][-1] == "other"
    assert len(found["nodes"]) == 3
    assert all(len(node["scores"]) == len(found["positions"]) for node in found["nodes"])
    out = cli.good("show", "--by-position").out
    table = out[out.index("position ") :].splitlines()
    assert [line.split()[0] for line in table[2 : 2 + len(found["positions"])]] == found["positions"]


def test_positions_that_were_not_kept_apart(cli: Cli, task: Path) -> None:
    cli.good("discover", task, "--method", "eap", "-q")
    cli.fails(2, "show", "--by-position", says=["did not keep positions apart", "--positions named"])


def test_precision(cli: Cli, task: Path) -> None:
    found = cli.good("discover", task, "--method", "eap", "--precision", "bf16")
    assert "note: scored in bf16, not in fp32: " in found.err
    line = lines_of(cli.good("show").out)["precision"]
    assert line.startswith("bf16: on 8 pairs ")
    assert line.endswith("faithfulness is measured in fp32")
    again = cli.good("discover", task, "--method", "eap", "--precision", "bf16")
    assert again.out == found.out
    assert cli.states(again)["scores"] == "reused"


@pytest.mark.slow
def test_memory_is_planned_and_shared_out(cli: Cli, task: Path) -> None:
    plan = cli.good("discover", task, "--dry-run", "--memory", "200KB", "--json").json["memory"]
    assert plan["budget"] == 200_000
    assert plan["batches"] > 1
    assert plan["pairs_to_batch"] < 8
    assert plan["node_rows"] >= 1 <= plan["edge_rows"]
    more = cli.good("discover", task, "--dry-run", "--memory", "1GB", "--json").json["memory"]
    assert (more["batches"], more["pairs_to_batch"]) == (1, 8)
    assert more["edge_rows"] >= plan["edge_rows"]
    out = cli.good("discover", task, "--dry-run", "--memory", "200KB").out
    assert "memory   200 kB planned for" in out
    first = cli.good("discover", task, "--memory", "200KB", "--json").json
    assert cli.good("discover", task, "--memory", "1GB", "--json").json == first, "reused: it is the same run"


def test_runs_of_before_are_read(cli: Cli, task: Path) -> None:
    """A folder as it was written when there were no options, positions or precision, nor more than one array of scores."""
    cli.good("discover", task, "--method", "eap", "-q")
    folder = cli.run_folder()
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for key in ("options", "positions", "precision"):
        del manifest["config"]["settings"][key]
    with np.load(folder / "scores.npz") as data:
        arrays: dict[str, Any] = dict(data)
    header = json.loads(str(arrays["header"]))
    del header["position_names"]
    arrays["header"] = np.array(json.dumps(header))
    np.savez(folder / "scores.npz", **arrays)
    from circuitfind.output.files import file_sha256

    entry = manifest["stages"]["scores"]["files"]["scores.npz"]
    entry["sha256"] = file_sha256(folder / "scores.npz")
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    out = cli.good("show", "--top", "3").out
    assert out.startswith("small on planted/and-gate: a circuit found by eap\n")
    assert cli.good("show", "--json").json["verification"] is None
    assert cli.good("list", "runs", "--json").json["runs"][0]["status"] == "finished"
