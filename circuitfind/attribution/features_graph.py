"""The transcoder features that a task needs, with attention frozen: scored by attribution, pruned by really ablating them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from circuitfind.attribution.ablation import Ablation, Masks
from circuitfind.attribution.contrast import Contrast, contrast
from circuitfind.attribution.reads import check_transcoder
from circuitfind.circuit.evaluate import bootstrap_ratio
from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.errors import RunError, UsageError
from circuitfind.model.runs import Runs
from circuitfind.names import Kind, Node, unit

INPUT, LOGITS = "input", "logits"
EVALUATIONS = 2000


@dataclass(frozen=True)
class FeatureNode:
    """A feature of a task.

    Attributes:
        node: Its name.
        score: (clean - corrupted activation) times the total gradient of the metric, summed over positions, averaged over pairs.
        active: Share of clean prompts in which it fires.
    """

    node: Node
    score: float
    active: float


@dataclass(frozen=True)
class Faithfulness:
    """(m(C) - m(empty)) / (m(full) - m(empty)) of means over prompts; in the empty circuit every feature is corrupted.

    Attributes:
        low, high: Ends of its 95 % bootstrap interval over prompts.
    """

    circuit: float
    full: float
    empty: float
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(
        cls,
        circuit: Float[np.ndarray, " prompt"],
        full: Float[np.ndarray, " prompt"],
        empty: Float[np.ndarray, " prompt"],
    ) -> Faithfulness:
        """From the metric of each prompt."""
        low, high = bootstrap_ratio(circuit - empty, full - empty, seed=0)
        return cls(float(circuit.mean()), float(full.mean()), float(empty.mean()), low, high)

    @property
    def value(self) -> float:
        gap = self.full - self.empty
        return (self.circuit - self.empty) / gap if gap else float("nan")

    def as_dict(self) -> dict[str, float]:
        return {"faithfulness": self.value, **vars(self)}


@dataclass(frozen=True)
class FeaturesGraph:
    """The features of a task.

    Attributes:
        nodes: What is kept, the strongest first.
        edges: (source, target) to the part of the source's score that passes the target next; between kept features, from
            ``input`` and errors to them, and to ``logits``.
        errors: Score of each layer's error, by name; the embedding's under ``input``.
        frozen: Of the kept features with attention patterns and norm scales frozen at the clean run.
        live: Of the same features with attention live.
        error_share: How much of the drop from the full run to one with features and errors corrupted comes when errors alone are.
        target: Faithfulness asked for, with attention frozen.
        candidates: Features that fire anywhere.
        prefix: How many of the ranking reached the target before any was dropped.
        minimal: Whether each kept feature was tried for dropping.
        evaluations: Runs of all pairs with features ablated.
        n_prompts: Pairs.
    """

    nodes: tuple[FeatureNode, ...]
    edges: Mapping[tuple[str, str], float]
    errors: Mapping[str, float]
    frozen: Faithfulness
    live: Faithfulness
    error_share: float
    target: float
    candidates: int
    prefix: int
    minimal: bool
    evaluations: int
    n_prompts: int
    scores: Mapping[str, float] = field(default_factory=dict, repr=False)
    """Of every candidate."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(str(one.node) for one in self.nodes)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, the scores of features that are not kept left out."""
        told = {name: getattr(self, name) for name in _TOLD}
        return {
            **told,
            "nodes": [
                {"name": str(one.node), "score": one.score, "active": one.active} for one in self.nodes
            ],
            "edges": [
                {"source": source, "target": target, "weight": weight}
                for (source, target), weight in self.edges.items()
            ],
            "errors": dict(self.errors),
            "frozen": self.frozen.as_dict(),
            "live": self.live.as_dict(),
        }


_TOLD = ("target", "error_share", "candidates", "prefix", "minimal", "evaluations", "n_prompts")


