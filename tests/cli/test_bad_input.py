"""Bad input: a clear error that says what, where and what to do; nothing lost, nothing half-written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitfind.circuit import prune
from tests.cli.helpers import Cli, Toy

REPOSITORY = Path(__file__).resolve().parents[2]

GOOD = """\
name: small
model: planted/or-gate
prompts:
  zoo: {count: 8}
direction: denoising
"""

QUICK = """\
name: small
model: planted/and-gate
prompts:
  zoo: {count: 8}
"""


def written(cli: Cli, text: str) -> Path:
    """A task file."""
    path = cli.folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# --- the task file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("name: small\n", ""), ["small.yaml:1", "the key 'name' is missing", "add 'name: ...'"]),
        (
            ("direction:", "directoin:"),
            ["small.yaml:5 (directoin)", "unknown key 'directoin'", "did you mean 'direction'?"],
        ),
        (("count: 8", "cuont: 8"), ["small.yaml:4 (prompts.zoo.cuont)", "did you mean 'count'?"]),
        (("count: 8", "count: many"), ["small.yaml:4 (prompts.zoo.count)", "should be a whole number"]),
        (("count: 8", "count: 0"), ["small.yaml:4 (prompts.zoo.count)", "is 0, must be"]),
        (("denoising", "backwards"), ["small.yaml:5 (direction)", "noising, denoising"]),
        (("zoo: {count: 8}", "pairs: []"), ["small.yaml:4 (prompts.pairs)", "is empty"]),
        (("  zoo: {count: 8}\n", ""), ["small.yaml:3 (prompts)"]),
        (("name: small", "name: 'small"), ["small.yaml", "broken YAML"]),
        ((GOOD, ""), ["small.yaml:1", "is empty", "circuitfind init"]),
    ],
    ids=[
        "missing",
        "unknown",
        "unknown-inside",
        "type",
        "range",
        "choice",
        "empty",
        "no-prompts",
        "broken",
        "void",
    ],
)
def test_the_file(cli: Cli, change: tuple[str, str], says: list[str]) -> None:
    path = written(cli, GOOD.replace(*change))
    cli.fails(2, "discover", path, says=says)
    cli.fails(2, "validate", path, "--no-model", says=says)
    assert not cli.outputs.exists()


def test_all_problems_of_a_file_are_told_at_once(cli: Cli) -> None:
    path = written(cli, GOOD.replace("count: 8", "cuont: 8").replace("denoising", "backwards"))
    cli.fails(2, "discover", path, says=["small.yaml:4", "small.yaml:5"])


def test_no_such_task(cli: Cli) -> None:
    cli.fails(
        2, "discover", "orgate", says=["no task is named 'orgate'", "did you mean 'or-gate'?", "looked in"]
    )
    cli.fails(2, "discover", "or-gate.yaml", says=["without .yaml"])
    written(cli, GOOD)
    cli.fails(2, "discover", "smal.yaml", says=["did you mean 'small.yaml'?"])


# --- prompts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"corrupted": "w0 w1 w2"},
            [
                "the clean prompt has 8 tokens, the corrupted one 3",
                "clean      ",
                "corrupted  ",
                "^ first difference",
            ],
        ),
        ({"answer": "w1 w2"}, ["answer", "2 tokens"]),
        ({"answer": "w99"}, ["w99"]),
        ({"answer": "w12"}, ["is both answer and wrong answer"]),
        ({"corrupted": "w0 w11 w3 w1 w9 w7 w12 w3"}, ["the clean and the corrupted prompt are the same"]),
    ],
    ids=["lengths", "two-tokens", "no-word", "answer-is-wrong", "identical"],
)
def test_a_pair_that_does_not_line_up(cli: Cli, toy: Toy, change: dict[str, Any], says: list[str]) -> None:
    assert toy.pairs[0] == {
        "clean": "w0 w11 w3 w1 w9 w7 w12 w3",
        "corrupted": "w0 w11 w7 w1 w9 w3 w12 w3",
        "answer": "w1",
        "wrong": "w12",
    }
    path = toy.with_pair(**change)
    told = ["1 of 12 prompt pairs cannot be used", "toy.yaml:", "pair 1: ", "--drop-bad-pairs", *says]
    cli.fails(2, "discover", path, says=told)
    cli.fails(2, "validate", path, says=told)
    found = cli.good("discover", path, "--drop-bad-pairs", "--edges", "8", "--format", "svg")
    assert "left out: 1 not aligned" in found.out
    assert "note: 1 of 12 pairs dropped" in found.err


def test_tokens_stand_side_by_side(cli: Cli, toy: Toy) -> None:
    found = cli("discover", toy.with_pair(corrupted="w0 w11 w12 w1"))
    lines = found.err.splitlines()
    at = next(i for i, line in enumerate(lines) if line.lstrip().startswith("clean "))
    clean, corrupted, mark = lines[at : at + 3]
    assert corrupted.lstrip().startswith("corrupted ")
    assert clean.index('"w3"') == corrupted.index('"w12"') == mark.index("^")


def test_no_pair_can_be_used(cli: Cli, toy: Toy) -> None:
    path = toy.task(prompts={"pairs": [{**toy.pairs[0], "wrong": "w1"}]})
    for flags in ([], ["--drop-bad-pairs"]):
        cli.fails(2, "discover", path, *flags, says=["none of 1 prompt pairs can be used"])


def test_empty_prompt(cli: Cli, toy: Toy) -> None:
    cli.fails(2, "discover", toy.with_pair(clean=""), says=["toy.yaml:", "clean", "is empty"])
    cli.fails(2, "discover", toy.with_pair(clean=" "), says=["the clean prompt is empty"])


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("gone.csv", None, ["no prompt file at", "toy.yaml:", "(prompts.file)"]),
        (
            "p.csv",
            "clean,corrupted,answer,wrong\nw0 w1,w0 w2,w1\n",
            ["p.csv:2", "has 3 columns, the header has 4"],
        ),
        ("p.csv", "clean,corrupted,answer,wrong\nw0 w1,,w1,w2\n", ["p.csv:2 (corrupted)", "is empty"]),
        ("p.csv", "clean,corupted,answer,wrong\na,b,c,d\n", ["p.csv:1", "'corrupted'", "'corupted'"]),
        ("p.csv", 'clean,corrupted,answer,wrong\n"w0,b,c,d\n', ["p.csv:2", "broken CSV"]),
        ("p.csv", "", ["p.csv", "has no prompts"]),
        ("p.jsonl", '{"clean": "w0 w1"\n', ["p.jsonl:1", "broken JSON"]),
        ("p.txt", "w0 w1", ["neither .csv nor .jsonl"]),
    ],
    ids=["gone", "columns", "cell", "header", "quotes", "void", "json", "ending"],
)
def test_prompt_files(cli: Cli, toy: Toy, name: str, text: str | None, says: list[str]) -> None:
    if text is not None:
        (toy.folder / name).write_text(text, encoding="utf-8")
    cli.fails(2, "discover", toy.task(prompts={"file": name}), says=says)


def test_a_model_that_does_not_do_the_task(cli: Cli, toy: Toy) -> None:
    turned = [{**pair, "answer": pair["wrong"], "wrong": pair["answer"]} for pair in toy.pairs]
    path = toy.task(prompts={"pairs": turned})
    cli.fails(
        2, "discover", path, "--min-accuracy", "0", says=["answers 0% of the 12", "does not do this task"]
    )
    found = cli("validate", path)
    assert found.code == 2
    assert "12 pairs line up, accuracy 0 %" in found.out
    path = toy.task(prompts={"pairs": [*turned[:6], *toy.pairs[6:]]})
    says = ["answers 50% of the 12", "below the 75%", "--min-accuracy", "pair 1: ", "wants w12, metric -"]
    cli.fails(2, "discover", path, says=says)
    found = cli.good("discover", path, "--min-accuracy", "0.5")
    assert "6 used (left out: 6 answered wrongly), accuracy 50 %" in found.out
    assert "note: 6 of 12 pairs left out: the model answers them wrongly" in found.err


# --- models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("planted/or-gat", ["the zoo has no model 'planted/or-gat'", "did you mean 'planted/or-gate'?"]),
        ("planted/or-gate:x", ["'x' is no seed", "planted/or-gate:7"]),
        ("minni", ["cannot find the model 'minni'", "did you mean 'mini'?"]),
        (
            "no-such-org/no-such-model",
            ["cannot find the model", "need the network", "circuitfind list models"],
        ),
        ("./nothing", ["'./nothing' is no folder", "config.json"]),
        ("small.yaml", ["'small.yaml' is a file"]),
    ],
)
def test_unknown_models(cli: Cli, model: str, says: list[str]) -> None:
    cli.fails(2, "discover", written(cli, GOOD), "--model", model, says=says)
    assert not cli.outputs.exists()


def test_a_folder_that_is_no_model(cli: Cli, toy: Toy) -> None:
    empty = toy.folder / "empty"
    empty.mkdir()
    path = toy.task()
    cli.fails(2, "discover", path, "--model", empty, says=["holds no config.json, so it is no model"])
    (empty / "config.json").write_text("{")
    cli.fails(2, "discover", path, "--model", empty, says=["empty/config.json: ", "cannot be read"])
    (empty / "config.json").write_text("{}")
    cli.fails(2, "discover", path, "--model", empty, says=["there are no weights (*.safetensors)"])
    (empty / "config.json").write_text('{"format": "transformer-lens"}')
    shutil.copy(toy.model / "model.safetensors", empty)
    cli.fails(
        2, "discover", path, "--model", empty, says=["empty/config.json: ", "the key 'config' is missing"]
    )


def test_weights_that_do_not_fit(cli: Cli, toy: Toy) -> None:
    config = json.loads((toy.model / "config.json").read_text())
    config["config"]["d_mlp"] += 1
    (toy.model / "config.json").write_text(json.dumps(config))
    cli.fails(2, "discover", toy.task(), says=["has the shape", "do not belong together"])


def test_corrupted_safetensors(cli: Cli, toy: Toy) -> None:
    weights = toy.model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    cli.fails(
        2, "discover", toy.task(), says=["model.safetensors: the weights are damaged", "copy or download"]
    )
    weights.write_bytes(b"\x00" * 64)
    cli.fails(2, "discover", toy.task(), says=["model.safetensors: the weights are damaged"])


class Trap:
    """What a pickle can do while it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("trapped",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_are_refused_unread(cli: Cli, toy: Toy, name: str) -> None:
    (toy.model / "model.safetensors").unlink()
    (toy.model / name).write_bytes(pickle.dumps(Trap()))
    cli.fails(
        2, "discover", toy.task(), says=[f"the weights are a pickle ({name})", "refused", "safetensors"]
    )
    assert not (cli.folder / "trapped").exists()


def test_a_pickle_named_safetensors_is_not_read(cli: Cli, toy: Toy) -> None:
    (toy.model / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    cli.fails(2, "discover", toy.task(), says=["the weights are damaged"])
    assert not (cli.folder / "trapped").exists()


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        ("unembed.W_U", ["NaN or infinite values", "first at the logits", "check the model's weights"]),
        (
            "blocks.1.attn.W_V",
            ["NaN or infinite values", "first at v of block 1", "check the model's weights"],
        ),
    ],
)
def test_nan_from_the_model(cli: Cli, toy: Toy, tensor: str, says: list[str]) -> None:
    from safetensors.torch import load_file, save_file

    weights = toy.model / "model.safetensors"
    state = load_file(weights)
    state[tensor].view(-1)[0] = float("nan")
    save_file(state, weights)
    cli.fails(3, "discover", toy.task(), says=says)
    cli.fails(3, "validate", toy.task(), says=says)
    listed = cli.good("list", "runs", "--json").json["runs"]
    assert [run["status"] for run in listed] == ["failed"]


