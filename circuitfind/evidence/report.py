"""Evidence: what speaks for a circuit and against it, as plain data. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from circuitfind.circuit.graph import Evaluation, Interval
from circuitfind.circuit.intervals import plain
from circuitfind.circuit.json_form import check_form, filled, finite, number, read_object, reading
from circuitfind.config import SCHEMA_VERSION
from circuitfind.shown import Shown

FORMAT = "circuitfind.evidence"
PARTS = (
    "as_nodes",
    "by_template",
    "outliers",
    "completeness",
    "minimality",
    "curve",
    "tests",
    "stability",
    "counterfactuals",
    "seeds",
    "known",
)
"""What an evaluation that is asked for adds; each is the plain data of its module in ``evidence/``."""


@dataclass(frozen=True)
class Prompts:
    """What a circuit was measured on.

    Attributes:
        held_out: Whether its clean prompts are others than those that the circuit was pruned on; None where these are
            not known, as of a circuit in a file.
        aligned: How many lined up, answered rightly or not.
        right: How many the model answered rightly; faithfulness is measured on these.
        accuracy: Share of the aligned ones, with its 95 % interval (Clopper and Pearson 1934).
        gap: Metric of the model minus that with every edge ablated, the mean over all aligned ones.
    """

    held_out: bool | None
    aligned: int
    right: int
    accuracy: Interval
    gap: Interval
    content_hash: str = ""


@dataclass(frozen=True)
class Control:
    """A circuit or a task that the circuit must do better than.

    Attributes:
        name: ``random circuits``, ``shuffled pairs``, ``shuffled weights``, ``cross-task``.
        what: What was done, in words.
        statistic: What ``own`` and ``values`` are.
        own: Of the circuit.
        values: Of each draw of the control.
        beaten: Whether the circuit does better; None where the control could not be made, and ``what`` says why.
        p_value: Of a rank test, else NaN.
        difference: How much worse the control is, with its interval over prompts, where it is one circuit.
    """

    name: str
    what: str
    statistic: str
    own: float
    values: tuple[float, ...]
    beaten: bool | None
    p_value: float = float("nan")
    difference: Interval | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data; what is not finite is null."""
        found = asdict(self)
        return found | {
            "own": finite(self.own),
            "values": [finite(x) for x in self.values],
            "p_value": finite(self.p_value),
            "difference": None if self.difference is None else plain(self.difference),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Control:
        """Read what ``as_dict`` wrote."""
        gap = data["difference"]
        return filled(
            cls,
            {
                **data,
                "own": number(data["own"]),
                "values": tuple(number(x) for x in data["values"]),
                "p_value": number(data["p_value"]),
                "difference": None
                if gap is None
                else filled(Interval, {k: number(x) for k, x in gap.items()}),
            },
        )


@dataclass(frozen=True)
class Evidence(Shown):
    """All that was measured of one circuit.

    Attributes:
        conditions: Those of the circuit.
        edges, edges_in_model: Its size.
        prompts: What it was measured on.
        measured: Faithfulness on these, one for each ablation, that of the circuit first.
        controls: What it was held against.
        notes: What could not be measured, and why.
        parts: What an evaluation added, by the names of ``PARTS``.
    """

    conditions: Mapping[str, Any]
    edges: int
    edges_in_model: int
    prompts: Prompts
    measured: tuple[Evaluation, ...]
    controls: tuple[Control, ...]
    notes: tuple[str, ...] = ()
    parts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = set(self.parts) - set(PARTS)
        if unknown:
            raise ValueError(f"evidence has no part {sorted(unknown)}")

    def under(self, ablation: str) -> Evaluation | None:
        """What was measured under an ablation."""
        return next((one for one in self.measured if one.ablation == ablation), None)

    def with_parts(self, **parts: Any) -> Evidence:
        """The same with more parts."""
        return replace(self, parts={**self.parts, **parts})

    def as_dict(self) -> dict[str, Any]:
        """The JSON form (docs/evidence-json.md)."""
        return {
            "format": FORMAT,
            "version": SCHEMA_VERSION,
            "conditions": dict(self.conditions),
            "edges": self.edges,
            "edges_in_model": self.edges_in_model,
            "prompts": asdict(self.prompts),
            "measured": [one.as_dict() for one in self.measured],
            "controls": [one.as_dict() for one in self.controls],
            "notes": list(self.notes),
            **{name: self.parts.get(name) for name in PARTS},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str | None = None) -> Evidence:
        """Read the JSON form; other keys are left alone.

        Raises:
            UsageError: It is another format or version, or incomplete.
        """
        hint = "give `circuitfind evaluate RUN` again"
        check_form(data, "evidence", FORMAT, SCHEMA_VERSION, where=where, hint=hint)
        with reading("evidence", where=where, hint=hint):
            prompts = data["prompts"]
            intervals = {name: filled(Interval, prompts[name]) for name in ("accuracy", "gap")}
            fields = {
                "conditions": data["conditions"],
                "edges": data["edges"],
                "edges_in_model": data["edges_in_model"],
                "prompts": filled(Prompts, {**prompts, **intervals}),
                "measured": tuple(map(Evaluation.from_dict, data["measured"])),
                "controls": tuple(map(Control.from_dict, data["controls"])),
                "notes": tuple(data["notes"]),
                "parts": {name: data[name] for name in PARTS if data.get(name) is not None},
            }
            return filled(cls, fields)

    @classmethod
    def load(cls, path: Path) -> Evidence:
        """Read an ``evidence.json``."""
        return cls.from_dict(read_object(path, "evidence", file="evidence.json"), where=str(path))
