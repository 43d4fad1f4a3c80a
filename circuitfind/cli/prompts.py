"""``circuitfind prompts``: look at prompt pairs before anything is found with them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from circuitfind.cli.common import Screen, common_options, number, share, table
from circuitfind.cli.lines import print_line
from circuitfind.cli.options import (
    allow_options,
    complete_tasks,
    counterfactual_option,
    device_option,
    draw_options,
    model_option,
)
from circuitfind.cli.suggest import suggest
from circuitfind.errors import CheckDiffers, UsageError

if TYPE_CHECKING:
    from circuitfind.prompt_runs import PromptCheck, Prompted

TEN = 10
SHOWN = 3


@click.group()
def prompts() -> None:
    """Check, show and suggest prompt pairs.

    `validate` says whether a task file can be used at all; `prompts check` whether its pairs are good ones: that they differ
    in one thing, that it reaches the answer, that the answer cannot be guessed.

    \b
    circuitfind prompts check ioi
    circuitfind prompts show ioi --count 2
    circuitfind prompts suggest ioi --change B
    """


prompts.add_command(suggest)

run_option = click.option(
    "--run/--no-run", default=None, help="Run the model on the pairs.  [default: where there is one]"
)


@prompts.command()
@click.argument("task", shell_complete=complete_tasks)
@model_option()
@counterfactual_option
@draw_options
@click.option("--metric", metavar="NAME", help="What is measured.  [default: the task's]")
@run_option
@click.option("--strict/--no-strict", default=False, help="Exit with 1 if there is any warning.")
@click.option("--all", "everything", is_flag=True, help=f"Print every pair, not only {TEN}.")
@device_option
@common_options
def check(screen: Screen, task: str, strict: bool, everything: bool, **flags: Any) -> None:
    """Say what is weak in the pairs of TASK, pair by pair and in total.

    Several changes at once, changes that cannot reach the answer or a named position, answers of several tokens, duplicates,
    answers that are too frequent or can be guessed from the wording, the last words or the order; and with the model:
    accuracy, whether the corrupted prompt turns the answer round, and whether the answer is given without the change. To ask
    whether a file can be used at all: `circuitfind validate`.

    \b
    circuitfind prompts check ioi
    circuitfind prompts check ioi --counterfactual abc --count 16 --strict
    circuitfind prompts check my-task.yaml --no-run
    """
    from circuitfind.cli.progress import Progress
    from circuitfind.prompt_runs import check_prompts

    with Progress(screen) as progress:
        prompted = _gathered(screen, task, flags, progress)
        found = check_prompts(prompted)
    ok = not (strict and found.warnings)
    screen.result(
        {"version": 1, "ok": ok, **found.as_dict()}, lambda: _print_check(screen, found, everything)
    )
    if not ok:
        screen.fail(
            CheckDiffers(
                f"{number(found.warnings, 'warning')} about the prompts of {prompted.spec.name}",
                where=str(prompted.spec.path),
                hint="mend the prompts, or leave out --strict",
            )
        )


def _gathered(screen: Screen, task: str, flags: dict[str, Any], reporter: Any = None) -> Prompted:
    from circuitfind.prompt_runs import gather
    from circuitfind.task.spec import load_task

    prompted = gather(load_task(task), reporter=reporter, **flags)
    if prompted.why_not is not None and flags.get("run") is None:
        screen.note(f"not run: {prompted.why_not}")
    return prompted


@prompts.command()
@click.argument("task", shell_complete=complete_tasks)
@model_option()
@counterfactual_option
@click.option("--count", type=int, metavar="N", help=f"Pairs to show.  [default: {SHOWN}]")
@click.option(
    "--pair", "numbers", type=int, multiple=True, metavar="N", help="This one, from 1; may be repeated."
)
@click.option(
    "--seed", type=int, metavar="N", help="Seed that templates are filled from.  [default: the task's]"
)
@click.option("--width", type=int, metavar="N", help="Columns to take.  [default: the terminal's]")
@allow_options
@common_options
def show(
    screen: Screen,
    task: str,
    model: str | None,
    counterfactual: str | None,
    count: int | None,
    numbers: tuple[int, ...],
    seed: int | None,
    width: int | None,
) -> None:
    """Show the pairs of TASK token under token, clean over corrupted.

    Tokens that differ are marked with ^, positions that the task names stand above them, and a blank is shown as a dot: ·Mary.
    The model is not run; a folder with a tokenizer alone will do.

    \b
    circuitfind prompts show ioi
    circuitfind prompts show ioi --pair 7 --counterfactual abc
    """
    from circuitfind.prompt_runs import chosen

    if count is not None and count < 1:
        raise UsageError(f"{count} pairs are none", hint="give --count 1 or more")
    if width is not None and width < 20:
        raise UsageError(f"{width} columns are too few", hint="give --width 20 or more")
    flags = {"model": model, "counterfactual": counterfactual, "seed": seed, "run": False}
    prompted = _gathered(screen, task, flags)
    which = chosen(prompted, numbers) if numbers else range(min(count or SHOWN, len(prompted.pairs)))
    screen.result(_shown(prompted, which), lambda: _print_pairs(screen, prompted, which, width))


def _shown(prompted: Prompted, which: Sequence[int]) -> dict[str, Any]:
    from circuitfind.task.differences import difference

    pairs = prompted.pairs
    return {
        "version": 1,
        "task": prompted.spec.name,
        "model": prompted.model,
        "counterfactual": pairs.counterfactual,
        "total": len(pairs),
        "pairs": [
            {
                "pair": i + 1,
                "where": pairs[i].where,
                "clean": [prompted.piece(token) for token in pairs[i].clean],
                "corrupted": [prompted.piece(token) for token in pairs[i].corrupted],
                "differs": list(difference(pairs[i]).positions),
                "positions": dict(pairs[i].positions),
                "answer_position": pairs[i].answer_position,
                "answer": [prompted.piece(token) for token in pairs[i].answer],
                "wrong": [prompted.piece(token) for token in pairs[i].wrong],
            }
            for i in which
        ],
    }


def _print_pairs(screen: Screen, prompted: Prompted, which: Sequence[int], width: int | None) -> None:
    from rich.text import Text

    from circuitfind.output.prompt_text import align, answers_text

    pairs = prompted.pairs
    screen.out.print(
        Text.assemble(
            (prompted.spec.name, "bold"),
            " for ",
            (prompted.model, "bold"),
            f": {number(len(pairs), 'pair')}, counterfactual {pairs.counterfactual}",
        )
    )
    for i in which:
        pair = pairs[i]
        screen.out.print()
        answer, wrong = (answers_text(tokens, prompted.piece) for tokens in (pair.answer, pair.wrong))
        screen.out.print(f"pair {i + 1}  answer {answer}  wrong {wrong}  ({pair.where})", markup=False)
        for block in align(pair, prompted.piece).blocks(width or min(screen.out.width, 120)):
            for line in block:
                text = Text("  ")
                for part, differs in line:
                    text.append(part, style="bold red" if differs else "")
                text.rstrip()
                screen.out.print(text)
    for note in pairs.notes:
        screen.note(note)


# The printout of a check.


def _print_check(screen: Screen, found: PromptCheck, everything: bool) -> None:
    from rich.text import Text

    p, t = found.prompted, found.totals
    ran = "" if p.session is not None else ", not run"
    screen.out.print(
        Text.assemble(
            (p.spec.name, "bold"),
            " for ",
            (p.model, "bold"),
            f": {_verdict(found)} (counterfactual {p.pairs.counterfactual}{ran})",
        )
    )
    low, high = t["tokens"]
    size = str(low) if low == high else f"{low} to {high}"
    dropped = f", {t['dropped']} more cannot be used" if t["dropped"] else ""
    print_line(
        screen,
        "pairs",
        f"{t['pairs']} of {size} tokens{dropped}; {t['templates']} templates, {t['answers']} answers",
    )
    print_line(screen, "change", f"one stretch of tokens in {t['one_change']} of {t['pairs']} pairs")
    if p.session is not None:
        clean, corrupted = t["clean"], t["corrupted"]
        print_line(
            screen,
            "accuracy",
            f"{share(t['accuracy'])}; the corrupted prompt turns the answer round in {share(t['flipped'])}",
        )
        print_line(
            screen,
            t["metric"],
            f"{clean['mean']:.3f} clean (std {clean['std']:.3f}, from {clean['min']:.3f} to {clean['max']:.3f}), "
            f"{corrupted['mean']:.3f} corrupted (std {corrupted['std']:.3f})",
        )
        if t["without_context"] is not None:
            print_line(
                screen,
                "guessed",
                f"{share(t['without_context'])} right from what stands behind the change alone (50 % is chance)",
            )
    _print_rows(screen, found, everything)
    _print_advice(screen, found)


def _verdict(found: PromptCheck) -> str:
    notes = len(found.advice) - found.warnings
    if not found.advice:
        return "nothing to complain of"
    return f"{number(found.warnings, 'warning')}, {number(notes, 'note')}"


def _print_rows(screen: Screen, found: PromptCheck, everything: bool) -> None:
    rows = found.rows if everything else found.rows[:TEN]
    ran = found.prompted.session is not None
    right = ("pair", "tokens", "clean", "corrupted")
    shown = table(
        "pair",
        "tokens",
        "differs at",
        *(("clean", "corrupted", "turns") if ran else ()),
        "prompt",
        right=right,
    )
    for row in rows:
        spans = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in row["differs"])
        mark = "yes" if row.get("flips") else "no" if row.get("right") else "wrong"
        more = (f"{row['clean_metric']:.2f}", f"{row['corrupted_metric']:.2f}", mark) if ran else ()
        text = row["clean"] if isinstance(row["clean"], str) else " ".join(map(str, row["clean"]))
        room = max(20, min(screen.out.width, 120) - (57 if ran else 29) - max(0, len(spans) - 10))
        cut = text if len(text) <= room else "..." + text[3 - room :]
        shown.add_row(str(row["pair"]), str(row["tokens"]), spans, *more, cut.replace("\n", "\\n"))
    screen.out.print()
    screen.out.print(shown, markup=False)
    left = len(found.rows) - len(rows)
    if left:
        screen.out.print(f"... and {left} more: --all", markup=False)


def _print_advice(screen: Screen, found: PromptCheck) -> None:
    from rich.text import Text

    width = max(40, min(screen.out.width, 104) - 4)
    for one in found.advice:
        screen.out.print()
        style = "bold yellow" if one.level == "warning" else "bold"
        first, *rest = textwrap.wrap(f"{one.level} {one.code}: {one.what}", width, break_on_hyphens=False)
        screen.out.print(Text.assemble((first, style)))
        for line in rest:
            screen.out.print(Text(f"  {line}", style=style))
        for line in textwrap.wrap(f"-> {one.hint}", width, break_on_hyphens=False):
            screen.out.print(f"  {line}", markup=False)
        for place in one.where[:SHOWN]:
            screen.out.print(f"  {place}", markup=False, style="dim")
        if len(one.pairs) > SHOWN:
            numbers = ", ".join(str(i + 1) for i in one.pairs[:12])
            more = ", ..." if len(one.pairs) > 12 else ""
            screen.out.print(f"  pairs {numbers}{more}", markup=False, style="dim")