def test_no_such_device(cli: Cli, toy: Toy) -> None:
    cli.fails(2, "discover", toy.task(), "--device", "gpu", says=["there is no device 'gpu'", "--device cpu"])


# --- flags --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--method", "epa"], ["no method is named 'epa'", "did you mean 'eap'?"]),
        (["--metric", "logitdiff"], ["no metric is named 'logitdiff'", "did you mean 'logit-diff'?"]),
        (["--ablation", "resampel"], ["no ablation is named", "did you mean 'resample'?"]),
        (["--direction", "denoisin"], ["no direction is named", "did you mean 'denoising'?"]),
        (["--counterfactual", "corupted"], ["has no counterfactual", "did you mean 'corrupted'?"]),
        (["--faithfulness", "1.5"], ["1.5", "above 0 and up to 1"]),
        (["--faithfulness", "0"], ["above 0 and up to 1"]),
        (["--faithfulness", "-0.5"], ["above 0 and up to 1"]),
        (["--faithfulness", "nan"], ["nan is no finite number"]),
        (["--faithfulness", "most"], ["'--faithfulness'", "'most' is not a valid float"]),
        (["--faithfulness", "0.9", "--edges", "4"], ["exactly one of"]),
        (["--edges", "0"], ["give at least 1"]),
        (["--threshold", "-1"], ["give 0 or more"]),
        (["--threshold", "nan"], ["--threshold", "nan is no finite number"]),
        (["--threshold", "1e400"], ["--threshold", "inf is no finite number"]),
        (["--count", "9" * 25], ["--count", "beyond 64 bits"]),
        (["--evaluations", "0"], ["give at least 1"]),
        (["--count", "0"], ["give at least 1"]),
        (["--min-accuracy", "2"], ["between 0 and 1"]),
        (["--format", "gif"], ["gif", "svg"]),
        (["--option", "verify"], ["--option verify gives no value", "NAME=VALUE"]),
        (["-o", "verfy=3"], ["method hybrid has no option 'verfy'", "did you mean 'verify'?"]),
        (["-o", "verify=many"], ["verify=many is not a whole number", "the default is 64"]),
        (["-o", "propose=eep"], ["no method is named 'eep'", "did you mean 'eap'?"]),
        (["--method", "eap-ig", "-o", "steps=0"], ["give steps=1 or more"]),
        (["--method", "eap", "-o", "steps=3"], ["method eap has no option 'steps'", "it has none"]),
        (["--positions", "some"], ["named 'some'", "named"]),
        (["--precision", "fp8"], ["no precision is named 'fp8'", "did you mean 'fp"]),
        (["--memory", "lots"], ["'lots' is no amount of memory", "8GB"]),
        (["--memory", "0GB"], ["a memory of 0 bytes is none"]),
        (["--metod", "eap"], ["--metod", "--method", "circuitfind discover --help"]),
    ],
    ids=lambda value: "-".join(value).strip("-") if value[0].startswith("--") else "",
)
def test_flags(cli: Cli, flags: list[str], says: list[str]) -> None:
    cli.fails(2, "discover", written(cli, GOOD), *flags, says=says)
    assert not cli.outputs.exists(), "nothing was begun"
    assert cli("discover", written(cli, GOOD), *flags, "--dry-run").code == 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--metric", "accuracy"], ["has no gradient", "--metric logit-diff"]),
        (
            ["--method", "eap", "--metric", "kl", "--direction", "noising"],
            ["is zero", "--direction denoising"],
        ),
        (["--ablation", "mean"], ["denoising", "--ablation resample"]),
        (
            ["--ablation", "mean", "--direction", "noising", "--count", "1"],
            ["at least two prompts", "--count"],
        ),
        (["--method", "activation-patching", "--threshold", "0.1"], ["needs edge scores", "--method eap"]),
        (["--threshold", "1000"], ["no way from the input to the logits is left"]),
        (["--edges", "1"], ["no way from the input to the logits is left"]),
    ],
    ids=lambda value: "-".join(value).strip("-") if value[0].startswith("--") else "",
)
def test_combinations_that_would_give_wrong_numbers(cli: Cli, flags: list[str], says: list[str]) -> None:
    code = 3 if flags[-1] in ("1000", "1") and len(flags) == 2 else 2
    cli.fails(code, "discover", written(cli, GOOD), *flags, says=says)


