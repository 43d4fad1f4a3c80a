"""Workers on a Ray cluster: the same results, whatever dies, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ray")

from circuitfind.engine import places
from circuitfind.engine.base import Failed, Needs
from circuitfind.engine.cluster import Cluster
from circuitfind.engine.hands import EngineHands
from circuitfind.engine.local import LocalEngine
from circuitfind.engine.ray import RayEngine, RayTransport, RayWorker, ray_engine, versions
from circuitfind.engine.scheduler import Gone
from circuitfind.engine.work import Answer
from circuitfind.errors import ModelError, RunError, TaskError, UsageError
from tests.engine.jobs import Deadly, Square, Told, Wrong

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "QUEUE", 3.0)


@pytest.fixture(scope="module")
def two() -> Iterator[RayEngine]:
    """Two workers that stay, on a cluster of their own."""
    with ray_engine(2) as engine:
        yield engine


def of_group(group: int) -> list[str]:
    """What runs of a process group, or began in it: Ray's servers leave it, but not the session."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                told = (process / "stat").read_text()
            except OSError:
                continue
            name, rest = told[told.index("(") + 1 : told.rindex(")")], told.rsplit(")", 1)[1].split()
            if int(rest[3]) == group and rest[0] != "Z":
                found.append(f"{process.name} {name}")
    return found


