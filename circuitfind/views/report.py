"""``views.json`` as plain data (docs/views-json.md). No torch here."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from circuitfind.circuit.graph import Interval
from circuitfind.circuit.json_form import check_form, filled, finite, read_object, reading

FORMAT, VERSION = "circuitfind.views", 1

FILE = "views.json"

DIGITS = 7
"""Significant digits of a number in the file: those of single precision."""

Side = Literal["clean", "corrupted"]
BandOf = Literal["rankings", "circuits"]


def short(value: float | None) -> float | None:
    """A number as the file holds it; None for NaN and infinity."""
    found = finite(value)
    return None if found is None else float(f"{found:.{DIGITS}g}")


@dataclass(frozen=True)
class Bounds:
    """A value and the ends of its 95 % bootstrap interval over prompts; None for an end that is unbounded."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, found: Interval) -> Bounds:
        """An interval, rounded."""
        return cls(float(f"{found.value:.{DIGITS}g}"), short(found.low), short(found.high))


@dataclass(frozen=True)
class Column:
    """Bounds of every writer."""

    value: tuple[float, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]

    @classmethod
    def of(cls, found: Sequence[Interval]) -> Column:
        """Intervals, rounded."""
        rows = [Bounds.of(one) for one in found]
        return cls(tuple(r.value for r in rows), tuple(r.low for r in rows), tuple(r.high for r in rows))


@dataclass(frozen=True)
class Effects:
    """What every writer does to the metric: means over prompts.

    Attributes:
        nodes: Writers in the order of the forward pass.
        metric, ablation: What is measured, and what replaced parts carry.
        n_prompts: Pairs that it is measured on.
        full, empty: The metric of the model, and with every edge ablated.
        noising: What the metric loses when the node alone is replaced.
        denoising: What the metric of the corrupted run gains when the node alone has its clean value.
        direct: What the node writes straight to the metric, with the final norm's scale frozen, in units of ``direct_metric``.
        direct_metric: ``logit-diff``, whatever the metric; None without ``direct``.
        direct_rest: That metric less the sum of ``direct``: what biases write and, where an answer is a set of tokens, what
            is not linear; None without ``direct``.
    """

    nodes: tuple[str, ...]
    metric: str
    ablation: str
    n_prompts: int
    full: float
    empty: float | None
    noising: Column | None
    denoising: Column | None
    direct: Column | None
    direct_metric: str | None = None
    direct_rest: float | None = None


@dataclass(frozen=True)
class Band:
    """Faithfulness at each of the curve's sizes of random rankings (or circuits): mean, 2.5 and 97.5 % quantile over them.

    Attributes:
        of: Rankings, as the MIB benchmark's random baseline has it, or circuits of the same sizes.
        count: Of them.
        n_prompts: Pairs that they were run on.
    """

    of: BandOf
    count: int
    n_prompts: int
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """A circuit on the plane of the curve, measured on so many pairs."""

    edges: int
    n_prompts: int
    faithfulness: Bounds
    completeness: Bounds


@dataclass(frozen=True)
class Curve:
    """Nested circuits of the strongest edges by |score|.

    Attributes:
        ablation: What cut edges carry.
        n_prompts: Pairs that they are run on.
        edges: How many of the strongest edges each circuit was made of.
        connected: How many of them lie on a way from the input to the logits: its size.
        faithfulness: Of each circuit.
        completeness: What is left of the behaviour without it; 0 is complete.
        random: What chance does at the same sizes; None where it was not measured.
        circuit: The run's own circuit.
    """

    ablation: str
    n_prompts: int
    edges: tuple[int, ...]
    connected: tuple[int, ...]
    faithfulness: tuple[Bounds, ...]
    completeness: tuple[Bounds, ...]
    random: Band | None
    circuit: Point


@dataclass(frozen=True)
class Shown:
    """A prompt whose attention is kept.

    Attributes:
        pair: Line of the pair in ``prompts.jsonl``, counted from 0.
        side: Which of its prompts.
        tokens: Up to the answer position.
        why: ``typical``, ``best``, ``worst``, ``outlier`` or ``template ...``.
    """

    pair: int
    side: Side
    tokens: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Patterns:
    """Attention of some heads on some prompts, in steps of 1/255.

    Attributes:
        prompts: Which.
        heads: By head, strongest first, one pattern a prompt: base64 of bytes, row by row, [destination, source].
    """

    prompts: tuple[Shown, ...]
    heads: Mapping[str, tuple[str, ...]]

    def matrix(self, head: str, prompt: int) -> Float[np.ndarray, "destination source"]:
        """One pattern as numbers between 0 and 1.

        Raises:
            KeyError, IndexError: There is none.
        """
        size = len(self.prompts[prompt].tokens)
        data = base64.b64decode(self.heads[head][prompt])
        return np.frombuffer(data, dtype=np.uint8).reshape(size, size) / 255


