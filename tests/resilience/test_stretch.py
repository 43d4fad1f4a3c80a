"""Learning that is broken off goes on from its last stretch, and learns the same to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitfind.methods.edge_pruning import EdgePruning
from circuitfind.model import optimal
from circuitfind.model.runs import Runs
from circuitfind.output.journal import Journal
from circuitfind.output.kept import Keeping
from circuitfind.session import Session
from circuitfind.settings import resolve
from circuitfind.task.spec import load_task


class BrokenOff(Exception):
    """Stands for a kill in the middle of a step."""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    path = tmp_path_factory.mktemp("stretch") / "small.yaml"
    path.write_text("{name: small, model: planted/and-gate, prompts: {zoo: {count: 6}}}", encoding="utf-8")
    spec = load_task(str(path))
    return Session(spec, resolve(spec))


def edge_pruning(runs: Runs) -> list[np.ndarray]:
    found = EdgePruning(steps=24, batch=6, warm="").run(runs, ablation="resample", direction="noising")
    return [found.values, np.array(sorted(found.facts.items()), dtype=str)]


def constants(runs: Runs) -> list[np.ndarray]:
    found = optimal.learn_constants(runs.smaller(4), steps=14)
    return [tensor.numpy() for tensor in (found.input, *found.z, *(found.mlp or []))]


@pytest.mark.parametrize(
    ("learn", "step", "stops_at", "stretches"),
    [
        (edge_pruning, "circuitfind.methods.edge_pruning._Problem.loss", 22, 1),
        pytest.param(
            constants, "circuitfind.model.optimal._losses", 12, 1, marks=pytest.mark.slow, id="constants"
        ),
    ],
)
def test_learning_goes_on(
    session: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    learn: Callable[[Runs], list[np.ndarray]],
    step: str,
    stops_at: int,
    stretches: int,
) -> None:
    def runs(hands: Keeping | None = None) -> Runs:
        model = session.model
        return Runs(model, session.all_pairs, session.runs_of(session.all_pairs).metric, hands=hands)

    whole = learn(runs())
    path, hands, calls = tmp_path / "a.bin", Keeping(), []
    with monkeypatch.context() as patch:
        module, _, name = step.rpartition(".")
        owner: Any = EdgePruning if name == "none" else _found(module)
        real = getattr(owner, name)

        def counted(*args: Any, **keys: Any) -> Any:
            calls.append(1)
            if len(calls) > stops_at:
                raise BrokenOff
            return real(*args, **keys)

        patch.setattr(owner, name, counted)
        with pytest.raises(BrokenOff), hands.stage(Journal(path, "k")):
            learn(runs(hands))
    with hands.stage(Journal(path, "k")):
        again = learn(runs(hands))
        kept = hands.resumed
    assert kept >= stretches
    assert all(a.tobytes() == b.tobytes() for a, b in zip(whole, again, strict=True))


def _found(dotted: str) -> Any:
    """A module, or what is in one."""
    import importlib

    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError:
        module, _, name = dotted.rpartition(".")
        return getattr(_found(module), name)
