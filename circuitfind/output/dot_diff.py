"""Two circuits of one model's shape as one picture: what was gained, what was lost, and what both have."""

from __future__ import annotations

import math
from dataclasses import replace

from circuitfind.circuit.changes import Change, Fate
from circuitfind.circuit.compare import Comparison
from circuitfind.circuit.graph import Circuit
from circuitfind.errors import UsageError
from circuitfind.names import Edge
from circuitfind.output.dot import to_dot
from circuitfind.output.dot_style import Scale, html_text, quoted, signed, wrapped

# Bluish green and vermilion of Okabe and Ito, and a grey; a lost edge is dashed too.
COLOURS = {"gained": "#009E73", "lost": "#D55E00", "kept": "#8A8A8A"}
_COLUMNS = 92


def diff_dot(found: Comparison, before: Circuit, after: Circuit) -> str:
    """DOT text of both circuits: gained edges green, lost ones red and dashed, those of both grey.

    An edge is as wide as its larger score.

    Raises:
        UsageError: They are of models of different shape.
    """
    if before.anatomy != after.anatomy:
        raise UsageError(
            "circuits of models of different shape are not drawn as one",
            hint="draw each: `circuitfind render RUN`",
        )
    changes = {change.name: change for change in found.edges.every}
    both = replace(
        after,
        edges=(*before.edges, *after.edges),
        edge_scores={name: _larger(change) for name, change in changes.items()},
        node_scores={**before.node_scores, **after.node_scores},
        roles={**before.roles, **after.roles},
        backups=(),
    )

    def look(edge: Edge) -> str:
        change = changes[str(edge)]
        dashed = ", style=dashed" if change.fate == "lost" else ""
        scores = " -> ".join("none" if math.isnan(x) else signed(x) for x in (change.before, change.after))
        return f"color={quoted(COLOURS[change.fate])}{dashed}, tooltip={quoted(f'{edge}: {change.fate}, {scores}')}"

    return to_dot(both, look=look, bottom=lambda scale: _bottom(found, scale))


def _larger(change: Change) -> float:
    known = [x for x in (change.before, change.after) if math.isfinite(x)]
    return max(known, key=abs, default=math.nan)


def _bottom(found: Comparison, scale: Scale) -> str:
    """What the colours mean, and which circuits these are."""
    told: tuple[tuple[Fate, str], ...] = (("gained", "gained"), ("lost", "lost"), ("kept", "in both"))
    samples = "".join(
        f'<TD><TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0"><TR>{_bar(fate)}</TR></TABLE></TD>'
        f'<TD ALIGN="LEFT"><FONT POINT-SIZE="{scale.points(8.0)}">'
        f"{html_text(f'{len(found.edges.of(fate))} edges {text}')}&#160;&#160;</FONT></TD>"
        for fate, text in told
    )
    differs = "; ".join(f"{what}: {a or 'none'} -> {b or 'none'}" for what, a, b in found.differs)
    texts = [
        (f"{found.before} -> {found.after}", 12.0, True),
        (differs or "found under the same conditions", 9.0, False),
    ]
    rows = [f'<TR><TD><TABLE BORDER="0" CELLSPACING="3" CELLPADDING="1"><TR>{samples}</TR></TABLE></TD></TR>']
    for text, size, bold in texts:
        lines = "<BR/>".join(html_text(line) for line in wrapped(text, _COLUMNS - 20 * bold))
        lines = f"<B>{lines}</B>" if bold else lines
        rows.append(f'<TR><TD><FONT POINT-SIZE="{scale.points(size)}">{lines}</FONT></TD></TR>')
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2">{"".join(rows)}</TABLE>>'


def _bar(fate: str) -> str:
    """A sample of a line: whole, or in dashes."""
    pieces = [(10, True), (4, False), (10, True)] if fate == "lost" else [(24, True)]
    return "".join(
        f'<TD WIDTH="{width}" HEIGHT="3" FIXEDSIZE="TRUE"{f" BGCOLOR={quoted(COLOURS[fate])}" if filled else ""}></TD>'
        for width, filled in pieces
    )
