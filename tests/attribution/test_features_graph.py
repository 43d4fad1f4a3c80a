"""Features of a task: scores, edges and ablations against slow references, and a search that keeps its word."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from circuitfind.attribution import features_graph as module
from circuitfind.attribution.ablation import Ablation
from circuitfind.attribution.contrast import contrast
from circuitfind.attribution.features_graph import Faithfulness, features_graph
from circuitfind.dictionaries.activations import Rows
from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.dictionaries.load import load_dictionaries
from circuitfind.dictionaries.splice import base_errors, run_spliced
from circuitfind.errors import RunError, UnsupportedError, UsageError
from circuitfind.model.runs import Runs
from circuitfind.names import parse_node
from circuitfind.task.metrics import AnswerBatch
from tests import families
from tests.attribution import network
from tests.attribution.network import Coded, Frozen
from tests.dictionaries.synthetic import random_dictionary

Writer = Callable[[Path, int, int], list[Coded]]
FORMATS: dict[str, Writer] = {
    "jumprelu with skip": network.write_layers,
    "cross-layer": network.write_cross,
    "topk": network.write_topk,
}
FAMILIES = ["gpt2", "llama", "gemma2", "neox"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A second thread only waits for tensors so small."""
    with families.one_thread():
        yield


def runs_for(family: str, **options: object) -> Runs:
    model = families.model(family)
    return families.runs_of(model, families.pairs_for(model, **options))


def made_for(runs: Runs, **options: object) -> dict[int, Dictionary]:
    model = runs.model
    return {i: random_dictionary(model, i, **options) for i in range(len(model.layers))}