# --- runs that come to nothing ------------------------------------------------------------------------------


def test_all_zero_sweep_because_the_change_comes_too_late(cli: Cli, toy: Toy) -> None:
    pairs = [
        {**pair, "clean": pair["clean"] + f" w{i % 2}", "corrupted": pair["clean"] + f" w{2 + i % 2}"}
        for i, pair in enumerate({**p, "clean": p["clean"].rsplit(" ", 1)[0]} for p in toy.pairs)
    ]
    path = toy.task(prompts={"pairs": pairs}, **{"answer-position": 2})
    says = ["effects are zero", "corrupted prompts differ before the answer position"]
    cli.fails(3, "discover", path, "--min-accuracy", "0", says=says)


def test_all_zero_sweep_of_a_model_of_zeros(cli: Cli, toy: Toy) -> None:
    from safetensors.torch import load_file, save_file

    weights = toy.model / "model.safetensors"
    state = {name: torch.zeros_like(value) for name, value in load_file(weights).items()}
    state["unembed.b_U"][1] = 1.0
    save_file(state, weights)
    path = toy.task(prompts={"pairs": [{**pair, "answer": "w1", "wrong": "w0"} for pair in toy.pairs]})
    cli.fails(3, "discover", path, says=["effects are zero", "hint: "])
    cli.fails(3, "discover", path, "--method", "eap", says=["every score is exactly zero", "hint: "])
    for rule in (["--edges", "4"], ["--threshold", "0"], ["--method", "activation-patching"]):
        cli.fails(3, "discover", path, *rule, says=["zero"])