def ended(group: int, seconds: float = 60) -> list[str]:
    """What is left of a session after some time at the most."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and of_group(group):
        time.sleep(0.2)
    return of_group(group)


def done_by(log: Path) -> list[tuple[int, int]]:
    """(job, process) of each time that one was begun."""
    return [(int(line.split()[0]), int(line.split()[1])) for line in log.read_text().splitlines()]


# One that is quick.


def test_a_cluster_from_its_beginning_to_its_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (
        signal.getsignal(signal.SIGTERM),
        os.environ.get("RAY_AUTH_TOKEN"),
        os.environ.get("RAY_AUTH_MODE"),
    )
    log, said = tmp_path / "log", list[str]()
    jobs = [Deadly(n, 0.02, str(log), times=int(n == 1)) for n in range(5)]
    wrong = Wrong(7)
    with ray_engine(2, note=said.append) as engine:
        assert sorted(engine.map(jobs)) == [(n, n * n) for n in range(5)]
        assert engine.facts == {"name": "ray", "workers": 2, "deaths": 1}
        assert said == [
            "a worker was killed or crashed (memory ran out?): another one goes on with what it did"
        ]
        assert sorted(n for n, _ in done_by(log)) == list(range(5)), "the others were done once"
        with pytest.raises(TaskError) as caught:
            list(engine.map([wrong]))
        assert caught.value.as_dict() == dict(LocalEngine().each([wrong]))[0].error.as_dict()
        nodes = engine._cluster.ray.nodes()
        assert [node["NodeManagerAddress"] for node in nodes] == ["127.0.0.1"], "nobody else can reach it"
        pids = {pid for _, pid in done_by(log)}
        folder = engine._cluster._folder
        assert folder is not None
        assert folder.is_dir()
    now = signal.getsignal(signal.SIGTERM), os.environ.get("RAY_AUTH_TOKEN"), os.environ.get("RAY_AUTH_MODE")
    assert now == before
    assert not folder.exists()
    end = time.monotonic() + 20
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert capfd.readouterr() == ("", ""), "Ray keeps quiet"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", "there is no Ray cluster at 127.0.0.1:1: Connection refused"),
        ("ray://127.0.0.1:1", "there is no Ray cluster at ray://127.0.0.1:1: Connection refused"),
        ("ray://no-such-host.invalid", "there is no Ray cluster at ray://no-such-host.invalid"),
        ("127.0.0.1", "'127.0.0.1' is no address of a Ray cluster"),
        ("127.0.0.1:port", "'127.0.0.1:port' is no address of a Ray cluster"),
        ("", "'' is no address of a Ray cluster"),
        ("auto", "no Ray cluster runs on this machine"),
    ],
)
def test_addresses_where_none_is(address: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UsageError) as caught:
        ray_engine(2, address)
    assert caught.value.what.startswith(says)


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_something_else_answers(says: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuitfind.engine.cluster.ANSWERS", 0.2)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve() -> None:
            there, _ = server.accept()
            with there:
                there.sendall(says)
                time.sleep(0.5)

        threading.Thread(target=serve, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UsageError, match="Ray cluster") as caught:
            ray_engine(2, address)
    told = (
        f"what answers at {address} is no Ray cluster"
        if says
        else f"there is no Ray cluster at {address}: no answer"
    )
    assert caught.value.what == told


class _Alone(Cluster):
    """Whose node has no name."""

    def __init__(self) -> None:
        self.own = False

    @property
    def node(self) -> str:
        return "here"


def test_other_versions_are_refused() -> None:
    cluster = _Alone()
    transport = RayTransport(cluster, places.Places(cluster, 1, print), 1)
    worker = RayWorker(0, None, [])
    said = {**versions(), "node": "here", "host": "there", "pid": "7"}
    transport._greet(worker, said)
    assert worker.host == ""
    transport._greet(worker, {**said, "node": "other"})
    assert worker.host == "there"
    with pytest.raises(UsageError) as caught:
        transport._greet(worker, {**said, "torch": "1.0", "python": "3.1"})
    assert caught.value.what == "the workers of the Ray cluster have another python and torch"
    ours = versions()
    assert caught.value.details == (
        f"python: {ours['python']} here, 3.1 there",
        f"torch: {ours['torch']} here, 1.0 there",
    )


def test_a_model_that_is_elsewhere() -> None:
    from circuitfind.engine.ray import _from_elsewhere

    error = ModelError("there are no weights", hint="copy them", where="models/a", details=["one"])
    assert _from_elsewhere(Answer(error=error), "").error is error
    found = _from_elsewhere(Answer(error=error), "node-3").error
    assert isinstance(found, ModelError)
    assert (found.what, found.where) == ("there are no weights", "models/a, on node-3")
    assert found.hint.startswith(
        "workers load models themselves: put its folder at the same path on every node"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "The actor died.\nWorker exit type: SYSTEM_ERROR Worker exit detail: x",
            "was killed or crashed (memory ran out?)",
        ),
        (
            "Worker exit type: NODE_OUT_OF_MEMORY Worker exit detail: x",
            "was ended by Ray, since memory ran out on its node",
        ),
        (
            "The actor died because its node has died. Node Id: 7",
            "was on a node that died or cannot be reached any more",
        ),
        ("Something new\nand more", "ended: Something new"),
    ],
)
def test_how_a_worker_ended(text: str, says: str) -> None:
    from circuitfind.engine.ray import _ended

    found = _ended(RuntimeError(text))
    assert isinstance(found, Gone)
    assert str(found) == says
    missing = _ended(RuntimeError("creation failed: ModuleNotFoundError: No module named 'circuitfind'"))
    assert isinstance(missing, UsageError)
    assert missing.what == "the workers of the Ray cluster cannot import circuitfind"


# On a cluster that stays.


@pytest.mark.slow
def test_jobs_are_done_on_it(two: RayEngine, tmp_path: Path) -> None:
    log = tmp_path / "log"
    jobs = [Square(number, 0.05, str(log)) for number in range(12)]
    assert sorted(two.map(jobs)) == sorted(LocalEngine().map([Square(number) for number in range(12)]))
    by = done_by(log)
    assert sorted(number for number, _ in by) == list(range(12))
    assert len({pid for _, pid in by} - {os.getpid()}) == 2
    (told,) = (found for _, found in two.map([Told(0)]))
    assert told["folder"] == os.getcwd()  # noqa: PTH109
    assert told["OMP_NUM_THREADS"] == str(two._transport._threads)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_errors_come_back_whole(two: RayEngine) -> None:
    jobs = [Wrong(number, what=what) for number, what in enumerate(("user", "memory", "bug"))]
    here, there = dict(LocalEngine().each(jobs)), dict(two.each(jobs))
    for number in range(3):
        assert isinstance(there[number], Failed)
        assert type(there[number].error) is type(here[number].error)
        assert str(there[number].error) == str(here[number].error)
    assert "jobs.py" in str(there[2].error.__cause__), "--debug shows where"


@pytest.mark.slow
def test_a_job_that_always_kills_its_worker(two: RayEngine, tmp_path: Path) -> None:
    jobs = [Deadly(n, 0, str(tmp_path / "log"), times=9 * (n == 2)) for n in range(6)]
    before = two.facts["deaths"]
    found = dict(two.each(jobs))
    assert isinstance(found[2], Failed)
    assert isinstance(found[2].error, RunError)
    assert "the square of 2 came to no end: its worker, 3 times over" in str(found[2].error)
    assert {n: value for n, value in found.items() if n != 2} == {n: n * n for n in range(6) if n != 2}
    assert two.facts["deaths"] == before + 3
    assert sorted(two.map([Square(4), Square(5)])) == [(0, 16), (1, 25)], "others go on"


@pytest.mark.slow
@pytest.mark.parametrize("needs", [Needs(gpus=1.0), Needs(gpus=64.0)], ids=["a GPU", "many GPUs"])
def test_resources_that_are_not_there(two: RayEngine, needs: Needs) -> None:
    with pytest.raises(
        UsageError, match=r"no node of the Ray cluster has what a worker needs: .* GPU"
    ) as caught:
        list(two.map([Square(1, needs=needs)]))
    assert len(caught.value.details) == 1
    assert caught.value.details[0].startswith("node 1: ")
    assert "GPU" not in caught.value.details[0]
    assert list(two.map([Square(3)])) == [(0, 9)], "it can be used again"


@pytest.mark.slow
def test_a_cluster_that_is_busy(two: RayEngine) -> None:
    ray = two._cluster.ray
    list(two.map([Square(1)]))
    from ray.util import placement_group, remove_placement_group

    two._transport.kill([two._alive.pop(index) for index in list(two._alive)])
    two._room.vacate_all()  # type: ignore[attr-defined]  # their places stay else: now all is free
    rest = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    assert rest.wait(20)
    notes: list[str] = []
    two._room._note = notes.append  # type: ignore[attr-defined]
    try:
        with pytest.raises(UsageError, match=r"is busy: .* did not come free in 3 seconds"):
            list(two.map([Square(1)]))
    finally:
        remove_placement_group(rest)
    assert notes
    assert notes[0].startswith("the Ray cluster is busy: waiting for ")
    two._room._full.clear()  # type: ignore[attr-defined]
    assert list(two.map([Square(3)])) == [(0, 9)]


@pytest.mark.slow
def test_what_is_begun_is_cancelled(two: RayEngine, tmp_path: Path) -> None:
    log = tmp_path / "log"
    jobs = [Square(0, 0.0, str(log)), *(Square(n, 60, str(log)) for n in range(1, 9))]
    with closing(two.map(jobs)) as results:
        assert next(results) == (0, 0)
        end = time.monotonic() + 60
        while len(done_by(log)) < 2 and time.monotonic() < end:
            time.sleep(0.05)
    pids = {pid for n, pid in done_by(log) if n}
    end = time.monotonic() + 20
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.05)
    assert pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert list(two.map([Square(3)])) == [(0, 9)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_runs_are_the_same(two: RayEngine, workers: int) -> None:
    from circuitfind.methods import get_method
    from circuitfind.model.load import load_model
    from circuitfind.model.memory import make_plan
    from circuitfind.model.node_pass import Patch
    from circuitfind.model.runs import Runs
    from circuitfind.task.metrics import get_metric
    from tests.engine.runs import random_pairs

    two.workers = workers
    threads = torch.get_num_threads()
    torch.set_num_threads(two._transport._threads)  # type: ignore[attr-defined]  # so that sums are in one order
    model = load_model("mini", device="cpu")
    pairs = random_pairs(model, 48)

    def found(hands: EngineHands | None) -> list[np.ndarray]:
        runs = Runs(model, pairs, get_metric("logit-diff"), plan=make_plan(model, 30_000_000), hands=hands)
        scores = [
            get_method(name).run(runs, ablation="resample", direction="noising").values
            for name in ("eap-ig", "activation-patching")
        ]
        draw = np.random.default_rng(0)
        cut = [
            model.anatomy.edge_mask & (draw.random(model.anatomy.edge_mask.shape) < 0.1 * n) for n in range(8)
        ]
        circuits = runs.patched([Patch(edges=mask) for mask in cut])  # as the evaluation of circuits does
        return [*scores, runs.clean, runs.corrupted, circuits]

    hands = EngineHands(two, "cpu", to_start=0, to_send=0)
    try:
        for here, there in zip(found(None), found(hands), strict=True):
            np.testing.assert_allclose(there, here, rtol=0, atol=1e-6)
            assert np.array_equal(there, here, equal_nan=True), "on one kind of device to the last bit"
    finally:
        two.workers = 2
        torch.set_num_threads(threads)
    assert hands.sent >= 8


# Programs that end badly.


def program(tmp_path: Path, text: str) -> subprocess.Popen[str]:
    """A Python program in a session of its own."""
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    around = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(path), str(tmp_path / "log")],
        env=around,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


LONG = """
    import sys
    from circuitfind.engine.ray import ray_engine
    from tests.engine.jobs import Square

    with ray_engine(2) as engine:
        list(engine.map([Square(n, 300, sys.argv[1]) for n in range(4)]))
