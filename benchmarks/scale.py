"""How the time grows with prompts, with the model, with candidates and with workers: points for docs/scale.md.

    python -m benchmarks.scale                          every curve on this CPU, about ten minutes
    python -m benchmarks.scale prompts --device cuda    one curve on a GPU
    python -m benchmarks.scale_page                     draw the points and write the tables

Points go into docs/data/scale.json; those of the same curve and machine are replaced, others stay. A *measured* point was
run; an *estimated* one is what the plan of `--dry-run` says, whose only measurement is the speed of one block of that shape.
Both kinds are told where a point could be run, so that the one can be held against the other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from benchmarks.case import SHAPES, TOKENS, Case
from benchmarks.jobs import fresh_runs
from benchmarks.measure import Clock, single_thread

if TYPE_CHECKING:
    from circuitfind.circuit.scores import Scores
    from circuitfind.model.shapes import Shape

DATA = Path(__file__).resolve().parent.parent / "docs" / "data" / "scale.json"
LABELS = {"d128": "4 layers of 128", "d256": "6 layers of 256", "d512": "8 layers of 512"}
PROMPTS = (16, 32, 64, 128, 256, 512)
MORE_PROMPTS = (1024, 2048, 4096)
SIZES = ("d128", "d256", "d512", "gpt2-small")
LARGER = ("gpt2-medium", "gpt2-large", "gpt2-xl", "Qwen/Qwen2-7B", "meta-llama/Llama-2-70b-hf")
CANDIDATES = (16, 32, 64, 128, 256, 512)
MORE_CANDIDATES = (2048, 8192, 32491)
TRIES = 5
BUDGET = 3 * 10**9
"""Bytes that runs plan for."""
WORKER_SHAPE, WORKER_PAIRS, WORKER_COUNTS, MORE_WORKERS = "d512", 16, (1, 2), (4, 8, 16)
BOTH = "every node, both directions"
NODE_CANDIDATE = 0.5
"""Passes that one patched edge costs, as the plan counts: from its reader on, and from where the prompts differ."""

SHAPES.update(
    {
        "d128": {"n_layer": 4, "n_head": 8, "n_embd": 128},
        "d256": {"n_layer": 6, "n_head": 8, "n_embd": 256},
        "d512": {"n_layer": 8, "n_head": 8, "n_embd": 512},
    }
)


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        curve: ``prompts``, ``size``, ``candidates`` or ``workers``.
        machine: On what.
        kind: ``measured`` or ``estimated``.
        x: Pairs, weights, edges or workers.
        seconds: What it took, or should.
        label: What stands at ``x``, where a number does not say it.
        how: What was done.
        day: When.
        load: How many processes the machine was busy with just then, this one included (the load of the last minute).
    """

    curve: str
    machine: str
    kind: str
    x: float
    seconds: float
    label: str = ""
    how: str = ""
    day: str = ""
    load: float | None = None


