"""Workers that are actors of a Ray cluster: placed where there are the processors, the memory and the GPUs for them.

The scheduler is that of all engines (engine/scheduler.py). Ray says where a worker fits, starts it there, carries jobs and
results, and tells when it has died.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from circuitfind import __version__
from circuitfind.engine.base import RETRIES, Job, Needs, Recipe
from circuitfind.engine.bench import WorkBench
from circuitfind.engine.cluster import Cluster, threads_each
from circuitfind.engine.places import Places
from circuitfind.engine.processes import THREADS, Recipes
from circuitfind.engine.scheduler import Gone, Scheduler
from circuitfind.engine.work import Answer, Surroundings, answer
from circuitfind.errors import ModelError, RunError, UsageError
from circuitfind.machine import cores

POLITE = 2.0
"""Seconds that workers have to end by themselves."""


def ray_engine(
    workers: int | None = None,
    address: str | None = None,
    *,
    note: Callable[[str], None] | None = None,
    retries: int = RETRIES,
) -> RayEngine:
    """An engine of workers on a Ray cluster.

    Args:
        workers: At the most; if None, as many as the cluster has processors for.
        address: Of a cluster that runs already: ``host:port``, ``ray://host:port`` or ``auto``. None begins one on this
            machine when there is work, and ends it with the engine.
        note: Hears what the user should know.
        retries: How often a job whose worker died is given to another one.

    Raises:
        UsageError: Ray is not installed, there is no such cluster, or it is of another version.
    """
    own = address is None
    threads = threads_each(workers or cores(), own)
    cluster = Cluster(address, max(cores(), (workers or 1) * threads))
    if workers is None:
        most = cores() if own else sum(int(node.get("CPU", 0)) for node in cluster.resources())
        workers = max(1, most // threads)
    return RayEngine(cluster, workers, threads, note=note, retries=retries)


@dataclass(eq=False)
class RayWorker:
    """One of them, as the driver sees it."""

    index: int
    actor: Any
    hello: list[Any]
    """On their way: what it says of itself, and that it is ready; empty when that was heard."""
    answer: Any = None
    """On its way: what came of its job."""
    host: str = ""
    """Where it is, if that is another machine than the driver's."""
    pid: int = 0
    """Of its process there."""
    recipes: Recipes = field(default_factory=Recipes)


class RayEngine(Scheduler[RayWorker]):
    """An ``Engine`` over a cluster."""

    def __init__(
        self,
        cluster: Cluster,
        workers: int,
        threads: int,
        *,
        note: Callable[[str], None] | None = None,
        retries: int = RETRIES,
    ) -> None:
        self._cluster = cluster
        places = Places(cluster, threads, note or (lambda text: None))
        super().__init__(
            "ray", workers, RayTransport(cluster, places, threads), note=note, retries=retries, room=places
        )

    def close(self) -> None:
        """End all workers, and the cluster if it is ours."""
        try:
            super().close()
        finally:
            self._cluster.leave()


# The driver's side.


