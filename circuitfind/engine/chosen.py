"""The engine that the user chose, for the length of a command or of a ``with``.

It changes who does the work and never what comes of it, so it is no part of what a run depends on; runs record it as a fact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec

from circuitfind.engine.base import ENGINES, Engine, EngineName
from circuitfind.errors import UsageError, did_you_mean
from circuitfind.machine import side_by_side

MOST_WORKERS = 4096
_now: ContextVar[Engine | None] = ContextVar("engine", default=None)


def engine() -> Engine | None:
    """Who does the work here and now; None for this process."""
    return _now.get()


@contextmanager
def working_with(
    name: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    *,
    device: str = "auto",
    note: Callable[[str], None] | None = None,
) -> Iterator[Engine | None]:
    """Let an engine do the work of a block; its workers end with it. Arguments are those of ``make_engine``.

    Raises:
        UsageError: There is no such engine.
    """
    made = make_engine(name, workers, address, device=device, note=note)
    if made is None:
        yield None
        return
    token = _now.set(made)
    try:
        with made:
            yield made
    finally:
        _now.reset(token)


def make_engine(
    name: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    *,
    device: str = "auto",
    note: Callable[[str], None] | None = None,
) -> Engine | None:
    """An engine by name; None for this process. Workers begin when there is work for them.

    Args:
        name: ``local``, ``processes`` or ``ray``; ``ray`` where only an address is given, ``processes`` where only a
            number of workers is.
        workers: How many; as many as there are cores, or GPUs, if None.
        address: Of a Ray cluster that runs already.
        device: Where models run.
        note: Hears what the user should know.

    Raises:
        UsageError: There is no such engine, it cannot be had here, or it has no use for what is given.
    """
    chosen = checked(name, workers, address)
    if chosen == "local":
        return None
    if chosen == "ray":
        if find_spec("ray") is None:
            raise UsageError(
                "the ray engine needs Ray", hint='pip install "circuitfind[ray]", or use --engine processes'
            )
        from circuitfind.engine.ray import ray_engine

        made: Engine = ray_engine(workers, address, note=note)
        return made
    from circuitfind.engine.processes import processes

    return processes(workers or side_by_side(device), note=note)


def checked(name: str | None, workers: int | None, address: str | None) -> EngineName:
    """The engine that three options stand for.

    Raises:
        UsageError: They do not go together.
    """
    if name is None:
        name = "ray" if address is not None else "processes" if workers is not None else "local"
    if name not in ENGINES:
        raise UsageError(f"no engine is named '{name}'", hint=did_you_mean(name, ENGINES))
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise UsageError(
            f"{workers} workers are none that do anything", hint=f"give --workers 1 to {MOST_WORKERS}"
        )
    if name == "local" and workers not in (None, 1):
        raise UsageError(
            "the local engine is this process alone", hint="use --engine processes, or leave --workers out"
        )
    if name != "ray" and address is not None:
        raise UsageError(f"the {name} engine has no address", hint="use --engine ray, or leave --address out")
    return name