class Bench:
    """A device, a folder for models, and what machine this is."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        self.machine = _machine(device)

    def case(self, shape: str = "gpt2-small") -> Case:
        return Case(self.folder, shape, self.device)

    def point(self, curve: str, kind: str, x: float, seconds: float, **told: str) -> Point:
        load = round(os.getloadavg()[0], 1) if kind == "measured" else None
        day = f"{datetime.now(timezone.utc):%Y-%m-%d}"
        return Point(curve, self.machine, kind, x, round(seconds, 4), **told, day=day, load=load)


def _machine(device: str) -> str:
    if device == "cpu":
        return f"{os.cpu_count()} shared CPU cores, one thread"
    import torch

    return str(torch.cuda.get_device_name())


def fastest(device: str, work: Callable[[], Any], repeats: int = 2, enough: float = 15.0) -> float:
    """Seconds of the fastest run: CPU time on a CPU, time in its queue on a GPU. One is enough where it is long."""
    found: list[float] = []
    while len(found) < repeats and sum(found) < enough:
        clock = Clock(device)
        work()
        found.append(clock.seconds())
    return min(found)


# What the plan says.


def shape_of_case(name: str) -> Shape:
    """The sizes of a model of ``SHAPES``, or of one that the plan knows by name."""
    from circuitfind.model.configurations import from_table, shape_of

    if name not in SHAPES:
        found = from_table(name)
        assert found is not None
        return found.shape
    from transformers import GPT2Config

    return shape_of(GPT2Config(**SHAPES[name]).to_dict(), name)


def forward_seconds(shape: Shape, pairs: int, flops: float) -> float:
    """A forward pass over all prompts, as the plan of a model that is not loaded has it."""
    work = pairs * (TOKENS * shape.flops(TOKENS) + shape.unembed_flops)
    return work / flops


def speed(shape: Shape, device: str, pairs: int = 16) -> float:
    """Operations in a second, of one block of a shape; the best of a few tries, for what else runs here.

    On a CPU in CPU time on one thread, as measured points are, where the plan goes by the clock.
    """
    import torch

    from circuitfind.plan import speed as plan_speed

    module: Any = plan_speed

    clock = module.time
    if device == "cpu":
        module.time = SimpleNamespace(perf_counter=time.process_time)
    try:
        return max(
            float(module.timed(shape, pairs, TOKENS, torch.device(device)).flops) for _ in range(TRIES)
        )
    finally:
        module.time = clock


def gradient_seconds(forward: float, method: str, shape: Shape) -> float:
    """A gradient method, where a backward pass counts as two forward passes."""
    from circuitfind.methods import get_method

    cost = get_method(method).cost(shape.anatomy)
    return forward * (cost.forward + 2 * cost.backward)


# Curves.


def prompts(bench: Bench) -> Iterator[Point]:
    """EAP over more and more pairs."""

    shape, case = shape_of_case("gpt2-small"), bench.case()
    flops = speed(shape, bench.device)
    for count in (*PROMPTS, *MORE_PROMPTS):
        forward = forward_seconds(shape, count, flops)
        yield bench.point("prompts", "estimated", count, gradient_seconds(forward, "eap", shape))
    for count in PROMPTS:
        make = fresh_runs(case, count=count, budget=BUDGET)
        taken = fastest(bench.device, partial(_fresh_score, "eap", make))
        yield bench.point("prompts", "measured", count, taken, how="eap, GPT-2 small's shape")


def size(bench: Bench) -> Iterator[Point]:
    """EAP of 16 pairs on larger and larger models."""
    for name in (*SIZES, *LARGER):
        shape = shape_of_case(name)
        forward = forward_seconds(shape, 16, speed(shape, bench.device))
        label = LABELS.get(name) or name.rpartition("/")[2]
        told = gradient_seconds(forward, "eap", shape)
        yield bench.point("size", "estimated", shape.parameters, told, label=label)
        if name in SIZES:
            make = fresh_runs(bench.case(name), count=16, budget=BUDGET)
            taken = fastest(bench.device, partial(_fresh_score, "eap", make))
            yield bench.point("size", "measured", shape.parameters, taken, label=label, how="eap, 16 pairs")


def candidates(bench: Bench) -> Iterator[Point]:
    """The exact effect of more and more edges, over 8 pairs that agree in the first ten of 16 tokens."""
    import numpy as np

    from circuitfind.model.node_pass import Patch

    shape, case, pairs = shape_of_case("gpt2-small"), bench.case(), 8
    forward = forward_seconds(shape, pairs, speed(shape, bench.device, pairs))
    for count in (*CANDIDATES, *MORE_CANDIDATES):
        yield bench.point("candidates", "estimated", count, forward * NODE_CANDIDATE * count)
    runs = fresh_runs(case, "late", count=pairs, budget=BUDGET)()
    _ = runs.clean, runs.corrupted
    edges = np.argwhere(case.model.anatomy.edge_mask)
    drawn = edges[np.random.default_rng(0).permutation(len(edges))]
    for count in CANDIDATES:
        patches = [Patch(edge=(int(w), int(r))) for w, r in drawn[:count]]
        taken = fastest(bench.device, partial(runs.patched, patches))
        yield bench.point(
            "candidates", "measured", count, taken, how="single edges, GPT-2 small's shape, 8 pairs"
        )


def workers(bench: Bench) -> Iterator[Point]:
    """The exact effect of every node in both directions, by more and more workers; seconds by the clock."""
    from circuitfind.engine.chosen import make_engine
    from circuitfind.engine.hands import EngineHands
    from circuitfind.errors import CircuitfindError

    os.environ["OMP_NUM_THREADS"] = "1"  # a worker alone would else compute on all cores
    bench.machine = bench.machine.removesuffix(", one thread")
    case = bench.case(WORKER_SHAPE)

    def both(hands: EngineHands | None = None, pairs: int = WORKER_PAIRS) -> float:
        runs = fresh_runs(case, count=pairs, budget=BUDGET)()
        if hands is not None:
            runs.hands = hands
        start = time.perf_counter()
        _score("activation-patching", runs, {"both": "yes"})
        return time.perf_counter() - start

    both(pairs=2)
    alone, found = both(), list[Point]()
    for name in ("processes", "ray"):
        for count in WORKER_COUNTS:
            try:
                engine = make_engine(name, count)
                assert engine is not None
                with engine:
                    hands = EngineHands(engine, bench.device, to_start=0.0, to_send=0.0)
                    both(hands, pairs=WORKER_PAIRS - 1)  # workers begin, and load the model; on other prompts
                    taken = both(hands)
            except CircuitfindError as error:
                print(f"{name}: {error.what}")
                break
            found.append(bench.point("workers", "measured", count, taken, label=name, how=BOTH))
    alone = min(alone, both())  # before and after: what else the machine did changes
    yield bench.point("workers", "measured", 1, alone, label="local", how=BOTH)
    yield from found
    for count in (*WORKER_COUNTS, *MORE_WORKERS):
        yield bench.point("workers", "estimated", count, alone / count, label="an even share each")


def _fresh_score(method: str, make: Callable[[], Any]) -> Scores:
    return _score(method, make())


def _score(method: str, runs: Any, options: dict[str, str] | None = None) -> Scores:
    from circuitfind.methods import get_method

    return get_method(method, options or {}).run(runs, ablation="resample", direction="noising")


CURVES: dict[str, Callable[[Bench], Iterator[Point]]] = {
    "prompts": prompts,
    "size": size,
    "candidates": candidates,
    "workers": workers,
}


def read(path: Path = DATA) -> list[Point]:
    """The points that are kept."""
    if not path.exists():
        return []
    return [Point(**point) for point in json.loads(path.read_text(encoding="utf-8"))["points"]]


def keep(fresh: Sequence[Point], path: Path = DATA) -> None:
    """Put points in place of those of the same curve and machine."""
    from benchmarks.report import versions
    from circuitfind.output.files import write_atomic

    known = {(point.curve, point.machine) for point in fresh}
    points = [point for point in read(path) if (point.curve, point.machine) not in known] + list(fresh)
    points.sort(
        key=lambda p: (
            list(CURVES).index(p.curve),
            p.machine,
            p.kind,
            p.label if p.curve == "workers" else "",
            p.x,
        )
    )
    about = f"{versions()}, Python {platform.python_version()}"
    text = json.dumps({"versions": about, "points": [asdict(point) for point in points]}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text + "\n")


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _line(point: Point) -> str:
    start = f"{point.curve:<11}{point.kind:<10} {point.x:>14,.0f} {point.seconds:>12.3f} s"
    return f"{start}  {point.label} {point.how}".rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure curves for docs/scale.md.")
    parser.add_argument("curves", nargs="*", metavar="CURVE", help=f"of {', '.join(CURVES)}; default: all")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--data", type=Path, default=DATA, help="where points are kept")
    asked = parser.parse_args()
    if unknown := [name for name in asked.curves if name not in CURVES]:
        parser.error(f"no curve is named '{unknown[0]}'; there are {', '.join(CURVES)}")
    if asked.device == "cuda" and not _gpu():
        parser.error("there is no GPU that torch can use")
    if asked.device == "cpu":
        single_thread()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), asked.device)
        for name in asked.curves or CURVES:
            found = []
            for point in CURVES[name](bench):
                print(_line(point), flush=True)
                found.append(point)
            keep(found, asked.data)


if __name__ == "__main__":
    main()