@dataclass(frozen=True)
class PromptRow:
    """A pair that the circuit was found on.

    Attributes:
        pair: Line in ``prompts.jsonl``, counted from 0.
        clean, corrupted: Texts; the latter None where parts carry another model's values.
        answer, wrong: Tokens; those of a set with ``|`` between them.
        template, where: Which prompts it was drawn with, and where it stands.
        right: Whether the answer is likelier than the wrong one.
        predicted: The likeliest token.
        clean_metric, corrupted_metric, circuit_metric, empty_metric: The metric in the model, on the corrupted prompt, in
            the circuit, and with every edge ablated.
        outlier: Why the circuit is said to miss this prompt; None where it does not.
    """

    pair: int
    clean: str
    corrupted: str | None
    answer: str
    wrong: str | None
    template: str
    where: str
    right: bool
    predicted: str
    clean_metric: float
    corrupted_metric: float | None
    circuit_metric: float | None
    empty_metric: float | None
    outlier: str | None


@dataclass(frozen=True)
class Views:
    """All of it.

    Attributes:
        conditions: Those of the circuit.
        missing: By part, why the run does not have it; of ``effects`` also ``noising``, ``denoising`` and ``direct``, of
            ``curve`` also ``random``.
        notes: What a reader should know.
    """

    conditions: Mapping[str, Any]
    effects: Effects | None
    curve: Curve | None
    patterns: Patterns | None
    prompts: tuple[PromptRow, ...] | None
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str | None = None) -> Views:
        """Read the JSON form.

        Raises:
            UsageError: It is another format or version, or incomplete.
        """
        again = "run the same discover command again with --force"
        check_form(data, "views file", FORMAT, VERSION, where=where, hint=again)
        with reading("views file", where=where, hint=again):
            prompts = data["prompts"]
            fields = {
                "conditions": data["conditions"],
                "effects": _maybe(_effects, data["effects"]),
                "curve": _maybe(_curve, data["curve"]),
                "patterns": _maybe(_patterns, data["patterns"]),
                "prompts": None if prompts is None else tuple(filled(PromptRow, row) for row in prompts),
                "missing": data["missing"],
                "notes": tuple(data.get("notes", ())),
            }
            return filled(cls, fields)

    @classmethod
    def load(cls, path: Path) -> Views:
        """Read a ``views.json``.

        Raises:
            UsageError: It cannot be read.
        """
        return cls.from_dict(read_object(path, "views file", file=FILE), where=str(path))


def _maybe(read: Any, data: Any) -> Any:
    return None if data is None else read(data)


def _column(data: Mapping[str, Any]) -> Column:
    return filled(Column, {name: tuple(values) for name, values in data.items()})


def _effects(data: Mapping[str, Any]) -> Effects:
    columns = {name: _maybe(_column, data[name]) for name in ("noising", "denoising", "direct")}
    return filled(Effects, {**data, **columns, "nodes": tuple(data["nodes"])})


def _curve(data: Mapping[str, Any]) -> Curve:
    def band(found: Mapping[str, Any]) -> Band:
        return filled(Band, {**found, **{name: tuple(found[name]) for name in ("mean", "low", "high")}})

    def point(found: Mapping[str, Any]) -> Point:
        both = {name: filled(Bounds, found[name]) for name in ("faithfulness", "completeness")}
        return filled(Point, {**found, **both})

    found = {
        "edges": tuple(data["edges"]),
        "connected": tuple(data["connected"]),
        "faithfulness": tuple(filled(Bounds, one) for one in data["faithfulness"]),
        "completeness": tuple(filled(Bounds, one) for one in data["completeness"]),
        "random": _maybe(band, data["random"]),
        "circuit": point(data["circuit"]),
    }
    return filled(Curve, {**data, **found})


def _patterns(data: Mapping[str, Any]) -> Patterns:
    shown = tuple(filled(Shown, {**one, "tokens": tuple(one["tokens"])}) for one in data["prompts"])
    heads = {name: tuple(found) for name, found in data["heads"].items()}
    return filled(Patterns, {"prompts": shown, "heads": heads})
