"""EAP against finite differences of a model that shares nothing with it, and of our own patched passes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction
from circuitfind.methods.eap import EAP
from circuitfind.model.bridge import Model
from circuitfind.model.contrast import Contrast
from circuitfind.model.edge_pass import EdgePass
from circuitfind.model.runs import Runs
from tests import families
from tests.families import FAMILIES, costly, pairs_for, runs_of
from tests.model.oracle import ablated_writes, logit_diffs, oracle, slope, tokens_of

FEW = ("gpt2", "neox", "gemma2", "bidirectional", "kv-groups")
# (ablation, direction): resample in both directions, the others as noising.
WAYS = (("resample", "noising"), ("resample", "denoising"), ("mean", "noising"), ("zero", "noising"))
EVERY = (*FAMILIES, "solu-ln")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def eap(runs: Runs, ablation: Ablation = "resample", direction: Direction = "noising") -> Scores:
    return EAP().run(runs, ablation=ablation, direction=direction)


def sample_of_edges(model: Model, scores: Scores, each: int) -> list[tuple[int, int]]:
    """From every kind of reader the strongest edge and random others, 12 with ``each`` = 3 (attention-only: 12 of 4 kinds)."""
    rng = np.random.default_rng(0)
    chosen: list[tuple[int, int]] = []
    for kind in ("<q>", "<k>", "<v>", "m", "logits"):
        columns = [
            i
            for i, name in enumerate(model.anatomy.reader_names)
            if (kind in name if "<" in kind or kind == "logits" else name.startswith("m"))
        ]
        edges = [e for e in scores.ranked_edges() if e[1] in columns]
        if edges:
            picked = {edges[0], *(edges[int(i)] for i in rng.integers(0, len(edges), each - 1))}
            chosen += sorted(picked)
    return chosen


# --- finite differences ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "way"), [*(costly(f, WAYS[0]) for f in EVERY), *((f, way) for f in FEW for way in WAYS[1:])]
)
def test_edges_and_nodes_are_slopes(family: str, way: tuple[Ablation, Direction]) -> None:
    """Score = minus the slope of the metric as one edge (or one writer) goes from current to ablated.

    Denoising goes from the corrupted run to the clean one, where the score is the slope itself.
    """
    ablation, direction = way
    model, truth = families.model(family), oracle(family)
    pairs = pairs_for(model, count=4, last=False, same=1)
    scores = eap(runs_of(model, pairs), ablation, direction)
    base, towards = ("clean", ablation) if direction == "noising" else ("corrupted", "clean")
    tokens, ablated = tokens_of(pairs, base), ablated_writes(truth, pairs, towards)
    truth.run(tokens)
    current = truth.written
    sign = -1 if direction == "noising" else 1

    def metric(**change: object) -> float:
        return float(logit_diffs(truth.run(tokens, **change), pairs).mean())  # type: ignore[arg-type]

    scale = float(np.nanmax(np.abs(scores.values)))
    names, readers = model.anatomy.writer_names, model.anatomy.reader_names
    edges = sample_of_edges(model, scores, 3 if way == WAYS[0] else 1)
    assert len(edges) >= (8 if way == WAYS[0] else 4)
    for w, r in edges:
        gap = ablated[names[w]] - current[names[w]]
        edge = (names[w], readers[r])
        found = slope(lambda e, g=gap, x=edge: metric(replaced={x: current[x[0]] + e * g}))  # type: ignore[misc]
        assert scores.values[w, r] == pytest.approx(sign * found, abs=1e-3 * scale, rel=1e-3), edge
    assert scores.nodes is not None
    for w in range(len(names)) if way == WAYS[0] else (0, 1, len(names) - 1):
        gap = ablated[names[w]] - current[names[w]]
        found = slope(lambda e, g=gap, n=names[w]: metric(moved={n: e * g}))  # type: ignore[misc]
        assert scores.nodes[w] == pytest.approx(sign * found, abs=1e-3 * scale, rel=1e-3), names[w]


@pytest.mark.parametrize("family", [*FEW, "solu-ln"])
def test_edges_are_slopes_of_the_patched_pass(family: str) -> None:
    """The two fast implementations agree with each other: forward with one edge a little ablated, and EAP."""
    model = families.model(family)
    runs = runs_of(model, pairs_for(model, count=4, lengths=(5, 7), same=1))
    scores = eap(runs)
    whole = runs.contrast(0, "resample")
    current = whole.written
    none = np.zeros((1, len(model.anatomy.writers)), dtype=bool)

    for w, r in sample_of_edges(model, scores, 1):
        edges = np.zeros_like(model.anatomy.edge_mask)
        edges[w, r] = True

        def at(share: float, edges: np.ndarray = edges) -> float:
            cut = current.combined(whole.cut, lambda a, b: a + share * (b - a))
            contrast = Contrast(model, whole.base, cut, cut_is_run=False)
            with torch.no_grad():
                logits = runs.model.head(EdgePass(contrast, none, edges[None]).run())[0]
            return float(runs.metric_of(0, logits).mean())

        scale = float(np.nanmax(np.abs(scores.values)))
        assert scores.values[w, r] == pytest.approx(-slope(at, 0.02), abs=3e-3 * scale)


# --- other metrics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["prob-diff", "log-prob"])
def test_other_metrics_are_slopes_too(metric: str) -> None:
    model, truth = families.model("ln"), oracle("ln")
    pairs = pairs_for(model, count=4)
    scores = eap(runs_of(model, pairs, metric))
    tokens, ablated = tokens_of(pairs, "clean"), ablated_writes(truth, pairs, "resample")
    truth.run(tokens)
    current = truth.written

    def at(share: float, name: str) -> float:
        moved = {name: share * (ablated[name] - current[name])}
        p = truth.run(tokens, moved=moved)[:, -1].softmax(-1)
        rows = torch.arange(len(pairs))
        right, wrong = (p[rows, [getattr(pair, n)[0] for pair in pairs]] for n in ("answer", "wrong"))
        return float((right - wrong if metric == "prob-diff" else right.log()).mean())

    assert scores.nodes is not None
    for w, name in enumerate(model.anatomy.writer_names):
        found = -slope(lambda share, n=name: at(share, n))  # type: ignore[misc]
        assert scores.nodes[w] == pytest.approx(found, rel=2e-3, abs=1e-3 * np.abs(scores.nodes).max())


def test_kl_at_the_corrupted_run_is_a_slope() -> None:
    model, truth = families.model("no-norm"), oracle("no-norm")
    pairs = pairs_for(model, count=4)
    scores = eap(runs_of(model, pairs, "kl"), direction="denoising")
    clean = truth.run(tokens_of(pairs, "clean"))[:, -1].log_softmax(-1)
    there = truth.written
    tokens = tokens_of(pairs, "corrupted")
    truth.run(tokens)
    here = truth.written

    def at(share: float, name: str) -> float:
        logits = truth.run(tokens, moved={name: share * (there[name] - here[name])})[:, -1]
        return -float((clean.exp() * (clean - logits.log_softmax(-1))).sum(-1).mean())

    assert scores.nodes is not None
    for w, name in enumerate(model.anatomy.writer_names):
        found = slope(lambda share, n=name: at(share, n), 0.02)  # type: ignore[misc]
        assert scores.nodes[w] == pytest.approx(found, rel=2e-3, abs=1e-3 * np.abs(scores.nodes).max())