def nets(family: str, coded: list[Coded], runs: Runs, number: int) -> tuple[Frozen, Frozen]:
    pair = runs.pairs[number]
    return Frozen(family, coded, list(pair.clean)), Frozen(family, coded, list(pair.corrupted))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_total_gradients_times_changes(family: str, kind: str, tmp_path: Path) -> None:
    runs = runs_for(family, count=2)
    coded = FORMATS[kind](tmp_path / "set", runs.model.d_model, len(runs.model.layers))
    made = {one.layer: one for one in load_dictionaries(tmp_path / "set")}
    for number in range(2):
        pair = runs.pairs[number]
        clean, corrupted = nets(family, coded, runs, number)
        at_features, at_errors, at_input = clean.total_gradients(pair.answer[0], pair.wrong[0])
        found = contrast(runs, number, made)
        for layer, one in found.clean.active.items():
            change = (clean.features[layer] - corrupted.features[layer]).detach()
            either = (clean.features[layer] > 0) | (corrupted.features[layer] > 0)
            assert either.nonzero().tolist() == torch.stack([one.position, one.index], 1).tolist()
            wanted = (at_features[layer] * change)[either]
            assert torch.allclose(
                found.scores(layer).double(), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())
            )
            error = float(((clean.errors[layer] - corrupted.errors[layer]) * at_errors[layer]).sum().detach())
            assert found.error_score(layer) == pytest.approx(error, rel=1e-3, abs=1e-3)
        token = float(((clean.embedded - corrupted.embedded) * at_input).sum().detach())
        assert found.input_score == pytest.approx(token, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("family", ["ln", "gemma2", "neox", "kv-groups"])
def test_a_node_s_edges_sum_to_its_score(family: str, cross: bool) -> None:
    """By way of every active feature, and directly: there is no other way."""
    runs = runs_for(family, count=1)
    one = contrast(runs, 0, made_for(runs, cross=cross))
    linear = one.linear
    total = one.edges_into_logits()
    for layer, active in one.clean.active.items():
        total = total + one.edges_into(layer, torch.arange(len(active))).sum(0)
    size = float(total.abs().max())
    assert size > 0.01
    assert float(total[: linear.n_pos].sum()) == pytest.approx(one.input_score, abs=1e-4 * size)
    for layer, (first, errors) in linear.starts.items():
        scores = one.scores(layer)
        assert torch.allclose(total[first : first + len(scores)], scores, atol=1e-4 * size)
        found = float(total[errors : errors + linear.n_pos].sum())
        assert found == pytest.approx(one.error_score(layer), abs=1e-4 * size)


def every_candidate(runs: Runs, made: dict[int, Dictionary]) -> dict[int, np.ndarray]:
    return {layer: np.arange(one.n_features) for layer, one in made.items()}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_ablation_with_attention_frozen(family: str, kind: str, tmp_path: Path) -> None:
    """Against the frozen network in double precision."""
    runs = runs_for(family, count=3)
    coded = FORMATS[kind](tmp_path / "set", runs.model.d_model, len(runs.model.layers))
    made = {one.layer: one for one in load_dictionaries(tmp_path / "set")}
    ablation = Ablation(runs, made, every_candidate(runs, made))
    assert ablation.metric(ablation.everything()) == pytest.approx(runs.clean.mean(), abs=1e-4)
    rng = np.random.default_rng(1)
    for share in (0.0, 0.3, 0.7):
        live = {layer: rng.random(one.n_features) < share for layer, one in made.items()}
        values = []
        for number, pair in enumerate(runs.pairs):
            clean, corrupted = nets(family, coded, runs, number)
            masks = [torch.from_numpy(live[layer]) for layer in sorted(live)]
            values.append(clean.ablated(masks, corrupted.features, pair.answer[0], pair.wrong[0]))
        assert ablation.metric(live) == pytest.approx(np.mean(values), rel=1e-3, abs=1e-3)
        assert abs(np.mean(values) - runs.clean.mean()) > 1e-3


@pytest.mark.parametrize("options", [{}, {"cross": True}, {"activation": "topk", "k": 3}])
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "neox", "bidirectional", "kv-groups"])
def test_ablation_with_attention_live(family: str, options: dict[str, object]) -> None:
    """Against the spliced model of the room of dictionaries, whose features are edited."""
    runs = runs_for(family, count=4, lengths=(6, 5))
    made = made_for(runs, **options)
    ablation = Ablation(runs, made, every_candidate(runs, made))
    assert ablation.metric(ablation.everything(), attention=True) == pytest.approx(
        runs.clean.mean(), abs=1e-4
    )
    rng = np.random.default_rng(2)
    live = {layer: rng.random(one.n_features) < 0.4 for layer, one in made.items()}
    values = []
    for number, pair in enumerate(runs.pairs):
        rows, other = (
            Rows([0], torch.tensor([p]), torch.ones(1, len(p), dtype=torch.bool))
            for p in (pair.clean, pair.corrupted)
        )
        corrupted = run_spliced(runs.model, other, made, errors="recomputed").features
        spliced = run_spliced(
            runs.model,
            rows,
            made,
            errors="frozen",
            frozen=base_errors(runs.model, rows, made),
            edit=lambda layer, found, c=corrupted: torch.where(
                torch.from_numpy(live[layer]), found, c[layer]
            ),
        )
        logits = runs.model.head(spliced.stream[:, pair.answer_position])
        values.append(float(runs.metric(logits, AnswerBatch.of(runs.pairs.subset([number])))))
    assert ablation.metric(live, attention=True) == pytest.approx(np.mean(values), rel=1e-3, abs=1e-3)
    assert abs(np.mean(values) - runs.clean.mean()) > 1e-3


def test_corrupted_errors_too() -> None:
    """With features and errors corrupted, only the clean tokens by way of attention are left."""
    runs = runs_for("no-norm", count=3)
    made = made_for(runs)
    ablation = Ablation(runs, made, every_candidate(runs, made))
    everything, nothing = ablation.everything(), ablation.nothing()
    kept = ablation.metric(everything)
    assert ablation.metric(everything, errors=False) != pytest.approx(kept, abs=1e-3)
    assert ablation.metric(nothing, errors=False) != pytest.approx(ablation.metric(nothing), abs=1e-3)
    # MLPs as they were in the corrupted run, whatever the dictionaries: another set of them gives the same.
    others = made_for(runs, seed=9)
    again = Ablation(runs, others, every_candidate(runs, others))
    assert again.metric(again.nothing(), errors=False) == pytest.approx(
        ablation.metric(nothing, errors=False), abs=1e-4
    )


