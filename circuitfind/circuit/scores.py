"""Scores: what a method says of every node or edge. NumPy only; from here on no model is needed.

Arrays are indexed by the writers and readers of an ``Anatomy``. What was not computed, or does not exist, is NaN, never
zero.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitfind.config import SCHEMA_VERSION, Level
from circuitfind.errors import RunError
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import Edge, Node
from circuitfind.reading import parse_json, read_arrays
from circuitfind.shown import Shown

FORMAT = "circuitfind.scores"
_OPTIONAL = ("nodes", "per_prompt", "by_position")
_EXTRA = "extra."


@dataclass(frozen=True)
class Scores(Shown):
    """The result of one method on one task and model.

    Attributes:
        anatomy: What the arrays are indexed by.
        level: ``node`` or ``edge``.
        values: ``[writer]`` for nodes, ``[writer, reader]`` for edges, in units of the metric. The sign is that of the
            change in the metric: positive where the clean value of the node or edge helps the answer.
        method, direction, metric, ablation: How the values came about.
        nodes: For edge methods, the node attribution that the edges of each writer sum to. ``[writer]``
        per_prompt: ``[prompt, writer]`` for node methods that keep each prompt apart, else None.
        by_position: ``[position, *values]``, signed, where positions were kept apart; ``values`` are then the sums of its
            absolute values over positions, so that positions do not cancel.
        position_names: Names of the first axis of ``by_position``.
        extra: Further arrays by name, such as both directions of activation patching and their interaction.
        facts: Whatever else the method reports (passes, self-checks).
    """

    anatomy: Anatomy
    level: Level
    values: Float[np.ndarray, ...]
    method: str
    direction: str
    metric: str
    ablation: str
    nodes: Float[np.ndarray, " writer"] | None = None
    per_prompt: Float[np.ndarray, "prompt writer"] | None = None
    by_position: Float[np.ndarray, "position ..."] | None = None
    position_names: tuple[str, ...] | None = None
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape: tuple[int, ...] = (len(self.anatomy.writers),)
        if self.level == "edge":
            shape += (len(self.anatomy.readers),)
        if self.values.shape != shape:
            raise ValueError(f"scores of shape {self.values.shape}, expected {shape}")
        if (self.by_position is None) != (self.position_names is None):
            raise ValueError("positions need names, and names positions")
        for array in (self.values, self.nodes, self.per_prompt, self.by_position, *self.extra.values()):
            if array is not None:
                array.flags.writeable = False

    @cached_property
    def node_values(self) -> Float[np.ndarray, " writer"]:
        """One value for each writer, from node scores or from what comes with the edges."""
        if self.level == "node":
            return self.values
        if self.nodes is not None:
            return self.nodes
        return np.asarray(np.nansum(self.values, axis=1))

    def ranked_edges(self) -> list[tuple[int, int]]:
        """(writer, reader) of every scored edge, strongest first; ties by position, so the order never wobbles."""
        if self.level != "edge":
            raise ValueError("node scores rank no edges")
        size = np.where(np.isnan(self.values), -1.0, np.abs(self.values)).ravel()
        order = np.argsort(-size, kind="stable")[: int((size >= 0).sum())]
        width = self.values.shape[1]
        return [(int(i) // width, int(i) % width) for i in order]

    def top_edges(self, count: int) -> Iterator[tuple[Edge, float]]:
        """The strongest edges with their values."""
        for w, r in self.ranked_edges()[:count]:
            yield self.anatomy.edge_at(w, r), float(self.values[w, r])

    def top_nodes(self, count: int) -> Iterator[tuple[Node, float]]:
        """The strongest writers with their values."""
        values = self.node_values
        size = np.where(np.isnan(values), -1.0, np.abs(values))
        for w in np.argsort(-size, kind="stable")[:count]:
            if size[w] >= 0:
                yield self.anatomy.writers[int(w)], float(values[w])

    # Files: one .npz with the arrays and a JSON header, so that nothing is ever unpickled.

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything, as arrays for one ``.npz`` file."""
        header = {
            "format": FORMAT,
            "version": SCHEMA_VERSION,
            "anatomy": self.anatomy.as_dict(),
            "level": self.level,
            "method": self.method,
            "direction": self.direction,
            "metric": self.metric,
            "ablation": self.ablation,
            "position_names": self.position_names,
            "facts": dict(self.facts),
        }
        found = {"header": np.array(json.dumps(header)), "values": self.values}
        for name in _OPTIONAL:
            array = getattr(self, name)
            if array is not None:
                found[name] = array
        return found | {_EXTRA + name: array for name, array in self.extra.items()}

    def to_bytes(self) -> bytes:
        """The content of that file."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **self.arrays())  # type: ignore[arg-type]  # numpy's stub takes no str arrays
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Read what ``arrays`` wrote.

        Raises:
            RunError: The file is damaged or of another version.
        """
        again = "run the same discover command with --force"
        try:
            arrays = read_arrays(path)
            header = parse_json(str(arrays.pop("header")), words=True)
            told = (header.get("format"), header.get("version"))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise RunError(f"cannot read the scores: {error}", where=str(path), hint=again) from error
        if told != (FORMAT, SCHEMA_VERSION):
            what = f"scores of version {told[1]}; this program reads version {SCHEMA_VERSION}"
            later = isinstance(told[1], int) and told[1] > SCHEMA_VERSION
            hint = "a later version of circuitfind wrote it: update circuitfind" if later else again
            raise RunError(what, where=str(path), hint=hint)
        try:
            return cls._of(header, arrays)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"the scores are incomplete: {error}", where=str(path), hint=again) from error

    @classmethod
    def _of(cls, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Scores:
        """What a file holds, each array of the numbers and sides that it must have."""
        anatomy, names = Anatomy.from_dict(header["anatomy"]), header.get("position_names")
        values = arrays["values"]
        writers = len(anatomy.writers)
        sides = {"nodes": (writers,), "per_prompt": (None, writers), "by_position": (None, *values.shape)}
        for name, array in arrays.items():
            if array.dtype.kind not in "fiub":
                raise TypeError(f"'{name}' holds {str(array.dtype)[:40]}, not numbers")
            wanted = sides.get(name)
            fits = wanted is None or (
                array.ndim == len(wanted)
                and all(want in (None, side) for want, side in zip(wanted, array.shape, strict=True))
            )
            if not fits:
                raise ValueError(f"'{name}' is {list(array.shape)}")
        told: dict[str, Any] = {key: header[key] for key in ("method", "direction", "metric", "ablation")}
        if header["level"] not in ("node", "edge") or not all(isinstance(x, str) for x in told.values()):
            raise ValueError("the header says no level, method, direction, metric or ablation")
        if not isinstance(header["facts"], dict):
            raise TypeError("'facts' is no object")
        return cls(
            anatomy=anatomy,
            level=header["level"],
            values=values,
            nodes=arrays.get("nodes"),
            per_prompt=arrays.get("per_prompt"),
            by_position=arrays.get("by_position"),
            position_names=None if names is None else tuple(map(str, names)),
            extra={name.removeprefix(_EXTRA): a for name, a in arrays.items() if name.startswith(_EXTRA)},
            facts=header["facts"],
            **told,
        )
