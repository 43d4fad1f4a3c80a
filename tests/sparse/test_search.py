"""From SAEs to a graph: features that are known to matter are found, and a target faithfulness is really kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from circuitfind.errors import RunError, UnsupportedError, UsageError
from circuitfind.names import Kind
from circuitfind.sparse.ablate import NodeEvaluator
from circuitfind.sparse.baseline import Baseline
from circuitfind.sparse.options import SparseOptions
from circuitfind.sparse.prune import prune_nodes
from circuitfind.sparse.scores import score_nodes
from circuitfind.sparse.search import find_circuit
from circuitfind.sparse.sites import read_sites
from tests import families
from tests.sparse import cases
from tests.sparse.planted import directions, exact_sae, planted_runs


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_features_are_found(seed: int) -> None:
    """Behind the previous-token head only "A stands before me" matters, behind the induction head what A stood before."""
    name = f"planted/induction:{seed}"
    known, first, second = directions(name)
    runs = planted_runs(name)
    saes = [exact_sae(known, first), exact_sae(known, second)]
    base = Baseline(runs, read_sites(runs.model, saes), "resample")
    scores = dict(zip(map(str, base.nodes), score_nodes(base, 10), strict=True))
    most = max(map(abs, scores.values()))
    errors = {name for name in scores if name.endswith("err")}
    assert all(abs(scores[name]) < 0.06 * most for name in errors), (
        "what the noise heads write is in no direction"
    )
    strong = {name for name, score in scores.items() if abs(score) > 0.02 * most} - errors
    asked = {pair.clean[-1] for pair in runs.pairs}
    told = {token for pair in runs.pairs for token in (*pair.answer, *pair.wrong)}
    truth = {f"s{first}.f{known.feature('before', token)}" for token in asked}
    truth |= {f"s{second}.f{known.feature('out', token)}" for token in told}
    assert strong == truth
    assert all(scores[name] > 0 for name in truth)
    found = find_circuit(runs, saes, cases.conditions(), SparseOptions(faithfulness=0.95))
    graph = found.graph
    assert {str(node) for node in graph.nodes} <= truth | errors
    assert {n.layer for n in graph.nodes} == {first, second}
    assert graph.minimal
    assert graph.evaluations[0].faithfulness.value >= 0.95
    assert graph.errors is not None
    assert graph.errors.by_score < 0.02
    assert graph.errors.without_errors is not None
    assert graph.errors.without_errors.value == pytest.approx(1, abs=0.05)
    assert graph.errors.errors_alone is not None
    assert graph.errors.errors_alone.value < 0.05
    # Every edge is one of the two steps of the chain, and each step is there.
    for edge in graph.edges:
        assert (edge.sender.layer, edge.receiver.kind) in {(first, Kind.FEATURE), (second, Kind.LOGITS)}, edge
    assert {edge.sender for edge in graph.edges} == set(graph.nodes)
    # What a pair's A does goes to that pair's answer and wrong answer, and to no others.
    pieces = {str(n): known.piece_of(n.index) for n in graph.nodes}
    assert {pieces[str(e.sender)] for e in graph.edges if e.receiver.kind is Kind.FEATURE} == {"before"}
    assert {pieces[str(e.receiver)] for e in graph.edges if e.receiver.kind is Kind.FEATURE} == {"out"}
    strongest = max((e for e in graph.edges if e.receiver.kind is Kind.FEATURE), key=graph.weight)
    reached = {
        known.feature("out", token)
        for pair in runs.pairs
        if known.feature("before", pair.clean[-1]) == strongest.sender.index
        for token in (*pair.answer, *pair.wrong)
    }
    assert strongest.receiver.index in reached


def test_pruning_is_what_running_says() -> None:
    """Brute force on few nodes: no single node can be dropped, and no shorter prefix would do."""
    model = families.model("gpt2")
    runs = _solvable(model)
    base = Baseline(runs, read_sites(model, [cases.random_sae(model, 1, "resid_post")]), "resample")
    scores, evaluator = score_nodes(base, 10), NodeEvaluator(base)
    target = 0.9
    pruned = prune_nodes(scores, evaluator, target)
    order = np.argsort(-np.abs(scores))
    reached = [
        float(evaluator.faithfulness([np.isin(np.arange(len(scores)), order[:size])])[0])
        for size in range(1, len(scores) + 1)
    ]
    assert pruned.prefix == next(size for size, f in enumerate(reached, 1) if f >= target)
    assert evaluator.faithfulness([pruned.mask])[0] >= target
    assert pruned.minimal
    for node in np.flatnonzero(pruned.mask):
        rest = pruned.mask.copy()
        rest[node] = False
        assert evaluator.faithfulness([rest])[0] < target
    short = prune_nodes(scores, NodeEvaluator(base), target, evaluations=1)
    assert not short.minimal
    assert short.mask.sum() == short.prefix


def _solvable(model: object) -> object:
    """Pairs whose answers the clean prompts favour, as far as random weights can."""
    runs = cases.runs_of(model, count=8, lengths=(6,))  # type: ignore[arg-type]
    good = [i for i in range(len(runs)) if runs.clean[i] > runs.corrupted[i]]
    return families.runs_of(runs.model, runs.pairs.subset(good))


def test_a_threshold_keeps_what_reaches_it() -> None:
    model = families.model("llama")
    runs = _solvable(model)
    options = SparseOptions(faithfulness=None, node_threshold=0.05, edge_threshold=0.0, steps=3)
    found = find_circuit(runs, cases.everywhere(model), cases.conditions(), options)  # type: ignore[arg-type]
    scores = found.scores
    assert {str(n) for n in found.graph.nodes} == {name for name, s in scores.items() if abs(s) >= 0.05}
    assert not found.graph.minimal
    assert [s.name for s in found.graph.sources] == ["sa0", "sm0", "s0", "sa1", "sh1", "sm1"]
    for source in found.graph.sources:
        own = [s for name, s in scores.items() if name.startswith(f"{source.name}.f")]
        assert source.features == pytest.approx(sum(own))
        assert source.n_active <= source.n_features == 12
    assert found.graph.n_active == sum(s.n_active for s in found.graph.sources)
    with pytest.raises(RunError, match="no node has a score"):
        find_circuit(
            runs,  # type: ignore[arg-type]
            cases.everywhere(model),
            cases.conditions(),
            SparseOptions(faithfulness=None, node_threshold=1e3),
        )


def test_what_sites_do_together_is_measured() -> None:
    """With one site alone, what ablating it does is all there is to explain; the scores of its nodes sum to it."""
    model = families.model("qwen3")
    runs = _solvable(model)
    sae = cases.random_sae(model, 1, "resid_post")
    graph = find_circuit(runs, [sae], cases.conditions(), SparseOptions(steps=50)).graph  # type: ignore[arg-type, list-item]
    (source,) = graph.sources
    (evaluation, *_) = graph.evaluations
    assert source.effect == pytest.approx(evaluation.full - evaluation.empty, abs=1e-4)
    assert source.features + source.errors == pytest.approx(source.effect, rel=0.05, abs=1e-2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0}, "steps"),
        ({"faithfulness": 1.5}, "faithfulness"),
        ({"faithfulness": None}, "threshold"),
        ({"node_threshold": 0.1}, "threshold"),
        ({"faithfulness": None, "node_threshold": -1.0}, "nodes"),
        ({"edge_threshold": float("nan")}, "edges"),
        ({"evaluations": 0}, "evaluations"),
    ],
)
def test_options_out_of_range(changes: dict[str, float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        SparseOptions(**changes)  # type: ignore[arg-type]


def test_dictionaries_that_are_no_saes_of_the_stream() -> None:
    model = families.model("gpt2")
    runs = cases.runs_of(model)

    def refused(*saes: object, says: str, error: type[UsageError] = UnsupportedError) -> UsageError:
        with pytest.raises(error, match=says) as caught:
            find_circuit(runs, list(saes), cases.conditions())  # type: ignore[arg-type]
        return caught.value

    from tests.dictionaries.synthetic import random_dictionary

    found = refused(random_dictionary(model, 0), says="it is a transcoder")
    assert "--nodes heads,features" in found.hint
    refused(random_dictionary(model, 0, cross=True), says="cross-layer")
    refused(cases.random_sae(model, 0, "mlp_normed"), says="of mlp_normed is not spliced in")
    refused(says="no dictionaries", error=UsageError)
    twice = [cases.random_sae(model, 1, "resid"), cases.random_sae(model, 0, "resid_post")]
    refused(*twice, says="two SAEs", error=UsageError)
    refused(cases.random_sae(families.model("ln"), 1, "resid_post"), says="numbers", error=UsageError)
    (site,) = read_sites(model, twice[:1])
    assert site.name == "s0", "the stream into a block is the one behind the block before"
    assert read_sites(model, [cases.random_sae(model, 0, "resid")])[0].name == "si0"
