"""``circuitfind prompts suggest``: words that take another one's place and change nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitfind.cli.common import Screen, common_options, number, table
from circuitfind.cli.options import complete_tasks, device_option, model_option
from circuitfind.errors import UsageError

if TYPE_CHECKING:
    from circuitfind.suggest_runs import Suggester
    from circuitfind.suggestions import Prompt, Suggested
    from circuitfind.task.spec import TaskSpec

TEN = 10
PROMPTS = 8
"""Prompts that are drawn of a task."""
MODEL = "mini"


@click.command()
@click.argument("thing", metavar="TEXT|TASK", shell_complete=complete_tasks)
@click.option("--change", metavar="WORD", help="The word of TEXT, or the slot of TASK, that is replaced.")
@click.option(
    "--occurrence",
    metavar="N",
    default="last",
    show_default=True,
    help="Which of its places: a number, last, all.",
)
@click.option(
    "--from",
    "sources",
    type=click.Choice(("text", "task", "lists", "model")),
    multiple=True,
    help="Where words come from; may be repeated.  [default: text, task, lists; the model where these are few]",
)
@click.option(
    "--words", type=click.Path(path_type=Path), metavar="FILE", help="Words to try, one on each line."
)
@click.option("--answer", metavar="TEXT", help="Right answer to the prompt.  [default: what the model says]")
@click.option(
    "--wrong", metavar="TEXT", help="Right answer to the changed one.  [default: what the model says]"
)
@model_option("mini, or the task's")
@click.option("--run/--no-run", default=None, help="Run the model.  [default: where there is one]")
@click.option("--count", type=int, metavar="N", default=TEN, show_default=True, help="Words for each prompt.")
@click.option(
    "--prompts", "n_prompts", type=int, metavar="N", help=f"Prompts to draw of a task.  [default: {PROMPTS}]"
)
@click.option("--seed", type=int, metavar="N", help="Seed that they are drawn from.  [default: the task's]")
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a task of these pairs, both ways round.",
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@device_option
@common_options
def suggest(
    screen: Screen,
    thing: str,
    change: str | None,
    occurrence: str,
    sources: tuple[str, ...],
    words: Path | None,
    answer: str | None,
    wrong: str | None,
    model: str | None,
    run: bool | None,
    count: int,
    n_prompts: int | None,
    seed: int | None,
    to: Path | None,
    force: bool,
    device: str,
) -> None:
    """Suggest words that take another one's place in a prompt and keep its length and every other token.

    Words come from the prompt itself, from the slot of a task, from lists of names, places and the like, from a file, or from
    the model. Those that turn the model's answer round stand first, then those that are as likely in that place as the word.
    With --to they become a task of symmetric pairs, ready to check and to discover.

    \b
    circuitfind prompts suggest "When Mary and John went to the store, John gave a drink to" --change John
    circuitfind prompts suggest "The {cat} by the trees" --from model --count 5
    circuitfind prompts suggest ioi --change B --to my-ioi.yaml
    """
    from circuitfind.suggest_runs import Suggester
    from circuitfind.suggestions import as_task, best, check_path, of_task, of_text
    from circuitfind.task.source import shown_path

    for name, value in (("count", count), ("prompts", n_prompts)):
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value} is none", hint=f"give --{name} 1 or more")
    where = _occurrence(occurrence)
    if to is not None:
        check_path(to, force=force)
    spec = _task(thing)
    of_texts = {"--prompts": n_prompts, "--seed": seed}
    given = next((flag for flag, value in of_texts.items() if value is not None), None)
    if spec is None and given is not None:
        raise UsageError(
            f"{given} is for tasks, and '{thing[:40]}' is a prompt", hint="leave it out, or give a task"
        )
    if spec is None:
        of_text(thing, change, where, answer, wrong)  # told before a model is loaded
    name = model or (MODEL if spec is None else spec.model)
    suggester = Suggester(name, run, sources, words, device)
    if suggester.why_not is not None:
        screen.note(f"not run: {suggester.why_not}")
    prompts: list[Prompt]
    if spec is None:
        prompts = of_text(thing, change, where, answer, wrong)
    else:
        prompts = of_task(spec, suggester.tokenizer, change, where, n_prompts or PROMPTS, seed)
    found = best([suggester.suggest(prompt) for prompt in prompts], count)
    written = None
    if to is not None:
        written = as_task(found, path=to, model=name, each=count, wrong=wrong, force=force)
    data: dict[str, Any] = {
        "version": 1,
        "model": name,
        "run": suggester.ran,
        "prompts": [one.as_dict() for one in found],
        "file": None if written is None else str(written[0]),
        "pairs": None if written is None else written[1],
    }

    def show() -> None:
        _print(screen, found, suggester)
        if written is not None:
            path = shown_path(written[0])
            screen.out.print()
            screen.out.print(
                f"{path}: {number(written[1], 'pair')}; look at them: circuitfind prompts check {path}",
                markup=False,
            )

    screen.result(data, show)


def _occurrence(text: str) -> int | str:
    if text in ("last", "all"):
        return text
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UsageError(
        f"'{text}' is no place of a word", hint="give --occurrence a number from 1, last, or all"
    )


def _task(thing: str) -> TaskSpec | None:
    """The task of that name or file; None for a prompt, which has a blank in it."""
    from circuitfind.task.spec import SUFFIXES, find_tasks, load_task

    if thing in find_tasks() or Path(thing).suffix in SUFFIXES or not any(c in thing for c in " {"):
        return load_task(thing)
    return None


# The printout.


def _print(screen: Screen, found: list[Suggested], suggester: Suggester) -> None:
    for i, one in enumerate(found):
        if i:
            screen.out.print()
        _print_prompt(screen, one)
        if not one.found:
            screen.out.print(
                "  no word fits: give some with --words FILE, or take them --from model", markup=False
            )
            continue
        _print_words(screen, one, ran=suggester.ran)
    screen.out.print()
    if suggester.ran:
        screen.out.print(
            "log prob: of the word in that place; says: what the model says next; clean, corrupted: logit of the answer "
            "minus that of what it says instead (or of wrong)",
            markup=False,
        )


def _print_prompt(screen: Screen, one: Suggested) -> None:
    from rich.text import Text

    spot, text, at = one.prompt.spot, Text(), 0
    for start, end in spot.places:
        text.append(spot.text[at:start])
        text.append(f"[{spot.text[start:end]}]", style="bold red")
        at = end
    text.append(spot.text[at:])
    screen.out.print(text)
    told = [number(one.tokens, "token")]
    told += [] if one.log_prob is None else [f"log prob {one.log_prob:.2f}"]
    told += [] if one.answer is None else [f"answer '{one.answer}'"]
    told += [f"{one.refused} words left out that change other tokens or the length"] if one.refused else []
    if spot.total > len(spot.places):
        told.append(f"one of {spot.total} places: --occurrence names others")
    screen.out.print(f"  {', '.join(told)}", markup=False)


def _print_words(screen: Screen, one: Suggested, *, ran: bool) -> None:
    # Where the model decides, what it says is what is held against the answer.
    apart = any(s.wrong != s.says for s in one.found)
    more = ("log prob", "says", *(("wrong",) if apart else ()), "clean", "corrupted", "turns") if ran else ()
    shown = table("word", *more, "from", right=("log prob", "clean", "corrupted"))
    for s in one.found:
        cells: tuple[str, ...] = ()
        if ran:
            chance = "" if s.log_prob is None else f"{s.log_prob:.2f}"
            wrong = (repr(s.wrong),) if apart else ()
            cells = (
                chance,
                repr(s.says),
                *wrong,
                f"{s.clean:+.2f}",
                f"{s.corrupted:+.2f}",
                "yes" if s.turns else "no",
            )
        shown.add_row(s.candidate.word, *cells, s.candidate.source)
    screen.out.print(shown, markup=False)
