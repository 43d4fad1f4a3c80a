"""``discover --dry-run`` of models that are not loaded, as a user gives it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import families
from tests.cli.helpers import Cli

SEVEN = ("discover", "ioi", "--model", "llama-2-7b", "--dry-run", "--assume-tflops", "100", "--count", "8")


@pytest.fixture(autouse=True)
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is loaded in this file."""

    def refuse(name: str, **options: Any) -> None:
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr("circuitfind.model.load.load_model", refuse)


def lines_of(out: str) -> dict[str, str]:
    """The lines below the table by their first word; the last one of those that come twice."""
    words = (line.split(maxsplit=1) for line in out.splitlines() if line and not line[0].isspace())
    return {pair[0]: pair[1] for pair in words if len(pair) == 2}


def test_a_model_of_7_billion_parameters(cli: Cli) -> None:
    found = cli.good(*SEVEN)
    lines = lines_of(found.out)
    assert "plan for ioi-llama-2-7b\n" in found.out
    assert lines["model"] == "llama-2-7b is not loaded: its weights are not on this machine"
    assert lines["from"] == "the built-in table (meta-llama/Llama-2-7b-hf); all of this is estimated"
    assert lines["shape"].startswith(
        "32 layers of 32 heads, width 4096, 11008 neurons with gates; 1,057 writers"
    )
    assert lines["weights"].startswith("6,738,415,616 parameters: 27.0 GB in fp32, 13.5 GB in bf16")
    assert lines["speed"].startswith("100 TFLOP/s, assumed; 13 GFLOP for a token")
    assert "35.5 GB" in lines["room"]
    assert "141 GB: 1" in lines["gpus"]
    assert "counts as one token" in found.out
    assert "nothing was written" in found.out
    assert not cli.outputs.exists()


def test_json(cli: Cli) -> None:
    plan = cli.good(*SEVEN, "--json").json
    assert plan["version"] == 1
    assert {stage["state"] for stage in plan["stages"]} == {"run"}
    found = plan["estimate"]
    assert found["parameters"] == 6_738_415_616
    assert found["weights_bytes"] == {"fp32": 4 * found["parameters"], "bf16": 2 * found["parameters"]}
    assert (found["shape"]["n_layers"], found["shape"]["writers"]) == (32, 1057)
    assert found["tflops"] == 100
    assert (plan["workers"], plan["shared_seconds"]) == (1, plan["seconds"])
    assert set(found["room"]["gpus"]) == {"24", "48", "80", "141"}
    assert found["assumed"]
    assert plan["memory_bytes"] > plan["memory"]["weights"] + plan["memory"]["copies"]


def test_a_folder_without_weights_and_the_file_itself(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    shutil.copy(families.folder("llama") / "config.json", folder)
    words = ("discover", "ioi", "--dry-run", "--count", "4", "--assume-tflops", "1", "--json", "--model")
    whole = cli.good(*words, folder).json
    file = cli.good(*words, folder / "config.json").json
    given = cli.good(*words, "mine", "--model-config", folder).json
    assert whole["stages"] == file["stages"] == given["stages"]
    whys = [plan["estimate"].pop("why") for plan in (whole, file, given)]
    assert whys == ["its weights are not there", "a configuration was given", "--model-config was given"]
    # Any model may be given by its sizes.
    sizes = "n_layers=2,n_heads=4,n_kv_heads=2,d_model=16,d_mlp=24,d_vocab=40,gated=yes"
    named = cli.good(*words, "mine", "--model-config", sizes).json
    assert named["estimate"]["parameters"] == whole["estimate"]["parameters"]
    assert named["memory"]["copies"] == whole["memory"]["copies"]
    assert named["run"] == "ioi-mine"


def test_a_finished_run_is_none_of_its_business(cli: Cli) -> None:
    """With ``--from-config`` nothing is looked up: stages are what they take, whatever is cached."""
    plan = cli.good("discover", "ioi", "--dry-run", "--from-config", "--assume-tflops", "1", "--json").json
    assert {stage["state"] for stage in plan["stages"]} == {"run"}
    assert plan["estimate"]["why"] == "--from-config was given"


def test_workers_share_the_time(cli: Cli) -> None:
    one = cli.good(*SEVEN, "--json").json
    four = cli.good(*SEVEN, "--workers", "4", "--json").json
    assert four["shared_seconds"] == pytest.approx(one["seconds"] / 4)
    assert "4: about " in lines_of(cli.good(*SEVEN, "--workers", "4").out)["workers"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--from-config"], ["--from-config says nothing without --dry-run"]),
        (["--model-config", "n_layers=2"], ["--model-config says nothing without --dry-run"]),
        (["--prompt-tokens", "9"], ["--prompt-tokens says nothing without --dry-run"]),
        (["--assume-tflops", "9"], ["--assume-tflops says nothing without --dry-run"]),
        (["--dry-run", "--assume-tflops", "nan"], ["nan is no finite number"]),
        (["--dry-run", "--prompt-tokens", "9"], ["are for models that are not loaded", "--from-config"]),
        (["--dry-run", "--prompt-tokens", "-1"], ["is no length of a prompt"]),
        (["--dry-run", "--model-config", "nothing.json"], ["there is no file 'nothing.json'"]),
        (["--dry-run", "--model-config", "n_layer=2"], ["knows no 'n_layer'", "did you mean 'n_layers'"]),
        (["--dry-run", "--model-config", "broken.json"], ["broken.json", "cannot be read"]),
        (
            ["--dry-run", "--from-config", "--model", "a-lab/nothing"],
            ["cannot find the model 'a-lab/nothing'"],
        ),
        (["--dry-run", "--from-config", "--nodes", "features"], ["is not estimated"]),
        (["--dry-run", "--from-config", "--model-b", "gpt2"], ["needs both models loaded"]),
    ],
    ids=lambda value: "-".join(value).strip("-")[:60] if value[0].startswith("--") else "",
)
def test_flags_that_make_no_sense(cli: Cli, flags: list[str], says: list[str]) -> None:
    Path("broken.json").write_text(json.dumps({"model_type": "llama"})[:-4], encoding="utf-8")
    cli.fails(2, "discover", "ioi", *flags, says=says)
    assert not cli.outputs.exists()
