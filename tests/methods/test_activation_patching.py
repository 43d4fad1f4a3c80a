"""Activation patching against runs of the oracle with one writer moved, both directions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from circuitfind.config import Ablation, Direction
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.methods import METHODS, get_method
from circuitfind.methods.activation_patching import ActivationPatching
from circuitfind.model.runs import Runs
from circuitfind.task.metrics import get_metric
from tests import families
from tests.families import FAMILIES, pairs_for
from tests.model.oracle import ablated_writes, logit_diffs, oracle, tokens_of

WAYS = (("resample", "noising"), ("resample", "denoising"), ("mean", "noising"), ("zero", "noising"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_node_against_the_oracle(family: str, way: tuple[Ablation, Direction]) -> None:
    ablation, direction = way
    model, truth = families.model(family), oracle(family)
    pairs = pairs_for(model, count=3, last=False)
    runs = Runs(model, pairs, get_metric("logit-diff"))
    scores = ActivationPatching().run(runs, ablation=ablation, direction=direction)
    base, towards = ("clean", ablation) if direction == "noising" else ("corrupted", "clean")
    tokens, ablated = tokens_of(pairs, base), ablated_writes(truth, pairs, towards)
    before = logit_diffs(truth.run(tokens), pairs)
    current = truth.written
    for w, name in enumerate(model.anatomy.writer_names):
        after = logit_diffs(truth.run(tokens, moved={name: ablated[name] - current[name]}), pairs)
        effect = before - after if direction == "noising" else after - before
        assert scores.per_prompt is not None
        # Under zero ablation an RMSNorm divides what little is left of the stream.
        np.testing.assert_allclose(scores.per_prompt[:, w], effect, atol=1e-4 if ablation == "zero" else 3e-5)
        assert scores.values[w] == pytest.approx(effect.mean(), abs=1e-4)
    assert scores.level == "node"


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_passes(direction: Direction) -> None:
    """Clean, corrupted and one patched pass for as many rows as fit."""
    model = families.model("gpt2")
    n_writers = len(model.anatomy.writers)
    for per_pass in (1, 4, n_writers):
        runs = Runs(
            model,
            pairs_for(model, count=2, lengths=(5,)),
            get_metric("logit-diff"),
            tokens_per_pass=10 * per_pass,
        )
        before = dict(model.passes)
        ActivationPatching().run(runs, ablation="resample", direction=direction)
        spent = {k: model.passes[k] - before[k] for k in before}
        assert spent == {"forward": 2 + -(-n_writers // per_pass), "backward": 0}
    assert ActivationPatching().cost(model.anatomy).forward == 2 + n_writers


def test_accuracy_and_kl_are_accepted() -> None:
    model = families.model("gpt2")
    pairs = pairs_for(model, count=8)
    for metric, low, high in (("accuracy", -1.0, 1.0), ("kl", 0.0, np.inf)):
        runs = Runs(model, pairs, get_metric(metric))
        scores = ActivationPatching().run(runs, ablation="resample", direction="noising")
        assert np.isfinite(scores.values).all()
        assert (scores.values >= low - 1e-6).all()
        assert (scores.values <= high).all()
        assert np.abs(scores.values).max() > 0


def test_refusals() -> None:
    model = families.model("gpt2")
    runs = Runs(model, pairs_for(model), get_metric("logit-diff"))
    for ablation in ("mean", "zero"):
        with pytest.raises(UnsupportedError, match="denoising"):
            ActivationPatching().run(runs, ablation=ablation, direction="denoising")


def test_the_registry() -> None:
    for name in METHODS:
        method = get_method(name)
        assert (method.name, method.level) == (name, METHODS[name].level)
    with pytest.raises(UsageError) as caught:
        get_method("activation-patchin")
    assert "activation-patching" in caught.value.hint
