"""Speed and memory of our jobs beside the least they can cost, and beside other tools.

make bench                                  all jobs
make bench ARGS="eap heads --repeats 3"     some jobs
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
if __package__ in (None, ""):  # run as a file: the package is the folder above it
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import floors, peers, pipeline
from benchmarks.case import PAIRS, TOKENS, Case, NotAvailable
from benchmarks.jobs import JOBS, SAME, SCALE, SCALING, Bar, Job, make_side
from benchmarks.measure import Times, alone, take_turns
from benchmarks.report import FAILED, MISSED, Row, Screen, versions, write
from circuitfind.config import PRECISIONS

NAMES = [*(job.name for job in JOBS), SCALING, pipeline.NAME]


def seconds(job: Job, case: Case, found: dict[str, float]) -> float:
    """What stands against ours."""
    if isinstance(job.against, floors.Floor):
        return job.against.seconds(found)
    if isinstance(job.against, peers.Peer):
        return peers.seconds(job.against, case, found)
    return found[job.against]


def judge(bar: Bar | None, figure: float, case: Case) -> tuple[str, str]:
    """The bar and whether the figure keeps to it. Bars are for the shapes of real work, not for ``tiny``."""
    if bar is None or case.shape == "tiny":
        return "", ""
    return str(bar), "ok" if bar.met(figure) else MISSED


def measure(job: Job, case: Case, repeats: int, memory: bool) -> Iterator[Row]:
    """The rows of a job.

    Raises:
        NotAvailable: A side of it does not exist here.
    """
    others = (job.against,) if isinstance(job.against, str) else job.against.sides
    sides = {name: make_side(case, name) for name in dict.fromkeys((*others, job.ours))}
    times = take_turns(sides, min(repeats, job.most), case.device)
    yield _time(job, case, times)
    if job.check is not None and isinstance(job.against, peers.Peer):
        worst = job.check(case, times.results[job.ours], times.results[job.against.side])
        verdict = "ok" if SAME.met(worst) else MISSED
        yield Row(
            job.name, "difference", f"{worst:.1e}", "", str(SAME), verdict, "between the values of both"
        )
    if memory:
        yield from _memory(job, case)


def _time(job: Job, case: Case, times: Times) -> Row:
    pieces = 1.0 if job.per is None else job.per(times.results[job.ours])
    faster = isinstance(job.against, peers.Peer)

    def ratio(found: dict[str, float]) -> float:
        ours, theirs = found[job.ours] / pieces, seconds(job, case, found)
        return theirs / ours if faster else ours / theirs

    best = times.fastest
    value, middle = ratio(best), statistics.median(ratio(turn) for turn in times.turns)
    took = f"{best[job.ours]:.3g} s" + (f" for {pieces:.0f} {job.pieces}" if job.per else "")
    how = [f"{took} against {seconds(job, case, best):.3g} s"]
    if isinstance(job.against, floors.Floor) and job.against.backward:
        how.append(f"F {best['F']:.3g}, B {best['F+B'] - best['F']:.3g}")
    if isinstance(job.against, peers.Peer):
        how.append(job.against.note(case))
    how.append(f"median {middle:.2f} of {len(times.turns)}")
    of = job.against if isinstance(job.against, str) else job.against.text
    return Row(
        job.name,
        "speed" if faster else "time",
        f"{value:.2f}",
        of,
        *judge(job.bar, value, case),
        "; ".join(how),
    )


def _memory(job: Job, case: Case) -> Iterator[Row]:
    """Peak memory beside the floor's or the peer's, or as it is; of jobs beside a forward pass alone none."""
    if job.gigabytes is not None:
        found = alone(case, job.ours)
        if found is not None:
            size = found.extra / 1e3
            verdict = judge(job.gigabytes, size, case)
            yield Row(job.name, "memory", f"{size:.2f}", "GB", *verdict, "peak beyond the model")
        return
    if isinstance(job.against, floors.Floor):
        of = side = floors.GRADIENT.text
        if not job.against.backward:
            return
    elif isinstance(job.against, peers.Peer):
        of, side = job.against.text, job.against.side
    else:
        return
    ours, theirs = alone(case, job.ours), alone(case, side)
    if ours is None or theirs is None:
        return
    value = ours.extra / max(theirs.extra, 1e-3)
    how = f"{ours.extra:.0f} MB against {theirs.extra:.0f} MB beyond the model"
    yield Row(job.name, "memory", f"{value:.2f}", of, *judge(job.memory_bar, value, case), how)


def scaling(case: Case) -> Iterator[Row]:
    """Seconds for each pair, and memory, of edge attribution over more and more pairs."""
    for count in SCALE:
        found = alone(case, f"eap {count}")
        if found is not None:
            how = f"{found.seconds:.3g} s, {found.extra:.0f} MB beyond the model"
            yield Row(SCALING, f"{count} pairs", f"{found.seconds / count:.3g}", "s for a pair", how=how)


def rows_of(
    name: str, cases: Cases, repeats: int, memory: bool, pairs: int = pipeline.PAIRS, precision: str = "fp32"
) -> Iterator[Row]:
    """The rows of a job by name; whatever goes wrong with one job is a row, so that the others still run."""
    job = next((job for job in JOBS if job.name == name), None)
    try:
        if name == pipeline.NAME:
            yield from pipeline.rows(cases.folder, cases.device, pairs, precision)
        elif job is None:
            yield from scaling(cases.of(None))
        else:
            yield from measure(job, cases.of(job.shape), repeats, memory)
    except NotAvailable as why:
        yield Row(name, "", verdict="not available", how=str(why))
    except Exception as error:  # noqa: BLE001
        yield Row(name, "", verdict=FAILED, how=f"{type(error).__name__}: {error}".splitlines()[0])


class Cases:
    """The case of every shape on one device, so that models are loaded once."""

    def __init__(self, folder: Path, shape: str, device: str, full: bool) -> None:
        self.folder, self.device = folder, device
        self._shape = shape
        self._make = partial(Case, folder, device=device, full=full)
        self._made: dict[str, Case] = {}

    def of(self, shape: str | None) -> Case:
        """The case of a job that wants this shape, or any; ``tiny`` is small enough for all."""
        wanted = self._shape if shape is None or self._shape == "tiny" else shape
        if wanted not in self._made:
            self._made[wanted] = self._make(shape=wanted)
        return self._made[wanted]


def devices(asked: tuple[str, ...]) -> list[str]:
    """The devices to measure on: those asked for, or all there are.

    Raises:
        click.UsageError: There is no GPU.
    """
    import torch

    there = torch.cuda.is_available()
    if "cuda" in asked and not there:
        raise click.UsageError("there is no GPU that torch can use")
    return list(asked) or (["cpu", "cuda"] if there else ["cpu"])


def pick(words: tuple[str, ...]) -> list[str]:
    """Names of jobs from words that name a job or a group of jobs.

    Raises:
        click.BadParameter: A word names neither.
    """
    for word in words:
        if word not in NAMES and word not in {name.partition(":")[0] for name in NAMES}:
            raise click.BadParameter(f"no job is named '{word}'; --list names them")
    return [name for name in NAMES if not words or {name, name.partition(":")[0]} & set(words)]


def show_list() -> None:
    width = max(map(len, NAMES)) + 2
    for job in JOBS:
        against = job.against if isinstance(job.against, str) else job.against.text
        bar = "no bar" if job.bar is None else f"{job.bar} × {against}"
        print(f"{job.name:<{width}}{bar:<24}{job.summary}")
    for name, summary in (
        (SCALING, f"edge attribution of {', '.join(map(str, SCALE))} pairs"),
        (pipeline.NAME, f"all of discover on {pipeline.PAIRS} pairs, and every node exactly"),
    ):
        print(f"{name:<{width}}{'no bar':<24}{summary}")


@click.command()
@click.argument("jobs", nargs=-1)
@click.option("--repeats", default=7, show_default=True, help="Turns; long jobs take at most 3 or 5.")
@click.option("--shape", default="gpt2-small", show_default=True, type=click.Choice(["gpt2-small", "tiny"]))
@click.option("--device", multiple=True, type=click.Choice(["cpu", "cuda"]), help="Default: all there are.")
@click.option(
    "--pairs",
    default=pipeline.PAIRS,
    show_default=True,
    help=f"Pairs of {pipeline.NAME}.",
    type=click.IntRange(8),
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(PRECISIONS),
    help=f"What {pipeline.NAME} scores in.",
)
@click.option("--full", is_flag=True, help="Run other tools whole: minutes for every turn.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure memory too.")
@click.option("--strict", is_flag=True, help="Exit with 1 when a bar is missed.")
@click.option(
    "--write", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write a Markdown page."
)
@click.option("--list", "listing", is_flag=True, help="List the jobs and their bars, and run none.")
def main(
    jobs: tuple[str, ...],
    repeats: int,
    shape: str,
    device: tuple[str, ...],
    pairs: int,
    precision: str,
    full: bool,
    memory: bool,
    strict: bool,
    page: Path | None,
    listing: bool,
) -> None:
    """Measure JOBS (default: all), named one by one or by group, such as heads for heads:late and heads:early."""
    if listing:
        show_list()
        return
    names = pick(jobs)
    verdicts: set[str] = set()
    with tempfile.TemporaryDirectory() as made:
        for where in devices(device):
            title = _title(where)
            note = f"{shape}, {PAIRS} pairs of {TOKENS} tokens, fp32; {versions()}"
            print(f"{title}: {versions() if names == [pipeline.NAME] else note}")
            screen = Screen(names)
            cases = Cases(Path(made), shape, where, full)
            for name in names:
                rows = []
                for row in rows_of(name, cases, repeats, memory, pairs, precision):
                    screen.row(row)
                    rows.append(row)
                verdicts |= {row.verdict for row in rows}
                if page is not None:
                    write(page, title, note, rows, NAMES)
    if FAILED in verdicts or (strict and MISSED in verdicts):
        sys.exit(1)


def _title(device: str) -> str:
    if device == "cpu":
        return "CPU, one thread"
    import torch

    return str(torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