def features_graph(
    runs: Runs,
    dictionaries: Mapping[int, Dictionary] | Iterable[Dictionary],
    *,
    target: float = 0.9,
    evaluations: int = EVALUATIONS,
    report: Callable[[str], None] = lambda text: None,
) -> FeaturesGraph:
    """Find a small set of features that carries a task, attention patterns and norm scales being those of the clean run.

    Every feature that fires is scored; the smallest prefix of the ranking is found whose ablation leaves ``target`` of the
    effect of all features, and what is not needed is dropped from it, the weakest first.

    Args:
        runs: The pairs and a metric with a gradient.
        dictionaries: Transcoders, or a cross-layer transcoder, of some or all layers.
        target: Faithfulness to reach with attention frozen.
        evaluations: Sets of features to try at the most.
        report: Hears what is being done.

    Raises:
        UnsupportedError: The metric has no gradient, or a dictionary is no transcoder of this model.
        UsageError: There are no dictionaries, or the target is no faithfulness.
        RunError: No feature changes the metric.
    """
    if not 0 < target <= 1:
        raise UsageError(f"a faithfulness of {target} cannot be aimed at", hint="give a share such as 0.9")
    runs.check_gradient("clean")
    given = dictionaries.values() if isinstance(dictionaries, Mapping) else dictionaries
    made = {one.layer: one.to(runs.model.device) for one in given}
    if not made:
        raise UsageError("there are no dictionaries", hint="give a folder that holds some")
    for one in made.values():
        check_transcoder(one, runs.model)
    scored = _Scores(runs, made, report)
    ablation = Ablation(runs, made, scored.candidates)
    search = _Search(scored, ablation, target, evaluations)
    kept = search.prefix()
    report(f"{len(kept)} of {len(scored.order)} features reach {target:g}; dropping what is not needed")
    prefix = len(kept)
    kept, minimal = search.drop(kept)
    mask = search.mask(kept)
    frozen, live = (
        Faithfulness.of(
            ablation.values(mask, attention=attention),
            ablation.values(ablation.everything(), attention=attention),
            ablation.values(ablation.nothing(), attention=attention),
        )
        for attention in (False, True)
    )
    full, none = search.full, ablation.metric(ablation.nothing(), errors=False)
    missed = full - ablation.metric(ablation.everything(), errors=False)
    report("edges between what is kept")
    edges = scored.edges(mask)
    return FeaturesGraph(
        nodes=tuple(scored.node(i) for i in scored.order if i in set(kept)),
        edges=edges,
        errors=scored.errors,
        frozen=frozen,
        live=live,
        error_share=missed / (full - none) if full != none else float("nan"),
        target=target,
        candidates=len(scored.order),
        prefix=prefix,
        minimal=minimal,
        evaluations=ablation.evaluations,
        n_prompts=len(runs),
        scores={scored.name(i): float(scored.values[i]) for i in scored.order},
    )


