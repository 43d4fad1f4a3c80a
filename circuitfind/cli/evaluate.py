"""``evaluate`` and ``certify``: what speaks for a circuit, and the verdict on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitfind.cli.common import Screen, common_options
from circuitfind.cli.engine_options import engine_options, engined
from circuitfind.cli.evidence_lines import evidence_lines, part_lines
from circuitfind.cli.lines import print_line, print_title
from circuitfind.cli.options import (
    complete_runs,
    counterfactual_option,
    in_order,
    model_option,
    place_options,
    rerun_option,
)
from circuitfind.cli.placing import placed, placing_options
from circuitfind.cli.progress import Progress
from circuitfind.config import ABLATIONS, CONTROLS, DEFAULT_CONTROLS, Controls
from circuitfind.errors import UsageError

if TYPE_CHECKING:
    from circuitfind.evidence.report import Evidence
    from circuitfind.evidence_subjects import Subject

CHEAP = ("completeness", "minimality", "known")
"""What is added when nothing is said."""

subject_options = in_order(
    click.option(
        "--task", metavar="TASK", help="The task of a circuit file, or the task whose --known it is."
    ),
    model_option("the run's, the file's or the list's"),
    click.option(
        "--known", metavar="NAME", help="A circuit that TASK lists, in place of RUN; `any` for the first one."
    ),
    click.option("--metric", metavar="NAME", help="Of a file or a list.  [default: the task's]"),
    counterfactual_option,
)

measure_options = in_order(
    click.option(
        "--ablation",
        "ablations",
        metavar="NAME",
        multiple=True,
        help=f"{', '.join(ABLATIONS)}; may be repeated.  [default: the circuit's own and a second one]",
    ),
    click.option(
        "--controls",
        type=click.Choice(CONTROLS),
        default=DEFAULT_CONTROLS,
        show_default=True,
        help="How thoroughly the circuit is held against controls.",
    ),
    click.option(
        "--count",
        type=click.IntRange(1),
        metavar="N",
        help="New prompt pairs.  [default: as many as the run]",
    ),
    click.option(
        "--seed",
        type=click.IntRange(1),
        metavar="N",
        default=1,
        show_default=True,
        help="Of new prompts and of draws.",
    ),
)


@click.command()
@click.argument("run", metavar="[RUN|CIRCUIT]", required=False, shell_complete=complete_runs)
@subject_options
@measure_options
@click.option(
    "--parts",
    metavar="NAMES",
    help="What to add, with commas: completeness, minimality, curve, tests, stability, counterfactuals, seeds, known; or all.  "
    f"[default: {','.join(CHEAP)}]",
)
@click.option(
    "--draws",
    type=click.IntRange(2),
    metavar="N",
    default=50,
    show_default=True,
    help="Random sets, circuits and rankings that each part draws.",
)
@click.option("-o", "--output", metavar="FILE", help="Write the evidence there too, as JSON.")
@place_options
@placing_options
@engine_options
@rerun_option
@common_options
@placed
@engined
def evaluate(
    screen: Screen,
    run: str | None,
    parts: str | None,
    draws: int,
    output: str | None,
    outputs: str | None,
    force: bool,
    controls: Controls,
    ablations: tuple[str, ...],
    count: int | None,
    seed: int,
    **given: Any,
) -> None:
    """Measure the circuit of RUN, or of a CIRCUIT file, on prompts that it was not pruned on.

    RUN is a run's name, the beginning of it, its folder, or `latest`; CIRCUIT is a circuit.json or a JSON graph of EAP-IG,
    with --task. The exit code is 1 where the circuit does no better than a control.

    \b
    circuitfind evaluate latest
    circuitfind evaluate latest --parts all --controls full --ablation resample --ablation mean --ablation zero
    circuitfind evaluate graph.json --task ioi --model gpt2
    circuitfind evaluate --task ioi --known any --model gpt2
    """
    from circuitfind.evidence.certify import certify
    from circuitfind.evidence_prompts import options_named
    from circuitfind.evidence_runs import evaluate as gather
    from circuitfind.evidence_runs import evaluate_run
    from circuitfind.output.files import write_atomic
    from circuitfind.output.store import Store

    wanted = _parts(parts)
    options = options_named(ablations, controls, count, seed)
    if output is not None and Path(output).is_dir():
        raise UsageError(
            f"'{output}' is a folder", hint=f"name a file in it: {Path(output) / 'evidence.json'}"
        )
    store = Store(outputs)
    with Progress(screen) as progress:
        subject = _subject(run, store, given, progress)
        if subject.run is None:
            evidence = gather(subject, options, wanted, draws=draws)
        else:
            evidence, _ = evaluate_run(subject, store, options, wanted, draws=draws, force=force)
    verdict = certify(evidence, min_accuracy=subject.session.settings.min_accuracy)
    data = {"version": 1, **evidence.as_dict(), "verdict": verdict.as_dict()}
    if output is not None:
        from circuitfind.evidence_stage import evidence_text

        write_atomic(Path(output), evidence_text(evidence))
    screen.result(data, lambda: _show(screen, subject, evidence, verdict.as_dict()))
    if verdict.refuted:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("run", metavar="[RUN|CIRCUIT]", required=False, shell_complete=complete_runs)
@subject_options
@measure_options
@click.option(
    "--faithfulness",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="What must be reached.  [default: 0.1 below what the circuit was pruned to]",
)
@place_options
@placing_options
@engine_options
@common_options
@placed
@engined
def certify(
    screen: Screen,
    run: str | None,
    faithfulness: float | None,
    outputs: str | None,
    controls: Controls,
    ablations: tuple[str, ...],
    count: int | None,
    seed: int,
    **given: Any,
) -> None:
    """Certify the circuit of RUN, or of a CIRCUIT file, or refuse it with the reasons; exit code 1 if refused.

    What a run has measured is used again where it is enough.

    \b
    circuitfind certify latest
    circuitfind certify latest --faithfulness 0.85 --ablation resample
    circuitfind certify --task gendered-pronoun --known any --model gpt2
    """
    from circuitfind.evidence.certify import certify as weigh
    from circuitfind.evidence_prompts import options_named
    from circuitfind.evidence_runs import evaluate as gather
    from circuitfind.evidence_runs import evidence_on
    from circuitfind.output.store import Store

    options = options_named(ablations, controls, count, seed)
    store = Store(outputs)
    with Progress(screen) as progress:
        evidence, accuracy = None, 0.0
        if _is_run(run, given):
            from circuitfind.backup_runs import settings_of

            found = store.find(run or "latest")
            accuracy = settings_of(found).min_accuracy
            evidence = evidence_on(found, options)
        if evidence is None:
            subject = _subject(run, store, given, progress)
            accuracy = subject.session.settings.min_accuracy
            evidence = gather(subject, options, ())
    verdict = weigh(evidence, faithfulness=faithfulness, ablations=ablations, min_accuracy=accuracy)
    told = _told(evidence.as_dict(), verdict.as_dict())
    screen.result({"version": 1, **told}, lambda: _show_verdict(screen, evidence, told))
    if not verdict.certified:
        raise click.exceptions.Exit(1)


def _parts(text: str | None) -> tuple[str, ...]:
    from circuitfind.evidence_parts import parts_named

    return CHEAP if text is None else parts_named([part.strip() for part in text.split(",") if part.strip()])


def _is_file(text: str) -> bool:
    return Path(text).is_file() or text.endswith(".json")


def _is_run(run: str | None, given: dict[str, Any]) -> bool:
    """Whether the arguments name a run, and no file or known circuit.

    Raises:
        UsageError: They do, and say what only those need.
    """
    if given["known"] is not None or (run is not None and _is_file(run)):
        return False
    flags = [f"--{name}" for name in ("task", "model", "metric", "counterfactual") if given[name] is not None]
    if flags:
        raise UsageError(
            f"{flags[0]} is for circuit files and known circuits: a run has its own",
            hint="leave it out, or give a circuit file",
        )
    return True


def _subject(run: str | None, store: Any, given: dict[str, Any], reporter: Progress) -> Subject:
    """What the arguments name: a run, a file, or a circuit of a task's list."""
    from circuitfind.evidence_subjects import subject_of_file, subject_of_known, subject_of_run
    from circuitfind.settings import memory_bytes
    from circuitfind.task.spec import load_task

    place = {"device": given["device"], "memory": memory_bytes(given["memory"]), "reporter": reporter}
    if _is_run(run, given):
        return subject_of_run(store.find(run or "latest"), **place)
    others = {name: given[name] for name in ("model", "metric", "counterfactual")}
    if given["known"] is not None:
        task = given["task"] or run
        if task is None or (given["task"] and run):
            raise UsageError("a known circuit is one of a task", hint="write it as: --task ioi --known any")
        name = None if given["known"] == "any" else given["known"]
        return subject_of_known(load_task(task), name, **others, **place)
    assert run is not None, "neither a run nor a known circuit: a file"
    if given["task"] is None:
        raise UsageError(
            "a circuit file is evaluated on a task",
            where=run,
            hint="name it by --task, such as --task ioi",
        )
    return subject_of_file(Path(run), load_task(given["task"]), **others, **place)


def _told(evidence: dict[str, Any], verdict: dict[str, Any]) -> dict[str, Any]:
    """The verdict, and what it rests on."""
    return {**verdict, **{name: evidence[name] for name in ("prompts", "measured", "controls", "notes")}}


def _show_verdict(screen: Screen, evidence: Evidence, told: dict[str, Any]) -> None:
    size = f"a circuit of {evidence.edges} of {evidence.edges_in_model} edges"
    print_title(screen, evidence.conditions, size)
    for title, line in evidence_lines(told):
        print_line(screen, title, line)
    # Those that the lines on controls have not told.
    for caution in told["cautions"]:
        if not caution.startswith("not held against"):
            print_line(screen, "caution", caution)


def _show(screen: Screen, subject: Subject, evidence: Evidence, verdict: dict[str, Any]) -> None:
    data = evidence.as_dict()
    _show_verdict(screen, evidence, _told(data, verdict))
    for title, line in part_lines(data):
        print_line(screen, title, line)
    for note in evidence.notes:
        print_line(screen, "note", note)
    if subject.run is not None:
        print_line(screen, "file", str(subject.run.path / "evaluation.json"))
