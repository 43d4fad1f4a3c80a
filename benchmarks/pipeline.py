"""The whole of `discover` on indirect objects in the shape of GPT-2 small: seconds, passes and memory of every stage.

First `discover` as it is by default: the pairs, hybrid scores of all edges, pruning and evaluation, backups, evidence, and
what a report shows. Then the exact effect of every node in both directions (`activation-patching -o both=yes`), from the
same pairs. On real `gpt2` where the cache or the hub has it, else on the stand-in of ioi.py.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import ioi
from benchmarks.measure import Clock, peak, single_thread, start_peak
from benchmarks.report import Row

if TYPE_CHECKING:
    from circuitfind.model.bridge import Model
    from circuitfind.task.spec import TaskSpec

NAME = "pipeline-ioi-200"
PAIRS = 200
EXACT = "exact"
"""What the second run is called: every node, both directions."""


@dataclass
class Heard:
    """A reporter that keeps the seconds of each stage, and what it held at its peak beyond what was held before.

    Seconds are CPU time on a CPU; on a GPU they go from one event in its queue to another, the host's work included.
    """

    device: str
    held: float
    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    _clock: Clock | None = None

    def stage(self, name: str, state: str, detail: str = "") -> None:
        if state == "running" and not detail:
            start_peak(self.device)
            self._clock = Clock(self.device)
        if state == "finished" and self._clock is not None:
            self.seconds[name] = self._clock.seconds()
            self.peaks[name] = peak(self.device) - self.held

    def progress(self, rows: int) -> None: ...

    def note(self, text: str) -> None:
        print(f"note: {text}", file=sys.stderr)


@dataclass(frozen=True)
class Subject:
    """A task, and the model that does it."""

    spec: TaskSpec
    model: str
    text: str


def subject(folder: Path) -> Subject:
    """Real `gpt2` where it is, else the stand-in, which is written to a folder."""
    if ioi.there():
        return Subject(ioi.task(), ioi.REAL, "gpt2")
    spec, path = ioi.task_in_words(), folder / "gpt2-shaped"
    if not path.exists():
        ioi.make_model(path, len(ioi.slot_values(spec, "A")))
    return Subject(spec, str(path), "a stand-in of GPT-2 small's shape")


def rows(folder: Path, device: str, pairs: int, precision: str) -> Iterator[Row]:
    """The rows of the job.

    Args:
        folder: Where models and runs are written.
        device: ``cpu`` or ``cuda``.
        pairs: Pairs that are drawn; those that the model answers wrongly are left out.
        precision: What scores and pruning are computed in.
    """
    from circuitfind.pipeline import discover_task
    from circuitfind.settings import resolve

    if device == "cpu":
        single_thread()
    of = subject(folder)
    model = _load(of.model, device)
    default = resolve(of.spec, model=of.model, count=pairs, precision=precision)
    exact = resolve(
        of.spec,
        model=of.model,
        count=pairs,
        precision=precision,
        method="activation-patching",
        options={"both": "yes"},
        edges=50,
        backups=False,
    )
    held = start_peak(device)
    total: dict[str, float] = {"seconds": 0.0, "forward": 0, "backward": 0}
    with tempfile.TemporaryDirectory(dir=folder) as outputs:
        for settings in (default, exact):
            heard = Heard(device, held)
            whole: dict[str, Any] = {} if settings is default else {"controls": "none", "views": False}
            found = discover_task(
                of.spec,
                settings,
                outputs=outputs,
                device=device,
                formats=(),
                reporter=heard,
                lend=lambda name: _fresh(model),
                **whole,
            )
            stages = _stages(found.folder)
            for name, facts in stages.items():
                if settings is exact and name != "scores":
                    continue  # reused, or not part of the job
                figure = EXACT if settings is exact else name
                total["seconds"] += heard.seconds.get(name, 0.0)
                for way in ("forward", "backward"):
                    total[way] += facts[f"{way}_passes"]
                yield _row(figure, facts, heard.seconds.get(name, 0.0), heard.peaks.get(name, 0.0))
            if settings is default:
                kept, text = len(stages["prompts"]["kept"]), of.text
                size = f"{len(found.circuit.edges)} edges"
    passes = f"{total['forward']:.0f} forward passes, {total['backward']:.0f} backward"
    how = f"{text}; {kept} of {pairs} pairs kept, {precision}; a circuit of {size}; {passes}"
    yield Row(NAME, "total", f"{total['seconds']:.1f}", "s", how=how)


def _row(figure: str, facts: Mapping[str, Any], seconds: float, most: float) -> Row:
    passes = f"{facts['forward_passes']:,} forward passes, {facts['backward_passes']:,} backward"
    memory = f"; peak {most / 1e6:,.0f} MB beyond the model"
    return Row(NAME, figure, f"{seconds:.2f}", "s", how=passes + memory)


def _load(name: str, device: str) -> Model:
    from circuitfind.model.load import load_model

    return load_model(name, device=device)


def _fresh(model: Model) -> Model:
    """A model that has counted no passes yet."""
    model.passes.update(dict.fromkeys(model.passes, 0))
    return model


def _stages(run: Path) -> dict[str, dict[str, Any]]:
    """What the manifest of a run says of its stages, in their order."""
    from circuitfind.output.manifest import read_manifest
    from circuitfind.pipeline import STAGES

    manifest = read_manifest(run)
    return {name: manifest["stages"][name]["facts"] for name in STAGES if name in manifest["stages"]}
