"""NaN and infinity are caught where they come from, by name; the same seed gives the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from circuitfind.circuit.scores import Scores
from circuitfind.cli import run as command
from circuitfind.errors import RunError
from circuitfind.methods import METHODS, get_method
from circuitfind.methods.finite import checked
from circuitfind.model.runs import Runs
from circuitfind.session import Session
from circuitfind.settings import resolve
from circuitfind.task.spec import load_task
from circuitfind.zoo.planted import build
from tests.finished import plainly
from tests.resilience.killing import in_child

QUICK = ("--method", "eap", "--no-backups", "--controls", "none", "--no-views")


@pytest.fixture
def broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    """Writes a model with a change to its weights, and a task for it; gives what a run of it says as it fails."""
    monkeypatch.chdir(tmp_path)
    made = build("induction")
    state = {name: value.clone().contiguous() for name, value in made.state.items()}
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"format": "transformer-lens", "config": made.config}
    (folder / "config.json").write_text(json.dumps(config))
    words = [f"w{number}" for number in range(made.config["d_vocab"])]

    def text(tokens: tuple[int, ...]) -> str:
        return " ".join(words[token] for token in tokens)

    pairs = [
        {
            "clean": text(pair.clean),
            "corrupted": text(pair.corrupted),
            "answer": words[pair.answer],
            "wrong": words[pair.wrong],
        }
        for pair in made.pairs(8)
    ]
    task = {"name": "toy", "model": str(folder), "vocab": words, "prompts": {"pairs": pairs}}
    (tmp_path / "toy.yaml").write_text(json.dumps(task))

    def fails(change: Callable[[dict[str, torch.Tensor]], None], *options: str) -> dict[str, Any]:
        change(state)
        save_file(state, folder / "model.safetensors")
        capsys.readouterr()
        assert command(["discover", "toy.yaml", "--outputs", "out", "--json", *QUICK, *options]) == 3
        assert not list((tmp_path / "out").rglob("*.npz"))
        assert not list((tmp_path / "out").rglob("circuit.json"))
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return fails


def put(name: str, value: float, place: tuple[int, ...]) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(state: dict[str, torch.Tensor]) -> None:
        state[name][place] = value

    return change


@pytest.mark.parametrize("value", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.slow)])
def test_weights_of_a_layer(broken: Callable[..., dict[str, Any]], value: float) -> None:
    found = broken(put("blocks.1.attn.W_V", value, (0, 0, 0)))
    assert "NaN or infinite values on random tokens, first at" in found["what"]
    assert "block 1" in found["what"]
    assert "check the model's weights" in found["hint"]


def test_logits_of_one_prompt(broken: Callable[..., dict[str, Any]]) -> None:
    """A row of the embedding that one prompt reads, and that the check of the model does not."""
    made = build("induction")
    n_vocab = made.config["d_vocab"]
    probed = torch.randint(0, n_vocab, (2, 9), generator=torch.Generator().manual_seed(0))
    read = [token for pair in made.pairs(8) for token in pair.clean]
    token = min((one for one in set(read) if one not in probed), key=lambda one: (read.count(one), one))
    found = broken(put("embed.W_E", float("nan"), (token, 0)))
    assert "NaN or infinite logits for" in found["what"]
    assert f"w{token}" in found["what"]
    assert found["details"] == ["in the stage 'prompts'"]
    assert "toy.yaml" in str(found["where"])


def test_overflow_in_half_precision(broken: Callable[..., dict[str, Any]]) -> None:
    """Values that 32 bits hold, and 16 do not."""

    def large(state: dict[str, torch.Tensor]) -> None:
        state["embed.W_E"] *= 1e6

    found = broken(large, "--precision", "fp16", "--min-accuracy", "0")
    assert "NaN or infinite" in found["what"] or "not finite" in found["what"]
    assert "fp32" in found["hint"] or "--precision" in found["hint"]


# Scores.


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    path = tmp_path_factory.mktemp("numbers") / "small.yaml"
    path.write_text("{name: small, model: planted/and-gate, prompts: {zoo: {count: 6}}}", encoding="utf-8")
    spec = load_task(str(path))
    session = Session(spec, resolve(spec))
    return session.runs_of(session.all_pairs)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["values", "nodes", "extra"])
def test_scores_that_are_no_numbers(runs: Runs, value: float, where: str) -> None:
    good = get_method("eap", {}).run(runs, ablation="resample", direction="noising")
    assert checked(good, runs.model) is good
    assert good.nodes is not None
    values, nodes = good.values.copy(), good.nodes.copy()
    w, r = map(int, np.argwhere(runs.model.anatomy.edge_mask)[5])
    if where == "values":
        values[w, r] = value
    if where == "nodes":
        nodes[w] = value
    extra = {"more": np.array([1.0, value])} if where == "extra" else {}
    bad = replace(good, values=values, nodes=nodes, extra=extra)
    if where == "extra" and np.isnan(value):  # not computed
        assert checked(bad, runs.model) is bad
        return
    named = {"values": str(runs.model.anatomy.edge_at(w, r)), "nodes": str(runs.model.anatomy.writers[w])}
    with pytest.raises(RunError, match="eap gives NaN or infinite scores") as caught:
        checked(bad, runs.model)
    assert named.get(where, "'more'") in caught.value.what
    assert "weights" in caught.value.hint


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_prompt_is_named(runs: Runs, value: float) -> None:
    good = get_method("atp", {}).run(runs, ablation="resample", direction="noising")
    assert good.per_prompt is not None
    per_prompt = good.per_prompt.copy()
    per_prompt[3, 1] = value
    with pytest.raises(RunError, match="on prompt 4"):
        checked(replace(good, per_prompt=per_prompt), runs.model)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_scores_everything(runs: Runs, name: str) -> None:
    found = get_method(name, {}).run(runs, ablation="resample", direction="noising")
    assert isinstance(checked(found, runs.model), Scores)


# Determinism.

TASK = "{name: small, model: planted/and-gate, prompts: {zoo: {count: 16}}}"


@pytest.mark.slow
def test_two_processes_agree(tmp_path: Path) -> None:
    """To rounding with other numbers of threads; that it is to the last bit with the same, the tests of kills show."""
    (tmp_path / "small.yaml").write_text(TASK, encoding="utf-8")
    words = ["discover", "../small.yaml", "--outputs", "outputs", *QUICK[2:], "-q"]
    folders = []
    for name, threads in (("two", 2), ("one", 1)):
        place = tmp_path / name
        place.mkdir()
        with plainly(place):
            torch.set_num_threads(threads)
            assert (command(words) if threads > 1 else in_child(lambda: command(words))) == 0
        (found,) = (place / "outputs").iterdir()
        folders.append(found)
    a, b = (Scores.load(folder / "scores.npz").values for folder in folders)
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * float(np.nanmax(np.abs(a))))
    circuits = [json.loads((folder / "circuit.json").read_text())["edges"] for folder in folders]
    assert circuits[0]
    named = [[edge["name"] for edge in edges] for edges in circuits]
    assert named[0] == named[1]
