"""Folders of attribution graphs: pruned, exported, averaged, drawn. None of it needs the model.

A folder holds ``summary.json``, and of a prompt ``graph.npz`` (all edges) and ``graph.json`` (what is kept, in the schema of
circuit-tracer), of a task's prompts ``graph-000.npz``, ``graph-000.json`` and so on; ``graph.dot`` and pictures. The ``.json``
files are named by their slugs and listed in ``graph-metadata.json``, as the server of circuit-tracer's frontend wants them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from circuitfind.attribution.average import AverageGraph, average
from circuitfind.attribution.export import slug_of, to_circuit_tracer
from circuitfind.attribution.graph import AttributionGraph, NodeKind
from circuitfind.attribution.prune import PrunedGraph, prune
from circuitfind.attribution.saved import to_bytes
from circuitfind.errors import UsageError
from circuitfind.output.dot_attribution import attribution_dot, average_dot
from circuitfind.output.draw import dot_binary, install_hint, render
from circuitfind.output.files import make_folder, write_atomic
from circuitfind.reading import read_json

SUMMARY, GRAPH, LISTED = "summary.json", "graph", "graph-metadata.json"
VERSION = 1


@dataclass(frozen=True)
class Look:
    """How graphs are pruned, exported and drawn; all of it can change without the model.

    Attributes:
        node_threshold, edge_threshold: Shares of influence to keep.
        draw: Features and errors in the picture.
        formats: Of the picture; none for no picture.
        slug, scan: What the exported graph and its model are called.
        positions: Keep the named positions of a task apart.
        labels: What people call features, by names such as ``t5.f88``.
    """

    node_threshold: float = 0.8
    edge_threshold: float = 0.98
    draw: int = 30
    formats: tuple[str, ...] = ("svg",)
    slug: str | None = None
    scan: str | None = None
    positions: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("node", self.node_threshold), ("edge", self.edge_threshold)):
            if not 0 <= value <= 1:
                raise UsageError(
                    f"an influence of {value} does not exist", hint=f"give --{name}-threshold from 0 to 1"
                )
        if self.slug is not None and self.slug != slug_of(self.slug):
            raise UsageError(
                f"'{self.slug}' is no name for a URL and a file", hint=f"such as {slug_of(self.slug)}"
            )
        if self.draw < 1:
            raise UsageError(f"--draw {self.draw} leaves nothing to draw", hint="give at least 1")


@dataclass(frozen=True)
class Attributed:
    """Finished graphs.

    Attributes:
        folder: Where they are.
        pruned: The graph, of a single prompt.
        average: Over the prompts of a task.
        facts: What ``summary.json`` says.
        pictures: Files drawn.
    """

    folder: Path
    pruned: PrunedGraph | None
    average: AverageGraph | None
    facts: dict[str, Any]
    pictures: tuple[Path, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.facts,
            "folder": str(self.folder),
            "pictures": [str(path) for path in self.pictures],
        }


def write_graphs(
    graphs: Iterable[AttributionGraph],
    folder: Path,
    look: Look,
    facts: Mapping[str, Any],
    *,
    note: Callable[[str], None] = lambda text: None,
    save: bool = True,
) -> Attributed:
    """Prune, write and draw graphs.

    Args:
        graphs: Of one prompt, or of a task's; each is let go once it is written.
        folder: Where to.
        look: What is kept and drawn.
        facts: ``model``; and of a task ``task`` and ``positions`` (of each prompt, names to positions).
        note: Hears what a user should know.
        save: Whether to write all edges of each graph too.

    Raises:
        UsageError, RunError: The folder cannot be written, or a picture cannot be drawn.
    """
    if look.formats and dot_binary() is None:
        note(f"no picture: Graphviz is not installed; {install_hint()}")
        look = replace(look, formats=())
    many = "task" in facts
    rows: list[dict[str, Any]] = []
    listed: list[dict[str, Any]] = []
    kept: list[PrunedGraph] = []
    pruned = _each(graphs, folder, look, rows, listed, many=many, save=save)
    mean = None
    if many:
        mean = average(pruned, facts["positions"] if look.positions else None)
    else:
        kept = list(pruned)
    written: dict[str, Any] = {
        "version": VERSION,
        **facts,
        "dictionaries": rows[0]["dictionaries"],
        "node_threshold": look.node_threshold,
        "edge_threshold": look.edge_threshold,
        "prompts": rows,
    }
    if mean is not None:
        written["average"] = _average_facts(mean)
        names = {"model": str(facts["model"]), "task": str(facts["task"])}
        text = average_dot(mean, **names, most=look.draw, labels=look.labels)
    else:
        text = attribution_dot(kept[0], look.draw, look.labels)
    _list_graphs(folder, listed)
    if save:
        stems = {_stem(number, many) for number in range(len(rows))}
        for old in folder.glob(f"{GRAPH}*.npz"):
            if old.stem not in stems:  # of an earlier run with more prompts
                old.unlink()
    write_atomic(folder / SUMMARY, json.dumps(written, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomic(folder / f"{GRAPH}.dot", text)
    pictures = tuple(render(text, folder / f"{GRAPH}.dot", look.formats)) if look.formats else ()
    return Attributed(folder, kept[0] if kept else None, mean, written, pictures)


def _each(
    graphs: Iterable[AttributionGraph],
    folder: Path,
    look: Look,
    rows: list[dict[str, Any]],
    listed: list[dict[str, Any]],
    *,
    many: bool,
    save: bool,
) -> Iterator[PrunedGraph]:
    """Prune and write graphs one by one; none is held longer than it is looked at."""
    for number, graph in enumerate(graphs):
        make_folder(folder)
        stem = _stem(number, many)
        pruned = prune(graph, look.node_threshold, look.edge_threshold)
        slug = stem.replace(GRAPH, look.slug or GRAPH, 1)
        data = to_circuit_tracer(pruned, slug=slug, scan=look.scan, labels=look.labels)
        if save:
            write_atomic(folder / f"{stem}.npz", to_bytes(graph))
        write_atomic(folder / f"{slug}.json", json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
        listed.append(data["metadata"])
        rows.append(_prompt_facts(pruned, f"{slug}.json"))
        yield pruned


def _stem(number: int, many: bool) -> str:
    return f"{GRAPH}-{number:03d}" if many else GRAPH


def _list_graphs(folder: Path, listed: list[dict[str, Any]]) -> None:
    """Write which graphs there are; those of an earlier list that are not among them go."""
    path = folder / LISTED
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        before = {one["slug"] for one in read_json(path)["graphs"]}
        for slug in before - {one["slug"] for one in listed}:
            if slug == slug_of(slug):
                (folder / f"{slug}.json").unlink(missing_ok=True)
    write_atomic(path, json.dumps({"graphs": listed}, indent=1, ensure_ascii=False) + "\n")


def _prompt_facts(pruned: PrunedGraph, file: str) -> dict[str, Any]:
    graph = pruned.graph
    return {
        "file": file,
        "prompt": graph.prompt or "".join(graph.pieces),
        "tokens": list(graph.tokens),
        "dictionaries": graph.dictionaries,
        "logits": [
            {"token": piece, "probability": float(p)}
            for piece, p in zip(graph.logit_pieces, graph.probability, strict=True)
        ],
        "active_features": graph.n_features,
        "features_without_row": int(graph.without_row.sum()),
        "kept_features": pruned.count(NodeKind.FEATURE),
        "kept_errors": pruned.count(NodeKind.ERROR),
        "kept_edges": len(pruned.weights),
        "replacement": {"whole": pruned.full.replacement, "pruned": pruned.pruned.replacement},
        "completeness": {"whole": pruned.full.completeness, "pruned": pruned.pruned.completeness},
        "sum_gap": graph.gap,
    }


def _average_facts(mean: AverageGraph) -> dict[str, Any]:
    return {
        "prompts": mean.n_prompts,
        "replacement": mean.replacement,
        "completeness": mean.completeness,
        "nodes": [vars(node) for node in mean.nodes],
        "edges": [
            {"source": source, "target": target, "weight": weight}
            for (source, target), weight in mean.edges.items()
        ],
    }
