"""The stage that computes what a report shows: exact effects, the curve of nested circuits, attention, and every prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float

from circuitfind.circuit.graph import Circuit
from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction
from circuitfind.errors import CircuitfindError, UnsupportedError
from circuitfind.names import Node
from circuitfind.output.store import stage_key
from circuitfind.session import Session
from circuitfind.views.report import (
    DIGITS,
    FILE,
    Band,
    Column,
    Effects,
    Patterns,
    Point,
    PromptRow,
    Views,
    short,
)

if TYPE_CHECKING:
    from circuitfind.circuit.evaluate import Evaluator
    from circuitfind.model.anatomy import Anatomy
    from circuitfind.model.runs import Runs
    from circuitfind.views.report import Curve

DIRECTIONS: tuple[Direction, ...] = ("noising", "denoising")

FORM = 1
"""Counts up when what is computed changes."""

METRIC = "logit-diff"
"""In which direct effects add up."""

Found = TypeVar("Found")
Made = tuple[dict[str, bytes | str], dict[str, Any]]
Values = Float[np.ndarray, " prompt"]


@dataclass(frozen=True)
class Extent:
    """How much is run.

    Attributes:
        prompts: Pairs, at most, that nodes are patched and circuits are run on; None for all.
        sizes: Of the curve, about.
        rankings: Random ones behind the band.
        few: Pairs that these are run on: they differ by far more than prompts do.
    """

    prompts: int | None
    sizes: int
    rankings: int
    few: int = 8


WIDE, NARROW = Extent(None, 25, 20), Extent(16, 13, 5)
LARGE = 5_000
"""Edges of a model from which less is run."""


def extent(anatomy: Anatomy) -> Extent:
    """How much is run in a model."""
    return WIDE if anatomy.n_edges < LARGE else NARROW


def passes(anatomy: Anatomy, prompts: int, ablation: Ablation) -> tuple[float, float]:
    """Patches of nodes and circuits that the stage runs at the most, in passes over all of so many prompts."""
    chosen = extent(anatomy)
    all_needed = ablation == "mean"
    some, few = (
        1.0 if all_needed or most is None else min(1.0, most / prompts)
        for most in (chosen.prompts, chosen.few)
    )
    nodes = len(anatomy.writers) * (1 + (ablation == "resample"))
    return some * nodes, 3 + chosen.sizes * (2 * some + chosen.rankings * few)


def views_key(before: str) -> str:
    """What views depend on: the circuit."""
    return stage_key(before, "views", FORM)


def views_of(session: Session, circuit: Circuit, scores: Scores) -> Made:
    """Files and facts of the stage."""
    found = look(session, circuit, scores)
    text = json.dumps(found.as_dict(), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
    return {FILE: text}, {"missing": dict(found.missing), "notes": list(found.notes)}


def look(session: Session, circuit: Circuit, scores: Scores) -> Views:
    """All views of a circuit; what cannot be had is missing, with the reason."""
    work = _Work(session, circuit, scores)
    effects, prompts = work.part("effects", work.effects), work.part("prompts", work.prompts)
    curve = work.part("curve", work.curve)
    patterns = work.part("patterns", lambda: work.patterns(effects))
    return Views(
        conditions=vars(circuit.conditions).copy(),
        effects=effects,
        curve=curve,
        patterns=patterns,
        prompts=prompts,
        missing=work.missing,
        notes=tuple(work.notes),
    )


@dataclass
class _Work:
    """What the views are made from."""

    session: Session
    circuit: Circuit
    scores: Scores
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def part(self, name: str, work: Callable[[], Found]) -> Found | None:
        """What some work gives; where it refuses, nothing, and the reason is kept."""
        self.session.reporter.stage("views", "running", name)
        try:
            return work()
        except CircuitfindError as error:
            self.missing[name] = error.what
            return None

    @cached_property
    def runs(self) -> Runs:
        return self.session.runs_for(self.circuit.anatomy)

    @cached_property
    def evaluator(self) -> Evaluator:
        from circuitfind.circuit.evaluate import Evaluator

        return Evaluator(self.runs, self.session.settings.ablation)

    @cached_property
    def extent(self) -> Extent:
        return extent(self.circuit.anatomy)

    @cached_property
    def some(self) -> Evaluator:
        """On as many pairs as nodes are patched and circuits are run on."""
        found = self._first(self.extent.prompts)
        if len(found.runs) < len(self.runs):
            self.notes.append(
                f"effects and curve are measured on the first {len(found.runs)} of {len(self.runs)} pairs, as the model is large"
            )
        return found

    def _first(self, count: int | None) -> Evaluator:
        """On so many of the pairs; on all of them under the mean ablation, whose means are over all."""
        from circuitfind.circuit.evaluate import Evaluator

        runs = self.runs
        if count is None or len(runs) <= count or self.evaluator.ablation == "mean":
            return self.evaluator
        model = runs.model if runs.model.anatomy.split else None
        found = self.session.runs_of(runs.pairs[:count], model=model)
        found.constants = runs.constants
        return Evaluator(found, self.evaluator.ablation)

    @property
    def across(self) -> bool:
        """Whether replaced parts carry another model's values, so that there are no corrupted prompts."""
        return self.session.settings.model_b is not None

    @cached_property
    def own(self) -> Values:
        """The metric of each prompt in the circuit."""
        return np.asarray(self.evaluator.each_once([self.circuit.mask])[0])

    @cached_property
    def piece(self) -> Callable[[int], str]:
        from circuitfind.naming.tokens import reader

        return reader(self.session.model.tokenizer, self.session.spec.vocab)

    # Effects.

    def effects(self) -> Effects:
        from circuitfind.views.effects import means

        evaluator, ablation = self.some, self.session.settings.ablation
        patched = {name: self.part(name, partial(self._patched, name)) for name in DIRECTIONS}
        direct = self.part("direct", self._direct)
        columns = {
            name: None if found is None else Column.of(means(found)) for name, found in patched.items()
        }
        written = rest = None
        if direct is not None:
            values, metric = direct
            written, rest = Column.of(means(values)), short(float((metric - values.sum(0)).mean()))
        return Effects(
            nodes=evaluator.runs.model.anatomy.writer_names,
            metric=evaluator.runs.metric.name,
            ablation=ablation,
            n_prompts=len(evaluator.runs),
            full=_rounded(evaluator.full),
            empty=_rounded(evaluator.empty),
            noising=columns["noising"],
            denoising=columns["denoising"],
            direct=written,
            direct_metric=None if written is None else METRIC,
            direct_rest=rest,
        )

    def _patched(self, direction: Direction) -> Float[np.ndarray, "writer prompt"]:
        from circuitfind.views.effects import patched_effects, scored_effects

        settings, runs = self.session.settings, self.some.runs
        if settings.precision == "fp32":
            known = scored_effects(self.scores, self.runs, direction, settings.ablation)
            if known is not None:
                return known[:, : len(runs)]
        return patched_effects(runs, direction, settings.ablation)

    def _direct(self) -> tuple[Float[np.ndarray, "writer prompt"], Values]:
        """Direct effects, and the metric that they are of."""
        from circuitfind.views.effects import direct_effects

        runs = self.some.runs
        lacking = sum(not pair.wrong for pair in runs.pairs)
        if lacking:
            raise UnsupportedError(
                f"direct effects are of the logit difference, and {lacking} of {len(runs)} pairs have no wrong answer",
                hint="give the task wrong answers",
            )
        if runs.metric.name != METRIC:
            model = runs.model if runs.model.anatomy.split else None
            runs = self.session.runs_of(runs.pairs, METRIC, model=model, edges=False)
        return runs.fitted(lambda: (direct_effects(runs), runs.clean))

    # The curve.

    def curve(self) -> Curve:
        from circuitfind.views.curve import curve, sizes

        anatomy, own, chosen = self.scores.anatomy, self.circuit.mask, self.extent
        edges = sizes(anatomy.n_edges, int(own.sum()), chosen.sizes)
        _ = self.some.gap
        band = self.part("random", lambda: self._band(edges, chosen.rankings))
        return curve(self.some, self.scores, edges, self._point(), band)

    def _point(self) -> Point:
        """The circuit itself, on all pairs."""
        from circuitfind.views.curve import shares

        evaluator, mask = self.evaluator, self.circuit.mask
        without = evaluator.each_once([evaluator.runs.model.anatomy.edge_mask & ~mask])
        faithful, left = shares(evaluator, np.concatenate([self.own[None], without]))
        return Point(int(mask.sum()), len(evaluator.runs), faithful, left)

    def _band(self, edges: list[int], rankings: int) -> Band:
        from circuitfind.evidence.curves import random_rankings

        n_edges, few = self.scores.anatomy.n_edges, self._first(self.extent.few)
        found = random_rankings(few, rankings, shares=[n / n_edges for n in edges])
        rows = [[float(f"{x:.{DIGITS}g}") for x in (s.mean, s.low, s.high)] for s in found.faithfulness]
        mean, low, high = zip(*rows, strict=True)
        return Band(found.of, found.count, len(few.runs), mean, low, high)

    # Prompts.

    def prompts(self) -> tuple[PromptRow, ...]:
        from circuitfind.views.prompts import rows

        return rows(
            self.runs,
            self.session.kept,
            self.piece,
            corrupted=None if self.across else self.runs.corrupted,
            circuit=self.own,
            empty=self.evaluator.empty,
            outliers=self._outliers,
        )

    @cached_property
    def _outliers(self) -> Mapping[int, str]:
        """By place among the pairs, the worst first: what is said of it."""
        from circuitfind.evidence.breakdown import far_ones

        evaluator = self.evaluator
        try:
            _ = evaluator.gap
        except CircuitfindError:
            return {}
        return {
            far.index: f"the circuit {'misses' if far.miss < 0 else 'exceeds'} the model by {abs(far.miss):.0%} of the mean "
            f"effect here, {abs(far.z):.1f} deviations from the other prompts"
            for far in far_ones(self.own, evaluator.full, evaluator.empty)
        }

    # Attention.

    def patterns(self, effects: Effects | None) -> Patterns:
        from circuitfind.views.patterns import Chosen, patterns
        from circuitfind.views.prompts import choose

        heads = self._heads(effects)
        if not heads:
            raise UnsupportedError("no head is in the circuit", hint="find a circuit with heads in it")
        kept, pairs = self.session.kept, self.runs.pairs
        places = choose(self.runs.clean, [pair.group for pair in pairs], list(self._outliers))
        chosen: list[Chosen] = [(kept[place], "clean", why) for place, why in places]
        if not self.across:
            first, _, why = chosen[0]
            chosen.insert(1, (first, "corrupted", why))
        known = dict(zip(kept, pairs, strict=True))
        found, note = patterns(self.session.model, known, chosen, heads, self.piece)
        if found is None:
            raise UnsupportedError(note, hint="use shorter prompts")
        self.notes += [note] if note else []
        return found

    def _heads(self, effects: Effects | None) -> list[Node]:
        """The circuit's heads, each once whatever its positions; the largest effect under patching first."""
        anatomy = self.circuit.anatomy
        size = {name: abs(value) for name, value in self.circuit.node_scores.items() if value == value}
        columns = (
            [] if effects is None else [c for c in (effects.noising, effects.denoising) if c is not None]
        )
        if columns:
            each = np.abs([column.value for column in columns]).max(0)
            size = dict(zip(anatomy.writer_names, each.tolist(), strict=True))
        heads = list(dict.fromkeys(head.bare for head in self.circuit.heads))
        return sorted(heads, key=lambda head: (-size.get(str(head), 0.0), head.order))


def _rounded(values: Values) -> float:
    return float(f"{float(values.mean()):.{DIGITS}g}")
