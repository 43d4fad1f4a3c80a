"""``circuitfind name`` and ``circuitfind label``: what the neurons and features of a circuit are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitfind.cli.common import Screen, common_options, share, table
from circuitfind.cli.options import complete_runs, complete_tasks, device_option, outputs_option
from circuitfind.cli.progress import Progress
from circuitfind.errors import UsageError

if TYPE_CHECKING:
    from rich.text import Text

    from circuitfind.naming_runs import Named

SHOWN_BEFORE, SHOWN_BEHIND = 12, 4
"""Tokens around the one that fires, in the table."""
SHOWN_TOKENS, SHOWN_HEADS, SHOWN_BETWEEN = 5, 4, 8
TITLE = 11
"""Width of the column of titles."""

DICTIONARIES_HELP = (
    "Folder of the dictionaries that features are of.  [default: the run's; for mini, its own]"
)


@click.command()
@click.argument("run", default="latest", shell_complete=complete_runs)
@click.option(
    "--text",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Look at this text (texts apart by empty lines, or .jsonl) instead of the run's prompts and, "
    "for mini, its corpus.",
)
@click.option("--task", metavar="TASK", shell_complete=complete_tasks, help="Look at another task's prompts.")
@click.option("--top", type=int, metavar="N", default=5, show_default=True, help="Contexts of each unit.")
@click.option(
    "--tokens", type=int, metavar="N", default=20_000, show_default=True, help="Of a text, at most."
)
@click.option(
    "--node",
    "nodes",
    metavar="NAME",
    multiple=True,
    help="A neuron or feature beside those of the circuit, such as m1.n203; may be repeated.",
)
@click.option("--dictionaries", metavar="FOLDER", help=DICTIONARIES_HELP)
@device_option
@click.option("--force", is_flag=True, help="Look again, also where nothing has changed.")
@outputs_option
@common_options
def name(
    screen: Screen,
    run: str,
    text: Path | None,
    task: str | None,
    top: int,
    tokens: int,
    nodes: tuple[str, ...],
    dictionaries: str | None,
    device: str,
    force: bool,
    outputs: str | None,
) -> None:
    """Say what the neurons and features in the circuit of RUN are: where they fire, what they write, what feeds them.

    Writes names.json into the run folder and draws the picture again with short labels.

    \b
    circuitfind name latest
    circuitfind name latest --text corpus.txt --top 10
    circuitfind name latest --node m1.n203 --task greater-than
    """
    from circuitfind.naming_runs import NameOptions, name_run
    from circuitfind.output.store import Store

    options = NameOptions(text, task, top, tokens, nodes, dictionaries)
    found_run = Store(outputs).find(run)
    with Progress(screen) as progress:
        found = name_run(found_run, options, device=device, force=force, reporter=progress)
    screen.result(found.as_dict(), lambda: _print_named(screen, found))


def _print_named(screen: Screen, found: Named) -> None:
    data = found.as_dict()
    source = data["source"]
    print_line = screen.out.print
    print_line(
        f"{len(data['nodes'])} units of {data['task']} on {data['model']}, over {source['tokens']:,} tokens in "
        f"{source['texts']:,} texts ({source['from']})",
        markup=False,
    )
    if data["answer"] is not None and data["answer"]["agreement"] < 0.25:
        print_line(
            f"  the {data['answer']['pairs']} pairs ask for different answers (agreement {data['answer']['agreement']:.2f}), "
            "so look at the spread over pairs rather than at their mean",
            markup=False,
        )
    for node in data["nodes"]:
        print_line()
        for line in node_lines(node, data["joined_by"]):
            print_line(line)
    _print_between(screen, data["between"])
    print_line()
    print_line(f"names    {found.file}", markup=False)
    for picture in found.pictures:
        print_line(f"picture  {picture}", markup=False)
    first = data["nodes"][0]["name"]
    print_line(f'give a label with: circuitfind label {data["run"]} {first} "words"', markup=False)


def node_lines(node: dict[str, Any], between: str = "") -> Iterator[Text]:
    """What is known of a unit, line by line; ``between`` stands between the tokens of a text."""
    from rich.text import Text

    head = Text(node["name"], style="bold")
    if node["label"]:
        head.append(f"  {node['label']}", style="not bold italic")
    score = "" if node["score"] is None else f"score {node['score']:+.4g}; "
    active = node["activation"]
    per = "feature" if node["kind"] == "feature" else "neuron"
    head.append(
        f"  {score}fires on {share(active['fires'])} of tokens, mean {active['mean']:.3g}, largest {active['largest']:.3g}"
        + (f", smallest {active['smallest']:.3g}" if node["negative_contexts"] else ""),
        style="not bold",
    )
    yield head
    if len(node["units"]) > 1:
        told = ", ".join(f"{per[0]}{one['unit']} {one['share']:+.2f}" for one in node["units"])
        yield _row("together", Text(told))
    for title, key in (("contexts", "contexts"), ("negative", "negative_contexts")):
        for i, context in enumerate(node[key]):
            yield _row("" if i else title, _context(context, between))
    if not node["contexts"] and not node["negative_contexts"]:
        yield _row("contexts", Text("it fires on none of these texts"))
    for side in ("promotes", "suppresses"):
        yield _row(side, Text(", ".join(_token(one) for one in node[side][:SHOWN_TOKENS])))
    if node["answer"] is not None:
        a = node["answer"]
        yield _row(
            "answer",
            Text(
                f"{a['inner']:+.3g} (cosine {a['cosine']:+.2f}; more than {_share(a['percentile'])} of the layer); "
                f"over pairs ±{a['spread']:.3g} (more than {_share(a['spread_percentile'])})"
            ),
        )
    for entry, heads in node["heads"].items():
        words = ", ".join(f"{one['head']} z {one['z']:+.1f}" for one in heads[:SHOWN_HEADS])
        yield _row("heads" if entry == "in" else f"heads {entry}", Text(words or "none below it"))


def _share(percentile: float) -> str:
    """A percentile that never rounds to all: nothing is more than itself."""
    return f"{min(percentile, 99.9):.1f} %" if percentile > 99 else f"{percentile:.0f} %"


def _row(title: str, text: Text) -> Text:
    from rich.text import Text

    return Text.assemble(f"  {title:<{TITLE}}", text)


def _context(context: dict[str, Any], between: str) -> Text:
    from rich.text import Text

    at, tokens = context["at"], [_flat(token) for token in context["tokens"]]
    first, stop = max(0, at - SHOWN_BEFORE), at + 1 + SHOWN_BEHIND
    before, behind = between.join(tokens[first:at]), between.join(tokens[at + 1 : stop])
    marked = tokens[at]
    blank = between if before else ""
    if marked.startswith(" "):
        blank, marked = " ", marked.removeprefix(" ")
    return Text.assemble(
        f"{context['value']:+8.3f}  {'…' if first else ''}{before}{blank}",
        (f"[{marked}]", "bold"),
        f"{between}{behind}" if behind else "",
    )


def _flat(token: str) -> str:
    return token.replace("\n", "↵")


def _token(one: dict[str, Any]) -> str:
    return f"'{_flat(one['token'])}' {one['value']:+.2f}"


def _print_between(screen: Screen, between: list[dict[str, Any]]) -> None:
    if not between:
        return
    shown = table("writes", "is read by", "cosine", "z", right=("cosine", "z"))
    for one in between[:SHOWN_BETWEEN]:
        entry = "" if one["entry"] == "in" else f" ({one['entry']})"
        shown.add_row(one["sender"], one["receiver"] + entry, f"{one['cosine']:+.3f}", f"{one['z']:+.1f}")
    screen.out.print()
    screen.out.print(shown, markup=False)


@click.command()
@click.argument("run", shell_complete=complete_runs)
@click.argument("node", required=False)
@click.argument("text", required=False)
@click.option("--remove", is_flag=True, help="Take the label of NODE away.")
@click.option("--dictionaries", metavar="FOLDER", help=DICTIONARIES_HELP)
@outputs_option
@common_options
def label(
    screen: Screen,
    run: str,
    node: str | None,
    text: str | None,
    remove: bool,
    dictionaries: str | None,
    outputs: str | None,
) -> None:
    """Give NODE of RUN a label, take it away, or list the labels that RUN shows.

    \b
    circuitfind label latest a0.h2 "duplicate tokens"
    circuitfind label latest a0.h2 --remove
    circuitfind label latest

    Labels belong to the model (and to the dictionaries, for features), not to the run: other runs show them too. They are
    kept in labels.yaml beside the run folders, which may be edited by hand.
    """
    from circuitfind.labelling import known_node, label_owner, labels_file, redraw, subject_of
    from circuitfind.output.store import Store

    if node is None and remove:
        raise UsageError("--remove needs a node", hint=f"such as: circuitfind label {run} a0.h2 --remove")
    if node is not None and (text is None) != remove:
        raise UsageError(
            "give either words for the label, or --remove",
            hint=f'such as: circuitfind label {run} {node} "duplicate tokens"',
        )
    found_run = Store(outputs).find(run)
    subject = subject_of(found_run)
    labels, owner = labels_file(found_run), label_owner(found_run, dictionaries)
    pictures: list[Path] = []
    if node is not None:
        known = known_node(found_run, subject, node)
        labels = labels.remove(owner, known) if text is None else labels.set(owner, known, text)
        with Progress(screen) as progress:
            pictures = redraw(found_run, subject, progress)
    listed = labels.of(owner)
    data = {
        "version": 1,
        "run": found_run.name,
        "file": str(labels.path),
        "labels": [
            {"node": name, "label": words, "in_circuit": name in subject.inside}
            for name, words in listed.items()
        ],
        "pictures": [str(path) for path in pictures],
    }

    def show() -> None:
        if not listed:
            screen.out.print("no labels", markup=False)
        else:
            shown = table("node", "label", "")
            for one in data["labels"]:  # type: ignore[attr-defined]  # a list, as made above
                shown.add_row(one["node"], one["label"], "in the circuit" if one["in_circuit"] else "")
            screen.out.print(shown, markup=False)
        screen.out.print(f"kept in {labels.path}", markup=False)

    screen.result(data, show)