class _Scores:
    """Scores of all features that fire, and contrasts made again where edges are asked for: they are cheap, and large."""

    def __init__(
        self, runs: Runs, dictionaries: Mapping[int, Dictionary], report: Callable[[str], None]
    ) -> None:
        self._runs, self._dictionaries = runs, dictionaries
        report(f"scoring features on {len(runs)} pairs")
        totals = {layer: np.zeros(one.n_features) for layer, one in dictionaries.items()}
        fires = {layer: np.zeros(one.n_features) for layer, one in dictionaries.items()}
        seen = {layer: np.zeros(one.n_features, dtype=bool) for layer, one in dictionaries.items()}
        errors: dict[str, float] = defaultdict(float)
        for number in range(len(runs)):
            one = contrast(runs, number, dictionaries)
            for layer, active in one.clean.active.items():
                index = active.index.cpu().numpy()
                np.add.at(totals[layer], index, one.scores(layer).double().cpu().numpy())
                fires[layer][np.unique(index[(active.activation > 0).cpu().numpy()])] += 1
                seen[layer][index] = True
            for layer in range(len(runs.model.layers)):
                errors[f"t{layer}.err"] += one.error_score(layer) / len(runs)
            errors[INPUT] += one.input_score / len(runs)
        self.errors = dict(errors)
        self.candidates = {layer: np.flatnonzero(there) for layer, there in seen.items()}
        self._layer = np.concatenate([np.full(len(i), layer) for layer, i in self.candidates.items()])
        self._place = np.concatenate([np.arange(len(i)) for i in self.candidates.values()])
        self._index = np.concatenate(list(self.candidates.values()))
        self.values = np.concatenate([totals[la][i] for la, i in self.candidates.items()]) / len(runs)
        self._fires = np.concatenate([fires[la][i] for la, i in self.candidates.items()]) / len(runs)
        if not np.abs(self.values).max(initial=0) > 0:
            raise RunError(
                "no feature changes the metric: their scores are all zero",
                hint="check that the corrupted prompts differ before the answer position, and that features fire",
            )
        self.order = [int(i) for i in np.argsort(-np.abs(self.values), kind="stable")]

    def name(self, i: int) -> str:
        return f"t{self._layer[i]}.f{self._index[i]}"

    def node(self, i: int) -> FeatureNode:
        named = unit(Kind.FEATURE, "t", int(self._layer[i]), [int(self._index[i])])
        return FeatureNode(named, float(self.values[i]), float(self._fires[i]))

    def mask(self, kept: Iterable[int], empty: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        for i in kept:
            empty[int(self._layer[i])][self._place[i]] = True
        return empty

    def edges(self, mask: Masks) -> dict[tuple[str, str], float]:
        """Edges between kept features, from the input and errors to them, and to the logits; averaged over pairs."""
        kept = {layer: self.candidates[layer][there] for layer, there in mask.items()}
        found: dict[tuple[str, str], float] = defaultdict(float)
        with torch.no_grad():
            for number in range(len(self._runs)):
                one = contrast(self._runs, number, self._dictionaries)
                columns, names = _columns(one, kept)
                for target, row in _rows(one, kept):
                    sums = np.bincount(columns[columns >= 0], row[columns >= 0], minlength=len(names))
                    for name, value in zip(names, sums, strict=True):
                        if value:
                            found[name, target] += float(value) / len(self._runs)
        return dict(sorted(found.items()))


def _columns(one: Contrast, kept: Mapping[int, np.ndarray]) -> tuple[np.ndarray, list[str]]:
    """For each source the number of its name, -1 of features that are not kept; and the names."""
    linear = one.linear
    columns = np.full(linear.n_columns, -1)
    names = [INPUT]
    columns[: linear.n_pos] = 0
    for layer, (first, errors) in linear.starts.items():
        if layer in one.clean.active:
            index = one.clean.active[layer].index.cpu().numpy()
            for feature in kept[layer]:
                columns[first : first + len(index)][index == feature] = len(names)
                names.append(f"t{layer}.f{feature}")
        columns[errors : errors + linear.n_pos] = len(names)
        names.append(f"t{layer}.err")
    return columns, names


def _rows(one: Contrast, kept: Mapping[int, np.ndarray]) -> Iterable[tuple[str, np.ndarray]]:
    """Each kept feature, and the logits, with what every source adds by way of it."""
    for layer, active in one.clean.active.items():
        index = active.index.cpu().numpy()
        chosen = np.flatnonzero(np.isin(index, kept[layer]) & (active.activation > 0).cpu().numpy())
        if len(chosen):
            rows = one.edges_into(layer, torch.from_numpy(chosen).to(active.index.device))
            rows_cpu = rows.double().cpu().numpy()
            for feature in np.unique(index[chosen]):
                yield f"t{layer}.f{feature}", rows_cpu[index[chosen] == feature].sum(0)
    yield LOGITS, one.edges_into_logits().double().cpu().numpy()


class _Search:
    """From the ranking to a small set that reaches the target."""

    def __init__(self, scored: _Scores, ablation: Ablation, target: float, budget: int) -> None:
        self._scored, self._ablation = scored, ablation
        self._target, self._budget = target, budget
        self.full = ablation.metric(ablation.everything())
        self.empty = ablation.metric(ablation.nothing())
        if not self.full - self.empty > 1e-2 * max(abs(self.full), abs(self.empty), 1e-6):
            raise RunError(
                f"the metric is {self.full:.4g} in the model and {self.empty:.4g} with every feature ablated, attention "
                "frozen: there is no circuit of features to find",
                hint="give transcoders of more layers, or prompts that differ in more than what attention moves",
            )

    def mask(self, kept: Iterable[int]) -> dict[int, np.ndarray]:
        return self._scored.mask(kept, self._ablation.nothing())

    def value(self, kept: Iterable[int]) -> float:
        """The metric with these features live."""
        return self._ablation.metric(self.mask(kept))

    def _reaches(self, kept: list[int]) -> bool:
        return Faithfulness(self.value(kept), self.full, self.empty).value >= self._target

    def prefix(self) -> list[int]:
        """The shortest prefix of the ranking that reaches the target, by a growing grid and then by halving."""
        order = self._scored.order
        low, size = 0, 1
        while size < len(order) and not self._reaches(order[:size]):
            low, size = size, max(size + 1, int(size * 1.5))
        high = min(size, len(order))  # all of them reach any target: that is the clean run
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._reaches(order[:middle]) else (middle, high)
        return order[:high]

    def drop(self, kept: list[int]) -> tuple[list[int], bool]:
        """Drop groups of the weakest, then single features, as long as the target holds."""
        group = max(1, len(kept) // 4)
        while True:
            at = before = len(kept)
            while at > 0:
                if self._ablation.evaluations >= self._budget:
                    return kept, False
                start = max(0, at - group)
                trial = kept[:start] + kept[at:]
                if trial and self._reaches(trial):
                    kept = trial
                at = start
            if group == 1 and len(kept) == before:  # where one went, another may be free to go
                return kept, True
            group = max(1, group // 2)
