"""Commands on what is there: ``list``, ``show``, ``render``. None of them loads a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitfind.cli.common import Screen, common_options, table
from circuitfind.cli.lines import print_line
from circuitfind.cli.options import PICTURES, complete_runs, format_option, outputs_option
from circuitfind.config import DEFAULT_METHOD
from circuitfind.errors import UsageError

if TYPE_CHECKING:
    from circuitfind.output.run import Run

TEN = 10
THINGS = ("tasks", "models", "methods", "runs")


@click.command()
@click.argument("things", metavar="|".join(THINGS), type=click.Choice(THINGS))
@outputs_option
@common_options
def list_things(screen: Screen, things: str, outputs: str | None) -> None:
    """List tasks, models, methods or runs.

    \b
    circuitfind list tasks
    circuitfind list methods
    circuitfind list runs --json
    """
    listers: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "tasks": _tasks,
        "models": _models,
        "methods": _methods,
        "runs": lambda: _runs(outputs),
    }
    rows = listers[things]()
    hints = {"runs": "no runs yet; make one with: circuitfind discover ioi", "tasks": "no tasks found"}

    def show() -> None:
        if not rows:
            screen.out.print(hints.get(things, "nothing"))
            return
        if things == "methods":
            _print_methods(screen, rows)
            return
        shown = table(*rows[0])
        for row in rows:
            shown.add_row(*(str(value if value is not None else "") for value in row.values()))
        screen.out.print(shown, markup=False)

    screen.result({"version": 1, things: rows}, show)


def _tasks() -> list[dict[str, Any]]:
    from circuitfind.errors import CircuitfindError
    from circuitfind.task.spec import find_tasks, load_task

    found = []
    for name, path in find_tasks().items():
        try:
            spec = load_task(path)
            found.append({"task": name, "model": spec.model, "description": spec.description})
        except CircuitfindError as error:
            found.append({"task": name, "model": "", "description": f"damaged: {error.what}"})
    return found


def _models() -> list[dict[str, Any]]:
    from circuitfind.zoo import ZOO

    rows: list[dict[str, Any]] = [{"model": name, "description": text} for name, text in ZOO.items()]
    rows.append(
        {"model": "FOLDER", "description": "a local folder in Hugging Face or TransformerLens format"}
    )
    rows.append(
        {
            "model": "HUB NAME",
            "description": "such as gpt2 or EleutherAI/pythia-160m; needs the network or a filled cache",
        }
    )
    return rows


def _methods() -> list[dict[str, Any]]:
    from circuitfind.methods import METHODS, options_of

    return [
        {
            "method": n,
            "scores": e.level,
            "description": e.summary,
            "source": e.source,
            "options": options_of(n),
        }
        for n, e in METHODS.items()
    ]


def _print_methods(screen: Screen, rows: list[dict[str, Any]]) -> None:
    """A paragraph for each, since their options do not fit into a column."""
    for row in rows:
        default = ", the default of discover" if row["method"] == DEFAULT_METHOD else ""
        screen.out.print(f"[bold]{row['method']}[/bold]  scores {row['scores']}s{default}")
        options = ", ".join(f"{name}={value}" for name, value in row["options"].items())
        for line in (row["description"], row["source"], f"options: {options}" if options else ""):
            if line:
                screen.out.print(f"    {line}", markup=False)


def _runs(outputs: str | None) -> list[dict[str, Any]]:
    from circuitfind.output.store import Store

    return [
        {
            "run": info.name,
            "status": info.status,
            "task": info.task,
            "model": info.model,
            "started": info.started[:19].replace("T", " "),
            "note": info.problem or info.error,
        }
        for info in Store(outputs).runs()
    ]


@click.command()
@click.argument("run", default="latest", shell_complete=complete_runs)
@click.option("--nodes", is_flag=True, help="Every node of the circuit with its score.")
@click.option("--edges", is_flag=True, help="Every edge of the circuit with its score.")
@click.option(
    "--top", type=int, metavar="N", help="The N strongest of all nodes or edges, in the circuit or not."
)
@click.option(
    "--by-position",
    "apart",
    is_flag=True,
    help="What the strongest nodes (ten, or N) do at each position, after --positions.",
)
@click.option("--backups", is_flag=True, help="What stands in when heads are removed, in place of the rest.")
@click.option("--all", "everything", is_flag=True, help="With --backups, every finding.")
@click.option(
    "--stats", is_flag=True, help="Statistics of the graph: paths, centrality, communities, motifs."
)
@click.option(
    "--random",
    type=click.IntRange(0),
    metavar="N",
    default=100,
    show_default=True,
    help="With --stats, random graphs of the same degrees to compare with.",
)
@outputs_option
@common_options
def show(
    screen: Screen,
    run: str,
    nodes: bool,
    edges: bool,
    top: int | None,
    apart: bool,
    backups: bool,
    everything: bool,
    stats: bool,
    random: int,
    outputs: str | None,
) -> None:
    """Show what RUN found (its name, the beginning of it, its folder, or `latest`), or what a circuit FILE holds.

    \b
    circuitfind show latest
    circuitfind show latest --nodes --top 20
    circuitfind show latest --stats
    circuitfind show importances.json
    """
    from circuitfind.cli.given import is_given, show_file, show_statistics
    from circuitfind.cli.verdict import show_summary
    from circuitfind.output.store import Store
    from circuitfind.output.words import words_of
    from circuitfind.summary import alone, by_position, of_features, searched, stored, strongest

    if top is not None and top < 1:
        raise UsageError(f"the {top} strongest are none", hint="give at least 1")
    if stats:
        show_statistics(screen, run, outputs, random, seed=0)
        return
    if is_given(run):
        flags = {"--top": top is not None, "--by-position": apart, "--backups": backups, "--all": everything}
        show_file(screen, run, nodes, edges, flags)
        return
    run_found = Store(outputs).find(run)
    if of_features(run_found):
        senseless = {"--by-position": apart, "--backups": backups, "--all": everything}
        _show_features(screen, run_found, nodes, edges, top, senseless)
        return
    nothing_else = alone(run_found) and not (nodes or edges or top or apart)
    if backups or nothing_else:  # a search without a circuit has nothing else to show
        from circuitfind.cli.backups import print_searched

        print_searched(screen, searched(run_found), everything=everything)
        return
    found = stored(run_found)
    circuit = found.circuit
    data: dict[str, Any] = {"version": 1, **found.summary}
    if top is not None:
        inside = {str(e) for e in circuit.edges} | {str(n) for n in circuit.nodes}
        data |= strongest(found.scores, top)
        data["top"] = [{**row, "in_circuit": row["name"] in inside} for row in data["top"]]
    if apart:
        data["by_position"] = by_position(found.scores, top or TEN)
    full = circuit.as_dict()
    if nodes:
        labels = words_of(run_found).labels
        data["nodes"] = [
            {**row, **({"label": label} if (label := labels.get(row["name"].partition("@")[0])) else {})}
            for row in full["nodes"]
        ]
    data |= {"edges": full["edges"]} if edges else {}

    def print_all() -> None:
        show_summary(screen, found.summary, circuit)
        print_line(screen, "status", found.status)
        titles = {"top": "strongest", "readers": "strongest inputs", "neurons": "strongest neurons"}
        for key in ("nodes", "edges", *titles):
            if key in data:
                _print_scores(screen, titles.get(key, key), data[key])
        if apart:
            _print_positions(screen, data["by_position"])

    screen.result(data, print_all)


def _show_features(
    screen: Screen, run: Run, nodes: bool, edges: bool, top: int | None, senseless: dict[str, bool]
) -> None:
    """A run that ends in a feature graph, as the command that made it told it; ``senseless`` flags are refused."""
    from circuitfind.cli.features import show_features
    from circuitfind.cli.saes import show_saes
    from circuitfind.feature_store import stored_features, stored_scores
    from circuitfind.output.words import words_of
    from circuitfind.summary import command_of

    made = command_of(run)
    for flag, given in senseless.items():
        if given:
            raise UsageError(
                f"a run of `{made}` has nothing to show for {flag}",
                where=str(run.path),
                hint="leave it out; --nodes, --edges and --top N show more of its feature graph",
            )
    found = stored_features(run)
    data: dict[str, Any] = {"version": 1, **found.summary}
    full = found.graph.as_dict()
    if top is not None:
        inside = {row["name"] for row in full["nodes"]}
        first = sorted(stored_scores(run).items(), key=lambda item: -abs(item[1]))[:top]
        data["top"] = [{"name": name, "score": score, "in_circuit": name in inside} for name, score in first]
    if nodes:
        labels = words_of(run).labels
        data["nodes"] = [
            {**row, "label": row["label"] or labels.get(row["name"].partition("@")[0])}
            for row in full["nodes"]
        ]
    data |= {"edges": full["edges"]} if edges else {}

    def print_all() -> None:
        tables = (("nodes", "nodes", "score"), ("edges", "edges", "weight"), ("top", "strongest", "score"))
        tell = show_saes if run.manifest["config"]["saes"] else show_features
        tell(screen, found.summary)
        print_line(screen, "status", run.status)
        for key, title, of in tables:
            if key in data:
                _print_scores(screen, title, data[key], of)

    screen.result(data, print_all)


def _print_scores(screen: Screen, title: str, rows: list[dict[str, Any]], of: str = "score") -> None:
    """Rows by strength: name, score (or what stands in its place), what else the method says of each, and what it is in
    the circuit.
    """
    told = (
        "name",
        of,
        "in_circuit",
        "kind",
        "layer",
        "index",
        "position",
        "role",
        "label",
        "units",
        "sender",
        "receiver",
        "slot",
    )
    also = [name for name in (rows[0] if rows else ()) if name not in told]
    shown = table(title, of, *also, "", right=(of, *also))
    for row in sorted(rows, key=lambda row: -abs(row[of] or 0.0)):
        words = [row[key] for key in ("label", "role") if row.get(key)]
        mark = "; ".join(words) or ("in the circuit" if row.get("in_circuit") else "")
        shown.add_row(row["name"], *(_signed(row[name]) for name in (of, *also)), mark)
    screen.out.print()
    screen.out.print(shown, markup=False)


def _print_positions(screen: Screen, found: dict[str, Any]) -> None:
    names = [node["name"] for node in found["nodes"]]
    shown = table("position", *names, right=tuple(names))
    for i, position in enumerate(found["positions"]):
        shown.add_row(position, *(_signed(node["scores"][i]) for node in found["nodes"]))
    screen.out.print()
    screen.out.print(shown, markup=False)


def _signed(score: float | None) -> str:
    return "" if score is None else f"{score:+.4f}"


@click.command(name="render")
@click.argument("run", default="latest", shell_complete=complete_runs)
@format_option(*PICTURES)
@click.option(
    "--to", metavar="FILE", help="Write there instead of into the run folder (one format, by its ending)."
)
@click.option("--title", metavar="TEXT", help="A title instead of task and model.")
@click.option(
    "--caption/--no-caption", default=True, show_default=True, help="The conditions below the picture."
)
@click.option(
    "--legend/--no-legend", default=True, show_default=True, help="What shapes, colours and widths mean."
)
@outputs_option
@common_options
def render_run(
    screen: Screen,
    run: str,
    formats: tuple[str, ...],
    to: str | None,
    title: str | None,
    caption: bool,
    legend: bool,
    outputs: str | None,
) -> None:
    """Draw the circuit of RUN.

    \b
    circuitfind render latest --format png --format pdf
    circuitfind render latest --to figure.svg --title "Indirect objects" --no-legend
    """
    from circuitfind.feature_store import PICTURE, stored_features
    from circuitfind.output.dot import to_dot
    from circuitfind.output.dot_features import feature_dot
    from circuitfind.output.draw import render
    from circuitfind.output.files import write_atomic
    from circuitfind.output.store import Store
    from circuitfind.output.words import words_of
    from circuitfind.summary import of_features, stored

    run_found = Store(outputs).find(run)
    words = words_of(run_found)
    if of_features(run_found):
        graph = stored_features(run_found).graph
        text = feature_dot(graph, title=title, caption=caption, legend=legend, labels=words.texts)
    else:
        text = to_dot(stored(run_found).circuit, title=title, caption=caption, legend=legend, words=words)
    target = Path(to) if to else run_found.path / (PICTURE if of_features(run_found) else "circuit")
    if to:
        formats = (target.suffix.removeprefix("."),)
        if formats[0] not in PICTURES:
            raise UsageError(
                f"'{to}' has no ending that names a format",
                hint="such as figure.svg, figure.png, figure.pdf or figure.dot",
            )
    written = [write_atomic(target.with_suffix(".dot"), text)] if "dot" in formats else []
    drawn = tuple(name for name in formats if name != "dot")
    written += render(text, target, drawn) if drawn else []
    lines = "\n".join(str(path) for path in written)
    screen.result(
        {"version": 1, "files": [str(path) for path in written]},
        lambda: screen.out.print(lines, markup=False),
    )
