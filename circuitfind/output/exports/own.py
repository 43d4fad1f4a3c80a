"""The form of this program: what was read from a file of another one."""

from __future__ import annotations

import json

from circuitfind.circuit.graph import Circuit
from circuitfind.output.exports.form import Exported, Source

ENDING = ".circuitfind.json"


def own(source: Source) -> Exported:
    """``circuit.json`` of a circuit, ``graph.json`` of a feature graph."""
    what = source.what
    counts = {"nodes": len(what.nodes), "edges": len(what.edges)}
    notes: tuple[str, ...] = ()
    if isinstance(what, Circuit):
        text = json.dumps(what.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        if source.scores is not None:
            notes = ("a circuit.json holds the scores of its own edges alone",)
        return Exported({ENDING: text}, counts, notes)
    return Exported({ENDING: what.text()}, counts, notes)