@pytest.mark.parametrize(
    ("family", "seed", "options"),
    [("ln", 2, {}), ("gemma2", 2, {"cross": True}), ("neox", 4, {"activation": "topk", "k": 4})],
)
def test_the_search(family: str, seed: int, options: dict[str, object]) -> None:
    runs = runs_for(family, count=4, seed=seed)  # pairs on which the features help
    made = made_for(runs, **options)
    target = 0.8
    found = features_graph(runs, made, target=target)
    assert found.minimal
    assert found.frozen.value >= target
    assert found.n_prompts == 4
    assert len(found.nodes) <= found.prefix <= found.candidates
    ranked = [name for name, _ in sorted(found.scores.items(), key=lambda one: -abs(one[1]))]
    assert set(found.names) <= set(ranked[: found.prefix])
    assert [n.score for n in found.nodes] == [found.scores[name] for name in found.names]

    # Each value again, one by one.
    candidates = every_candidate(runs, made)
    ablation = Ablation(runs, made, candidates)

    def value(names: set[str] | list[str]) -> float:
        live = ablation.nothing()
        for name in names:
            node = parse_node(name)
            live[node.layer][node.index] = True
        return ablation.metric(live)

    full, empty = value(ranked), value([])
    assert (found.frozen.full, found.frozen.empty) == pytest.approx((full, empty), abs=1e-4)
    assert full == pytest.approx(runs.clean.mean(), abs=1e-4)

    def share(names: set[str] | list[str]) -> float:
        return Faithfulness(value(names), full, empty).value

    assert share(list(found.names)) == pytest.approx(found.frozen.value, abs=1e-3)
    assert share(ranked[: found.prefix]) >= target - 1e-3
    if found.prefix > 1:
        assert share(ranked[: found.prefix - 1]) < target + 1e-3
    for name in found.names:
        if len(found.names) > 1:
            assert share(set(found.names) - {name}) < target + 1e-3, f"{name} could go"
    live = ablation.nothing()
    for name in found.names:
        node = parse_node(name)
        live[node.layer][node.index] = True
    assert found.live.circuit == pytest.approx(ablation.metric(live, attention=True), abs=1e-4)
    assert found.live.full == pytest.approx(full, abs=1e-4)
    missed = full - ablation.metric(ablation.everything(), errors=False)
    none = ablation.metric(ablation.nothing(), errors=False)
    assert found.error_share == pytest.approx(missed / (full - none), abs=1e-3)


class Counting(Ablation):
    """A metric that needs the first so many of sixty features, and some of them not."""

    def __init__(self, needed: set[int]) -> None:
        self.needed, self.evaluations = needed, 0

    def nothing(self) -> dict[int, np.ndarray]:
        return {0: np.zeros(60, dtype=bool)}

    def everything(self) -> dict[int, np.ndarray]:
        return {0: np.ones(60, dtype=bool)}

    def metric(
        self, live: Mapping[int, np.ndarray], *, attention: bool = False, errors: bool = True
    ) -> float:
        self.evaluations += 1
        return float(np.mean([live[0][i] for i in self.needed]))


@pytest.mark.parametrize("last", [0, 1, 2, 7, 12, 29, 30, 47, 59])
def test_the_shortest_prefix_and_what_is_dropped_from_it(last: int) -> None:
    needed = {i for i in range(last + 1) if i % 3 == last % 3}
    scored = object.__new__(module._Scores)
    scored.order = list(range(60))
    scored._layer, scored._place = np.zeros(60, dtype=int), np.arange(60)
    counting = Counting(needed)
    search = module._Search(scored, counting, 1.0, 1000)
    prefix = search.prefix()
    assert prefix == list(range(last + 1))
    assert counting.evaluations < 25
    kept, minimal = search.drop(prefix)
    assert set(kept) == needed
    assert minimal


