"""``show`` of what is no plain run: a circuit or a feature graph in a file, and statistics of either. Loads no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitfind.cli.common import Screen, number, share, table
from circuitfind.cli.lines import print_line, print_title, shortened
from circuitfind.errors import UsageError

if TYPE_CHECKING:
    from circuitfind.given import Given

TOP = 10
"""Nodes and edges that are printed of a file."""
NAMED = 14
"""Nodes of a community that are printed."""


def is_given(run: str) -> bool:
    """Whether a name is a file, or a folder of attribution graphs, rather than a run."""
    path = Path(run)
    return path.is_file() or path.suffix == ".json" or (path / "graph-metadata.json").is_file()


def show_statistics(screen: Screen, run: str, outputs: str | None, random: int, seed: int) -> None:
    """``show --stats``: the graph's statistics, beside those of random graphs.

    Raises:
        CircuitfindError: There is no such run or file, or nothing to count.
    """
    from circuitfind.circuit.graph_stats import as_rows, order_of
    from circuitfind.circuit.rewire import compare
    from circuitfind.given import given

    if random == 1:
        raise UsageError("one random graph has no spread", hint="give --random 100, or 0 for none")
    found = given(run, outputs)
    order = order_of(found.what)
    against = compare(order, random, seed=seed).as_dict() if random else None
    data = {"version": 1, **_source(found), **as_rows(order), "random": against}
    screen.result(data, lambda: _print_statistics(screen, data))


def show_file(screen: Screen, run: str, nodes: bool, edges: bool, senseless: Mapping[str, bool]) -> None:
    """``show FILE``: what the file holds; ``senseless`` flags are refused.

    Raises:
        CircuitfindError: It cannot be read, or has nothing to show for a flag.
    """
    from circuitfind.given import given

    for flag, given_ in senseless.items():
        if given_:
            raise UsageError(
                f"a file has nothing to show for {flag}",
                where=run,
                hint="leave it out; --nodes, --edges and --stats show more of it",
            )
    found = given(run)
    full = found.what.as_dict()
    data: dict[str, Any] = {
        "version": 1,
        **_source(found),
        "counts": full["counts"],
        "evaluations": full["evaluations"],
    }
    data |= {"nodes": full["nodes"]} if nodes else {}
    data |= {"edges": full["edges"]} if edges else {}
    screen.result(data, lambda: _print_file(screen, data, full))


def _source(found: Given) -> dict[str, Any]:
    kind = "circuit" if type(found.what).__name__ == "Circuit" else "feature graph"
    return {"file": str(found.file), "of": kind, "conditions": vars(found.what.conditions).copy()}


def _print_file(screen: Screen, data: Mapping[str, Any], full: Mapping[str, Any]) -> None:
    from circuitfind.cli.lines import interval
    from circuitfind.cli.results import _print_scores

    counts = data["counts"]
    size = f"{number(counts['nodes'], 'node')}, {number(counts['edges'], 'edge')}"
    print_title(screen, _named(data["conditions"]), f"a {data['of']} of {size}")
    told = [f"{k} {v}" for k, v in data["conditions"].items() if v and k not in ("task", "model")]
    print_line(screen, "under", ", ".join(told))
    for one in data["evaluations"]:
        text = f"{interval(one['faithfulness'])} under {one['ablation']} ablation, {one['n_prompts']} prompts"
        print_line(screen, "faithfulness", text)
    if not data["evaluations"]:
        print_line(screen, "faithfulness", "not measured")
    print_line(screen, "file", data["file"])
    of = "score" if data["of"] == "circuit" else "weight"
    for key, column in (("nodes", "score"), ("edges", of)):
        rows = sorted(full[key], key=lambda row: -abs(row[column] or 0.0))
        shown = rows if key in data else rows[:TOP]
        title = key if len(shown) == len(rows) else f"{TOP} strongest of {len(rows)} {key}"
        _print_scores(screen, title, shown, column)


def _named(conditions: Mapping[str, Any]) -> dict[str, Any]:
    return {**conditions, "task": conditions["task"] or "a task", "model": conditions["model"] or "a model"}


def _print_statistics(screen: Screen, data: Mapping[str, Any]) -> None:
    size = f"{number(data['nodes'], 'node')}, {number(data['edges'], 'edge')} (q, k and v as one)"
    print_title(screen, _named(data["conditions"]), size)
    print_line(
        screen,
        "density",
        f"{data['density']:.3f} of all pairs, {share(data['share_of_possible'])} of those the model can join",
    )
    paths = data["paths"]
    start = "the input" if data["conditions"]["nodes"] == "heads,mlps" else "the input and errors"
    counted = f"{paths['count']:,}" if paths["count"] < 10**9 else f"{float(paths['count']):.2g}"
    print_line(
        screen,
        "paths",
        f"{counted} from {start} to the logits: {paths['shortest']} to {paths['longest']} edges, "
        f"mean {paths['mean']:.2f}",
    )
    found = data["communities"]
    print_line(screen, "communities", f"{len(found['groups'])}, modularity {found['modularity']:.2f}")
    for group in found["groups"][:6]:
        print_line(screen, "", _few([shortened(name) for name in group]))
    _print_motifs(screen, data)
    shown = table(
        "node", "in", "out", "betweenness", "PageRank", right=("in", "out", "betweenness", "PageRank")
    )
    for row in data["centrality"][:TOP]:
        ranks = (f"{row['betweenness']:.3f}", f"{row['pagerank']:.3f}")
        shown.add_row(shortened(row["name"]), str(row["ins"]), str(row["outs"]), *ranks)
    screen.out.print()
    screen.out.print(shown, markup=False)
    if len(data["centrality"]) > TOP:
        screen.out.print(f"  {TOP} of {data['nodes']} nodes; --json has all", markup=False)


def _print_motifs(screen: Screen, data: Mapping[str, Any]) -> None:
    motifs, random = data["motifs"], data["random"]
    names = {
        "feed_forward": ("feed-forward loops", motifs["feed_forward"]),
        "longest_path": ("longest path", data["paths"]["longest"]),
        "mean_path": ("mean path", data["paths"]["mean"]),
    }
    others = {"chain": "chains", "fan_in": "fan-ins", "fan_out": "fan-outs"}
    told = ", ".join(f"{motifs[key]:,} {word}" for key, word in others.items())
    print_line(screen, "motifs", f"{motifs['feed_forward']:,} feed-forward loops, {told}")
    if random is None:
        return
    if random["different"] == 1:
        print_line(screen, "random", "no other graph of these degrees was found: nothing to compare with")
        return
    print_line(
        screen,
        "random",
        f"{random['count']} graphs of the same degrees, every edge one that the model can have "
        f"({random['different']} different)",
    )
    columns = ("", "here", "random", "sd", "z", "p")
    shown = table(*columns, right=columns[1:])
    for key, (name, value) in names.items():
        one = random[key]
        z = "" if one["z"] is None else f"{one['z']:+.1f}"
        shown.add_row(name, f"{value:,.4g}", f"{one['mean']:,.4g}", f"{one['sd']:.2g}", z, f"{one['p']:.2g}")
    screen.out.print()
    screen.out.print(shown, markup=False)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