class RayTransport:
    """Starts actors and talks to them: a ``Transport``.

    Args:
        cluster: Where they are.
        places: Where they fit.
        threads: That each computes with.
    """

    def __init__(self, cluster: Cluster, places: Places, threads: int) -> None:
        self._cluster, self._places, self._threads = cluster, places, threads

    def start(self, index: int, needs: Needs) -> RayWorker:
        return RayWorker(index, *self._begun(index, needs))

    def _begun(self, index: int, needs: Needs) -> tuple[Any, list[Any]]:
        """An actor in its place, and what it says of itself."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        place = self._places.claim(index, needs)
        asked = self._places.asked(needs)
        options = {
            "num_cpus": asked["CPU"],
            "memory": asked["memory"],
            "num_gpus": asked.get("GPU", 0),
            "max_restarts": 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(place, 0),
        }
        actor = self._cluster.ray.remote(Actor).options(**options).remote(self._threads)
        hello = actor.begin.remote(versions())
        return actor, [hello, actor.enter.remote(Surroundings.here())]

    def send(self, worker: RayWorker, job: Job) -> None:
        if not self._places.covers(worker.index, job.needs):
            self._end(worker)
            worker.actor, worker.hello = self._begun(worker.index, job.needs)
            worker.recipes = Recipes()
        worker.answer = worker.actor.do.remote(*worker.recipes.lightened(job))

    def wait(self, workers: Collection[RayWorker], seconds: float | None) -> Sequence[RayWorker]:
        answers = {worker.answer: worker for worker in workers}
        wait = self._cluster.ray.wait
        ready, left = wait(list(answers), num_returns=1, timeout=seconds)
        if ready and left:
            ready += wait(left, num_returns=len(left), timeout=0)[0]
        return [answers[one] for one in ready]

    def receive(self, worker: RayWorker) -> Answer:
        from ray.exceptions import RayActorError, RayError

        get = self._cluster.ray.get
        try:
            if worker.hello:
                self._greet(worker, get(worker.hello[0]))
                get(worker.hello[1])
                worker.hello = []
            found: Answer = get(worker.answer)
        except RayActorError as error:
            raise _ended(error) from error
        except RayError as error:
            raise _broken(error) from error
        # Ray's arrays lie in its store and cannot be written to.
        return _from_elsewhere(replace(found, value=deepcopy(found.value)), worker.host)

    def _greet(self, worker: RayWorker, said: dict[str, str]) -> None:
        """Refuse a worker of other versions than ours.

        Raises:
            UsageError: It is one.
        """
        worker.pid = int(said["pid"])
        if said["node"] != self._cluster.node:
            worker.host = said["host"]
        ours = versions()
        other = [name for name in ours if said[name] != ours[name]]
        if other:
            raise UsageError(
                f"the workers of the Ray cluster have another {' and '.join(other)}",
                where=said["host"],
                details=[f"{name}: {ours[name]} here, {said[name]} there" for name in other],
                hint="install the same versions on all nodes",
            )

    def end(self, workers: Sequence[RayWorker]) -> None:
        leaving = [worker.actor.leave.remote() for worker in workers]
        if leaving:
            self._cluster.ray.wait(leaving, num_returns=len(leaving), timeout=POLITE)
        self.kill(workers)
        self._places.vacate_all()

    def kill(self, workers: Sequence[RayWorker]) -> None:
        for worker in workers:  # their places stay, for those that come after them
            self._end(worker)

    def _end(self, worker: RayWorker) -> None:
        self._cluster.ray.kill(worker.actor, no_restart=True)


def _ended(error: Exception) -> Exception:
    """What the end of an actor means: that its worker has gone, or that none can be there."""
    text = str(error)
    if "No module named 'circuitfind" in text:
        return _not_installed(error)
    how = re.search(r"Worker exit type: (\w+)", text)
    if "OUT_OF_MEMORY" in text or "OutOfMemory" in type(error).__name__:
        return Gone("was ended by Ray, since memory ran out on its node")
    if "node" in text.lower() and "died" in text and how is None:
        return Gone("was on a node that died or cannot be reached any more")
    if how is not None and how[1] == "SYSTEM_ERROR":
        return Gone("was killed or crashed (memory ran out?)")
    told_by_ray = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return Gone(f"ended: {told_by_ray[:200]}")


def _broken(error: Exception) -> Exception:
    """What Ray says in place of an answer."""
    if "No module named 'circuitfind" in str(error):
        return _not_installed(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return RunError(
        f"Ray did not bring what a worker gave: {type(error).__name__}",
        details=lines[-3:],
        hint="see the logs of the cluster; --engine processes or local needs none",
    )


def _not_installed(error: Exception) -> UsageError:
    missing = re.search(r"No module named '([\w.]+)'", str(error))
    return UsageError(
        "the workers of the Ray cluster cannot import circuitfind",
        details=[missing[0]] if missing else [],
        hint='install it on all nodes, in the Python that Ray runs there: pip install "circuitfind[ray]"',
    )


def _from_elsewhere(found: Answer, host: str) -> Answer:
    """An answer of another machine, which has other files."""
    error = found.error
    if not host or not isinstance(error, ModelError):
        return found
    hint = (
        "workers load models themselves: put its folder at the same path on every node or on a disk that all of them see, "
        "and fill the hub's cache there"
    )
    where = f"{error.where}, on {host}" if error.where else f"on {host}"
    return replace(found, error=ModelError(error.what, where=where, details=error.details, hint=hint))


def versions() -> dict[str, str]:
    """What must be the same on both sides for results to be."""

    def of(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "none"

    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {
        "circuitfind": __version__,
        "python": python,
        "torch": of("torch").partition("+")[0],
        "transformers": of("transformers"),
        "transformer-lens": of("transformer-lens"),
    }


# The worker's side.


class Actor:
    """A worker. Nothing but plain data is given to it before it has said which versions it has.

    Args:
        threads: That it computes with.
    """

    def __init__(self, threads: int) -> None:
        import warnings

        warnings.simplefilter("ignore")
        for name in THREADS:
            os.environ[name] = str(threads)
        self._around = ExitStack()
        self._bench, self._recipes = WorkBench(), Recipes()

    def begin(self, theirs: dict[str, str]) -> dict[str, str]:
        """Who this is, in the words that the driver asks for."""
        import ray

        node = str(ray.get_runtime_context().get_node_id())
        here = {"node": node, "host": socket.gethostname(), "pid": str(os.getpid())}
        return {**dict.fromkeys(theirs, "unknown"), **versions(), **here}

    def enter(self, surroundings: Surroundings) -> None:
        """Take over what the driver was allowed."""
        self._around.enter_context(surroundings.entered())

    def do(self, job: Job, recipe: Recipe | None) -> Answer:
        """Do a job."""
        return answer(self._recipes.restored(job, recipe), self._bench)

    def leave(self) -> None:
        """End."""
        import ray

        self._around.close()
        ray.actor.exit_actor()