def test_scores_and_edges_are_means_over_pairs() -> None:
    runs = runs_for("ln", count=3)
    made = made_for(runs)
    found = features_graph(runs, made, target=0.7)
    totals: dict[str, float] = {}
    edges: dict[tuple[str, str], float] = {}
    kept = set(found.names)
    fires: dict[str, int] = {}
    for number in range(3):
        one = contrast(runs, number, made)
        names = ["input"] * one.linear.n_pos
        for layer, active in sorted(one.clean.active.items()):
            own = [f"t{layer}.f{i}" for i in active.index.tolist()]
            for name, score in zip(own, one.scores(layer).tolist(), strict=True):
                totals[name] = totals.get(name, 0) + score / 3
            for name in {n for n, a in zip(own, active.activation.tolist(), strict=True) if a > 0}:
                fires[name] = fires.get(name, 0) + 1
            names += own + [f"t{layer}.err"] * one.linear.n_pos
        rows = [("logits", one.edges_into_logits())]
        for layer, active in one.clean.active.items():
            for place, index in enumerate(active.index.tolist()):
                if f"t{layer}.f{index}" in kept:
                    rows.append((f"t{layer}.f{index}", one.edges_into(layer, torch.tensor([place]))[0]))
        for target, row in rows:
            for name, value in zip(names, row.tolist(), strict=True):
                if value and (name in kept or ".f" not in name):
                    edges[name, target] = edges.get((name, target), 0) + value / 3
    assert found.scores == pytest.approx(totals, abs=1e-4)
    assert set(found.edges) <= set(edges)
    size = max(map(abs, edges.values()))
    assert all(abs(edges[e] - found.edges.get(e, 0.0)) < 1e-4 * size for e in edges)
    assert {n.node.__str__(): n.active for n in found.nodes} == {n: fires.get(n, 0) / 3 for n in found.names}
    assert {"t0.err", "t1.err", "t2.err", "input"} == set(found.errors)
    data = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert [one["name"] for one in data["nodes"]] == list(found.names)
    assert len(data["edges"]) == len(found.edges)
    assert data["frozen"]["faithfulness"] == found.frozen.value
    assert data["live"]["circuit"] == found.live.circuit


def test_evaluations_can_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = runs_for("ln", count=2)
    heard: list[str] = []
    found = features_graph(runs, made_for(runs), target=0.95, evaluations=3, report=heard.append)
    assert not found.minimal
    assert len(found.nodes) == found.prefix
    assert any("reach 0.95" in text for text in heard)


def test_refusals() -> None:
    runs = runs_for("ln", count=2)
    made = made_for(runs)
    for target in (0.0, 1.5):
        with pytest.raises(UsageError, match="cannot be aimed at"):
            features_graph(runs, made, target=target)
    with pytest.raises(UsageError, match="no dictionaries"):
        features_graph(runs, {})
    with pytest.raises(UnsupportedError, match="accuracy"):
        features_graph(families.runs_of(runs.model, runs.pairs, "accuracy"), made)
    with pytest.raises(UnsupportedError, match="needs transcoders"):
        features_graph(runs, {0: random_dictionary(runs.model, 0, kind="sae", site_in="mlp_out")})
    silent = {0: random_dictionary(runs.model, 0, b_enc=torch.full((10,), -1e3))}
    with pytest.raises(RunError, match="no feature changes the metric"):
        features_graph(runs, silent)
    assert module.EVALUATIONS > 100


def test_features_that_do_not_help_are_told() -> None:
    runs = runs_for("gemma2", count=4)
    with pytest.raises(RunError, match="no circuit of features"):
        features_graph(runs, made_for(runs, cross=True))
