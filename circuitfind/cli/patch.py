"""``circuitfind patch``: doses of a patch, and what the answer makes of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from circuitfind.cli.backups import complete_things, find_run
from circuitfind.cli.common import Screen, common_options, duration, number, share, table
from circuitfind.cli.engine_options import engine_options, engined
from circuitfind.cli.lines import print_line, print_title
from circuitfind.cli.options import counterfactual_option, model_option, place_options, prompt_options
from circuitfind.cli.placing import placed, placing_options
from circuitfind.errors import UsageError

if TYPE_CHECKING:
    from circuitfind.circuit.dose import Reading
    from circuitfind.patch_runs import Patched

OF_TASKS = ("model", "count", "seed", "counterfactual", "min_accuracy")
"""Options that a finished run has settled."""
MOST_ROWS = 12
"""Rows of a table, or a few more; dose.csv has every dose."""
PICTURES = ("svg", "png", "pdf", "none")


@click.command()
@click.argument("thing", metavar="TASK|RUN", shell_complete=complete_things)
@click.option("--nodes", metavar="NAMES", help="Nodes to patch, such as a1.h4,m0,m2.n17; all readers see it.")
@click.option("--edges", metavar="NAMES", help="Edges to patch, such as 'a1.h4->logits,m0->a2.h1<k>'.")
@click.option(
    "--alpha",
    metavar="DOSES",
    help="Doses: 0..1 (in --steps steps), or a list such as 0,0.25,0.5,1.  [default: 0..1]",
)
@click.option("--steps", type=int, metavar="N", help="Steps between the ends of a range.  [default: 20]")
@click.option("--each/--together", default=False, help="Patch what is named one by one.  [default: together]")
@click.option("--positions", metavar="NAMES", help="Only at these positions: names of the task, END, 3, -1.")
@click.option("--direction", metavar="NAME", help="noising or denoising.  [default: the task's]")
@click.option("--ablation", metavar="NAME", help="resample, mean, zero, optimal.  [default: the task's]")
@click.option("--metric", metavar="NAME", help="What is measured.  [default: the task's]")
@click.option(
    "--gradient/--no-gradient",
    default=True,
    show_default=True,
    help="Slopes, and what AtP and EAP-IG would say.",
)
@model_option()
@counterfactual_option
@prompt_options
@click.option("--dictionaries", metavar="FOLDER", help="Transcoders whose features are named (t1.f20).")
@click.option(
    "--format",
    "formats",
    metavar="NAME",
    type=click.Choice(PICTURES),
    multiple=True,
    default=("svg",),
    show_default=True,
    help="svg, png or pdf; may be repeated; none for no picture.",
)
@click.option("--out", metavar="FOLDER", help="Write there.  [default: a folder below --outputs]")
@place_options
@placing_options
@engine_options
@common_options
@placed
@engined
def patch(
    screen: Screen,
    thing: str,
    nodes: str | None,
    edges: str | None,
    alpha: str | None,
    steps: int | None,
    each: bool,
    positions: str | None,
    gradient: bool,
    dictionaries: str | None,
    formats: tuple[str, ...],
    out: str | None,
    memory: str | None,
    device: str,
    outputs: str | None,
    **flags: Any,
) -> None:
    """Patch nodes or edges by doses, from 0 (nothing) to 1 (a full patch), and plot the answer.

    At dose alpha what is named carries (1 - alpha) of its own value and alpha of the ablated one. A straight line says that it
    acts in proportion; a plateau that something is saturated or stands in, which gradients do not see.

    \b
    circuitfind patch ioi --nodes a1.h4,m0
    circuitfind patch ioi --nodes a1.h4,a2.h2 --each --alpha 0,0.25,0.5,1
    circuitfind patch ioi --edges 'a1.h4->logits' --direction denoising
    circuitfind patch latest --nodes m0 --positions END --format pdf
    """
    from circuitfind.cli.progress import Progress
    from circuitfind.output.store import Store
    from circuitfind.patch_runs import patch_run, patch_task
    from circuitfind.patch_targets import PatchOptions
    from circuitfind.settings import memory_bytes, resolve
    from circuitfind.task.spec import load_task

    options = PatchOptions(
        nodes=_names(nodes),
        edges=_names(edges),
        alphas=_doses(alpha, steps),
        each=each,
        positions=_names(positions),
        gradient=gradient,
    )
    options.parsed  # noqa: B018  names are read before anything is loaded
    pictures = tuple(name for name in formats if name != "none")
    shared: dict[str, Any] = {
        "out": out,
        "formats": pictures,
        "device": device,
        "memory": memory_bytes(memory),
    }
    run = find_run(thing, Store(outputs))
    with Progress(screen) as progress:
        if run is None:
            spec = load_task(thing)
            settings = resolve(spec, **flags)
            settings = replace(settings, dictionaries=dictionaries)
            found = patch_task(spec, settings, options, outputs=outputs, reporter=progress, **shared)
        else:
            _settled(flags, dictionaries)
            changed = {
                name: flags[name] for name in ("ablation", "direction", "metric") if flags[name] is not None
            }
            found = patch_run(run, options, changed=changed, reporter=progress, **shared)
    for text in found.facts["notes"]:
        screen.note(text)
    screen.result(found.as_dict(), lambda: _print(screen, found))


def _names(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _doses(text: str | None, steps: int | None) -> tuple[float, ...]:
    """What --alpha and --steps ask for."""
    text = (text or "0..1").strip()
    low, dots, high = text.partition("..")
    if not dots:
        if steps is not None and "," in text:
            raise UsageError("--steps divides a range, and --alpha lists doses", hint="write --alpha 0..1")
        return tuple(_dose(part, text) for part in text.split(",") if part.strip())
    count = 20 if steps is None else steps
    if count < 1:
        raise UsageError(f"{count} steps are none", hint="give --steps 1 or more, such as 20")
    start, stop = _dose(low, text), _dose(high, text)
    if stop <= start:
        raise UsageError(f"'{text}' is no range", hint="write the smaller dose first, such as --alpha 0..1")
    return tuple(start + (stop - start) * i / count for i in range(count + 1))


def _dose(part: str, text: str) -> float:
    try:
        return float(part)
    except ValueError:
        raise UsageError(
            f"'{text}' names no doses", hint="write a range, --alpha 0..1, or a list, --alpha 0,0.25,0.5,1"
        ) from None


def _settled(flags: dict[str, Any], dictionaries: str | None) -> None:
    given = [name for name in OF_TASKS if flags.get(name) is not None]
    given += ["drop_bad_pairs"] if flags.get("drop_bad_pairs") else []
    given += ["dictionaries"] if dictionaries is not None else []
    if given:
        raise UsageError(
            f"--{given[0].replace('_', '-')} cannot be changed in a finished run",
            hint="give a task, or leave the option out",
        )


# The printout.


def _print(screen: Screen, found: Patched) -> None:
    c = found.conditions
    what = found.readings[0].curve.label if len(found.readings) == 1 else f"{len(found.readings)} patches"
    print_title(screen, c, f"doses of {what}")
    at = f", at {', '.join(c['positions'])}" if c["positions"] else ""
    told = (
        f"{c['direction']}, {c['ablation']} ablation",
        f"counterfactual {c['counterfactual']}",
        f"metric {c['metric']}{at}",
        number(c["n_prompts"], "prompt"),
    )
    print_line(screen, "under", ", ".join(told))
    if len(found.readings) > 1:
        _print_many(screen, found.readings)
    else:
        _print_one(screen, found.readings[0])
    passes = f"{found.facts['forward_passes']} forward and {found.facts['backward_passes']} backward passes"
    print_line(screen, "cost", f"{duration(found.facts['seconds'])}, {passes}")
    for path in found.files:
        print_line(screen, {"json": "data", "csv": "table"}.get(path.suffix[1:], "picture"), str(path))


def _print_one(screen: Screen, reading: Reading) -> None:
    from circuitfind.output.dose_text import chart, sentences, told

    screen.out.print()
    right = ("alpha", "metric", "95 % interval", "effect", "accuracy")
    shown = table(*right, right=right)
    alphas = reading.curve.alphas
    every = -(-(len(alphas) - 1) // MOST_ROWS)
    for i, alpha in enumerate(alphas):
        if i % every and alpha not in (0, 1) and i != len(alphas) - 1:
            continue
        value = reading.metric[i]
        effect = "" if reading.shape is None else told(reading.shape.share[i])
        ends = f"[{value.low:.3f}, {value.high:.3f}]"
        shown.add_row(f"{alpha:g}", f"{value.value:.3f}", ends, effect, share(reading.accuracy[i].value))
    screen.out.print(shown, markup=False)
    screen.out.print()
    for line in chart(reading, blocks=_has_blocks()):
        screen.out.print(line, markup=False)
    screen.out.print()
    _print_sentences(screen, sentences(reading))


def _print_many(screen: Screen, readings: Sequence[Reading]) -> None:
    from circuitfind.output.dose_text import even, percent, sentences

    screen.out.print()
    right = ("effect", "half at", "off a line", "slope at 0", "EAP-IG")
    shown = table("patch", *right, "what it looks like", right=right)
    for reading in readings:
        s = reading.shape
        if s is None:
            shown.add_row(
                reading.curve.label, f"{reading.effect.value:+.3f}", "", "", "", "", "no effect for sure"
            )
            continue
        looks = [f"flat {one.start:g}-{one.stop:g}" for one in s.plateaus]
        looks += [] if s.threshold is None else [f"jump {s.threshold[0]:.2f}-{s.threshold[1]:.2f}"]
        looks += ["overshoots"] if s.outside is not None else []
        looks += ["turns back"] if s.reversal is not None else []
        shown.add_row(
            reading.curve.label,
            f"{reading.effect.value:+.3f}",
            f"{s.half.value:.2f}",
            f"{s.departure.value:.3f}",
            "" if s.first is None else percent(s.first.value),
            "" if reading.eap_ig is None else percent(reading.eap_ig),
            ", ".join(looks) or ("line" if s.straight and even(s) else "bend"),
        )
    screen.out.print(shown, markup=False)
    screen.out.print()
    print_line(
        screen, "", "slope at 0 and EAP-IG: the share of the effect that a gradient predicts; 100 % is right"
    )
    worst = [r for r in readings if r.shape is not None]
    if worst:
        one = max(worst, key=lambda r: r.shape.departure.value if r.shape is not None else 0.0)
        print_line(screen, "farthest off", one.curve.label)
        _print_sentences(screen, sentences(one))


def _print_sentences(screen: Screen, told: Sequence[tuple[str, str]]) -> None:
    import textwrap

    for title, text in told:
        for i, line in enumerate(textwrap.wrap(text, max(40, min(screen.out.width, 104) - 17))):
            print_line(screen, "" if i else title, line)


def _has_blocks() -> bool:
    try:
        "●│·┤└─".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
