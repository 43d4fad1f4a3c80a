"""Nodes and edges as CSV: two files, with a line for each."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from circuitfind.output.cells import cell
from circuitfind.output.exports.form import Exported, Source
from circuitfind.output.exports.plain import flat, plain

NODES = ("name", "kind", "layer", "index", "position", "units", "score", "role", "label", "backups")
EDGES = ("name", "sender", "receiver", "slot", "score")


def tables(source: Source) -> Exported:
    """Two CSV files (RFC 4180, UTF-8); what is not known is empty."""
    found = plain(source.what, source.words)
    nodes = ({"name": name, **attributes} for name, attributes in found.nodes.items())
    edges = ({"sender": u, "receiver": v, **attributes} for u, v, _, attributes in found.edges)
    files = {".nodes.csv": _text(NODES, nodes), ".edges.csv": _text(EDGES, edges)}
    return Exported(files, found.counts)


def _text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in flat(row).items()} for row in rows)
    return out.getvalue()
