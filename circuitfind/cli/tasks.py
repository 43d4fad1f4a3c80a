"""Commands on task files: ``validate``, ``init``, ``schema``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from circuitfind.cli.common import Screen, common_options, share
from circuitfind.cli.options import complete_models, complete_tasks, device_option
from circuitfind.errors import UsageError


@click.command()
@click.argument("task", shell_complete=complete_tasks)
@click.option(
    "--model",
    metavar="NAME",
    shell_complete=complete_models,
    help="Check the prompts against this model.  [default: the task's]",
)
@click.option(
    "--with-model/--no-model",
    default=True,
    show_default=True,
    help="Check the prompts too; without, the file alone, and nothing is loaded.",
)
@click.option("--counterfactual", metavar="NAME", help="Check only this one.  [default: all]")
@click.option("--drop-bad-pairs", is_flag=True, help="Count pairs that do not line up instead of refusing.")
@device_option
@common_options
def validate(
    screen: Screen,
    task: str,
    model: str | None,
    with_model: bool,
    counterfactual: str | None,
    drop_bad_pairs: bool,
    device: str,
) -> None:
    """Check TASK: the file against the schema, then each counterfactual's prompts against the model.

    Pair by pair: equal token length, slots at the same positions, single-token answers, different answers and prompts.
    Then how many of the clean prompts the model answers rightly.

    \b
    circuitfind validate my-task.yaml --no-model
    circuitfind validate ioi --counterfactual abc
    circuitfind validate my-task.yaml --model ./my-model
    """
    from circuitfind.session import Session
    from circuitfind.settings import resolve
    from circuitfind.task.spec import load_task

    spec = load_task(task)
    settings = resolve(spec, model=model, counterfactual=counterfactual, drop_bad_pairs=drop_bad_pairs)
    found: dict[str, Any] = {"version": 1, "task": spec.name, "file": str(spec.path), "checked": []}
    if with_model:
        session = Session(spec, settings, device)
        for name in [counterfactual] if counterfactual or spec.prompts.file else spec.counterfactuals:
            one = Session(
                spec, resolve(spec, model=model, counterfactual=name, drop_bad_pairs=drop_bad_pairs), device
            )
            one.__dict__["model"] = session.model  # loaded once for all counterfactuals
            runs = one.runs_of(one.all_pairs)
            found["checked"].append(
                {
                    "model": settings.model,
                    "counterfactual": one.all_pairs.counterfactual,
                    "pairs": len(one.all_pairs),
                    "dropped": len(one.all_pairs.dropped),
                    "accuracy": float(runs.answered_rightly.mean()),
                    "clean": float(runs.clean.mean()),
                    "corrupted": float(runs.corrupted.mean()),
                    "metric": settings.metric,
                    "notes": list(one.all_pairs.notes),
                }
            )

    def show() -> None:
        screen.out.print(f"{spec.path}: the file is a task", markup=False)
        for row in found["checked"]:
            screen.out.print(
                f"{row['counterfactual']} on {row['model']}: {row['pairs']} pairs line up, accuracy {share(row['accuracy'])}, "
                f"{row['metric']} {row['clean']:.3f} clean and {row['corrupted']:.3f} corrupted",
                markup=False,
            )
            for text in row["notes"]:
                screen.note(text)

    low = [row for row in found["checked"] if row["accuracy"] < settings.min_accuracy]
    screen.result({**found, "ok": not low}, show)
    if low:
        error = UsageError(
            f"{settings.model} answers only {low[0]['accuracy']:.0%} rightly, below the task's {settings.min_accuracy:.0%}",
            where=str(spec.path),
            hint="discover would refuse; use another model or prompts",
        )
        screen.fail(error)


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("my-task.yaml"))
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@common_options
def init(screen: Screen, path: Path, force: bool) -> None:
    """Write a commented task file to start from, at PATH (default my-task.yaml).

    \b
    circuitfind init
    circuitfind init tasks/capitals.yaml
    """
    from circuitfind.output.files import check_new, write_atomic
    from circuitfind.task.spec import SUFFIXES, template

    if path.suffix not in SUFFIXES:
        raise UsageError(f"'{path}' is no name of a task file", hint=f"write {path}.yaml")
    check_new(path, force=force)
    write_atomic(path, template())
    screen.result(
        {"version": 1, "file": str(path)},
        lambda: screen.out.print(f"{path}: edit it, then run: circuitfind validate {path}", markup=False),
    )


@click.command()
@common_options
def schema(screen: Screen) -> None:
    """Print the JSON Schema of task files.

    \b
    circuitfind schema > task.schema.json
    In VS Code's YAML extension: # yaml-language-server: $schema=task.schema.json
    """
    from circuitfind.task.spec import json_schema

    found = json_schema()
    screen.result(
        {"version": 1, "schema": found},
        lambda: click.echo(json.dumps(found, indent=1, ensure_ascii=False)),
    )