"""


AGENTS = ("ray::DashboardA", "ray::RuntimeEnv")
"""Servers of Ray's own that look for their parent now and then, and end some minutes after it was killed."""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "kill -9"])
def test_nothing_is_left(tmp_path: Path, how: str) -> None:
    with program(tmp_path, LONG) as running:
        log, end = tmp_path / "log", time.monotonic() + 120
        while (not log.exists() or len(done_by(log)) < 2) and time.monotonic() < end:
            time.sleep(0.1)
        pids = {pid for _, pid in done_by(log)}
        assert len(pids) == 2
        if how == "Ctrl-C":
            os.killpg(running.pid, signal.SIGINT)  # a terminal sends it to all that run in front
        else:
            running.kill()
        _, said = running.communicate(timeout=60)
        assert running.returncode == (-signal.SIGINT if how == "Ctrl-C" else -signal.SIGKILL), said
        left = [name for name in ended(running.pid, 20) if how == "Ctrl-C" or not name.endswith(AGENTS)]
        assert not left
        if how == "Ctrl-C":
            assert said.rstrip().endswith("KeyboardInterrupt")
            assert "(raylet)" not in said
            assert "ray::" not in said


@pytest.mark.slow
def test_a_cluster_of_somebody_else_is_joined_and_not_ended(tmp_path: Path) -> None:
    around = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    around["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray = Path(sys.executable).with_name("ray")
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="cf-ray-")  # short: Ray's sockets are in it
    command = [
        str(ray),
        "start",
        "--head",
        f"--port={port}",
        "--num-cpus=2",
        "--include-dashboard=false",
        "--block",
    ]
    command += ["--object-store-memory=80000000", f"--temp-dir={folder}", "--disable-usage-stats"]
    with subprocess.Popen(
        command, env=around, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as head:
        try:
            text = f"""
                import os, sys, time
                os.environ["RAY_AUTH_MODE"] = "disabled"
                os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
                from circuitfind.engine.ray import ray_engine
                from circuitfind.errors import UsageError
                from tests.engine.jobs import Square

                for attempt in range(100):
                    try:
                        engine = ray_engine(None, "127.0.0.1:{port}")
                        break
                    except UsageError as error:
                        print(error, file=sys.stderr) if attempt == 99 else time.sleep(0.5)
                with engine:
                    print(engine.workers, sorted(engine.map([Square(n) for n in range(4)])))
            """
            for _ in range(2):
                with program(tmp_path, text) as running:
                    out, said = running.communicate(timeout=120)
                    assert (out, said) == ("2 [(0, 0), (1, 1), (2, 4), (3, 9)]\n", "")
            assert head.poll() is None, "the cluster is still there"
        finally:
            os.killpg(head.pid, signal.SIGTERM)
            head.wait(60)
            shutil.rmtree(folder, ignore_errors=True)
    assert not ended(head.pid)
