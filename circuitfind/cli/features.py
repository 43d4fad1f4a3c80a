"""How ``discover --nodes features`` tells what it found."""

from __future__ import annotations

from typing import Any

from circuitfind.cli.common import Screen, number, share
from circuitfind.cli.lines import RunLines, strongest_nodes


def show_features(screen: Screen, summary: dict[str, Any]) -> None:
    """A run's verdict in a few lines."""
    told, counts = RunLines(screen, summary), summary["counts"]
    told.heading("a circuit of features, attention frozen", "errors frozen")
    told.evaluations(whole="full")
    active = counts["active_features"]
    told.line(
        "kept",
        f"{number(counts['features'], 'feature')} of {active:,} that fire "
        f"({share(counts['features'] / max(active, 1))}){told.minimal}; "
        f"{number(counts['edges'], 'edge')} among them, errors and the input",
    )
    told.line(
        "errors",
        f"{share(summary['share_through_errors'])} of the effect goes when what dictionaries miss is replaced; "
        f"{share(summary['errors']['by_score'])} of the summed |score|",
    )
    told.prompts()
    told.strongest(strongest_nodes(summary))
    told.cost(f"{number(summary['sets_tried'], 'set')} of features")
    told.files()