# --- the disk -----------------------------------------------------------------------------------------------


def test_a_file_where_the_outputs_should_go(cli: Cli) -> None:
    path = written(cli, GOOD)
    cli.outputs.write_text("mine")
    cli.fails(2, "discover", path, says=["the output folder cannot be written to", "--outputs"])
    assert cli.outputs.read_text() == "mine"
    assert cli.good("list", "runs").out.startswith("no runs yet")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(cli: Cli) -> None:
    path = written(cli, GOOD)
    cli.outputs.mkdir(mode=0o500)
    cli.fails(2, "discover", path, says=["the output folder cannot be written to"])


@pytest.mark.parametrize(
    "victim",
    [
        "manifest.json",
        "prompts.jsonl",
        "scores.npz",
        "pruned.json",
        "backups.json",
        "circuit.json",
        "evidence.json",
        "circuit.svg",
    ],
)
def test_disk_full(cli: Cli, monkeypatch: pytest.MonkeyPatch, victim: str) -> None:
    path = written(cli, QUICK)
    real = os.fsync

    def full(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        if name.startswith(f".{victim}."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to tell which file is written")
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        says = [f"no space left to write {victim}", "MB free", "finished stages are kept and reused"]
        cli.fails(3, "discover", path, says=says)
    found = cli.good("discover", path)
    before = ["prompts", "scores", "circuit", "backups", "evidence", "views", "pictures"]
    finished = {"scores.npz": 1, "pruned.json": 2, "backups.json": 3, "circuit.json": 3}
    finished |= {"evidence.json": 4, "views.json": 5, "circuit.svg": 6}
    states = ["reused" if i < finished.get(victim, 0) else "finished" for i in range(len(before))]
    assert cli.states(found) == dict(zip(before, states, strict=True))


# --- interruption -------------------------------------------------------------------------------------------


def test_interrupted_run_goes_on(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(cli, QUICK)

    def interrupt(*args: Any, **keys: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as keyboard:
        keyboard.setattr(prune, "prune", interrupt)
        stopped = cli("discover", path)
        assert stopped.code == 130
        assert "interrupted: finished stages are kept" in stopped.err
        assert "Traceback" not in stopped.err
        assert stopped.out == ""
        cli.tidy()
        assert cli("discover", path, "--json").json["exit_code"] == 130
    assert [run["status"] for run in cli.good("list", "runs", "--json").json["runs"]] == ["interrupted"]
    cli.fails(3, "show", says=["no finished stage 'circuit'", "interrupted", "same discover command again"])
    assert cli.states(cli.good("discover", path)) == {
        "prompts": "reused",
        "scores": "reused",
        "circuit": "finished",
        "backups": "finished",
        "evidence": "finished",
        "views": "finished",
        "pictures": "finished",
    }
    assert "status        finished" in cli.good("show").out


def _interrupted(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process leaves after Ctrl-C; pressed again where Python lost one, as it does inside a callback of its own."""
    for _ in range(10):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=3)
    return process.communicate(timeout=60)


def _heeds_ctrl_c() -> None:
    """What a shell starts in the background is deaf to Ctrl-C, and so are its children: these tests too, where CI does that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_of_a_process(cli: Cli) -> None:
    path = written(cli, GOOD.replace("or-gate", "ioi-planted").replace("count: 8", "count: 1000"))
    words = ["discover", str(path), "--method", "activation-patching", "--faithfulness", "0.9999"]
    process = subprocess.Popen(
        [sys.executable, "-m", "circuitfind", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=cli.folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        preexec_fn=_heeds_ctrl_c,
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    assert first.startswith("+ prompts"), first
    out, err = _interrupted(process)
    assert process.returncode == 130, err
    assert out == ""
    assert "interrupted: finished stages are kept" in err
    assert "Traceback" not in err
    cli.tidy()
    planned = cli.good(*words, "--dry-run", "--json").json["stages"]
    assert {stage["name"]: stage["state"] for stage in planned}["prompts"] == "cached"
