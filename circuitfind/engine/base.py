"""What an engine is: jobs in, results out, whoever does them.

A ``Job`` is a pure function of its fields and of what a worker has at hand (its ``Bench``: models that are loaded, runs that
are made), so it may be done anywhere and done again when its worker dies. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from circuitfind.model.bridge import Model
    from circuitfind.model.pieces import Piece
    from circuitfind.model.runs import Runs

EngineName = Literal["local", "processes", "ray"]
ENGINES: tuple[EngineName, ...] = ("local", "processes", "ray")
RETRIES = 2
"""How often a job whose worker died is given to another one."""


@dataclass(frozen=True)
class Needs:
    """What a job asks of the place where it is done.

    Attributes:
        memory: Bytes beyond those of its model.
        weights: Bytes of its model.
        gpus: Share of a GPU; 0 for none.
        warm: What it wants at hand, such as the name of a model: workers that have it come first.
    """

    memory: int = 0
    weights: int = 0
    gpus: float = 0.0
    warm: str = ""


class Bench(Protocol):
    """What a worker keeps from one job to the next."""

    def model(self, name: str, device: str = "auto") -> Model:
        """A model, loaded when first asked for; where a worker is bound to a GPU, ``auto`` and ``cuda`` mean that one."""
        ...

    def runs(self, recipe: Recipe) -> Runs:
        """The runs of a recipe, made when first asked for."""
        ...

    def note(self, text: str) -> None:
        """Something that the user should know; it comes back with the result."""
        ...


class Job(Protocol):
    """Plain data that can be sent to another process."""

    @property
    def needs(self) -> Needs: ...

    @property
    def label(self) -> str:
        """What it is called when something goes wrong with it."""
        ...

    def run(self, bench: Bench) -> Any:
        """Do it.

        Raises:
            CircuitfindError: It goes back to whoever gave the job, whole.
        """
        ...


@dataclass(frozen=True)
class Failed:
    """What came of a job that has no result.

    Attributes:
        error: What ``Engine.map`` raises: a ``CircuitfindError``, or a ``MemoryError``.
        death: How its last worker ended, where that is why.
    """

    error: Exception
    death: str | None = None


class Engine(Protocol):
    """Does jobs. Use it as a context manager, so that no worker outlives it."""

    @property
    def name(self) -> EngineName: ...

    @property
    def workers(self) -> int: ...

    @property
    def busy(self) -> bool:
        """Whether a ``map`` or ``each`` is under way; there can be one at a time."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of it: ``name``, ``workers`` (that were used), ``deaths``."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(self, *error: object) -> None: ...

    def each(
        self, jobs: Iterable[Job], begun: Callable[[int], None] | None = None
    ) -> Generator[tuple[int, Any], None, None]:
        """The same as ``map`` where nothing is raised: a job that fails has a ``Failed`` in place of a result.

        ``begun`` hears the number of a job when a worker gets it, and once more when another worker does.
        """
        ...

    def map(self, jobs: Iterable[Job]) -> Generator[tuple[int, Any], None, None]:
        """The result of each job, by its number, as they are finished.

        Jobs are taken from the iterable as workers come free, a few ahead. Closing the generator, or Ctrl-C, cancels what
        has begun.

        Raises:
            CircuitfindError: What a job raised.
            RunError: A job's workers died ``1 + RETRIES`` times.
            MemoryError: Memory ran out in a job (so that ``Runs.fitted`` makes it smaller).
        """
        ...

    def close(self) -> None:
        """End all workers."""
        ...


def raising(results: Generator[tuple[int, Any], None, None]) -> Generator[tuple[int, Any], None, None]:
    """Results up to the first failure, which is raised."""
    with closing(results):
        for number, result in results:
            if isinstance(result, Failed):
                raise result.error
            yield number, result


@dataclass(frozen=True)
class Recipe:
    """What another process needs to make the same ``Runs``. All of it is plain data or arrays.

    Attributes:
        model: Its name, as ``load_model`` takes it.
        device: Where it runs; ``cuda`` is the GPU of the worker, ``cuda:1`` that one.
        fingerprint: Of the weights, so that nobody works on others.
        pairs: ``PromptPairs``.
        metric: Its name.
        mean_over: Which prompts the mean ablation averages.
        plan: ``MemoryPlan``; the same everywhere, so that batches are.
        precision: What passes run in.
        constants: What the ``optimal`` ablation carries, where it was learned, as arrays.
        options: How the model is loaded, such as a device map.
        key: Hash of all that; made by whoever makes the recipe.
    """

    model: str
    device: str
    fingerprint: str
    pairs: Any
    metric: str
    mean_over: str
    plan: Any
    precision: str
    constants: Any = None
    options: tuple[tuple[str, str], ...] = field(default=())
    key: str = ""


@dataclass(frozen=True)
class PieceJob:
    """A piece of some runs."""

    recipe: Recipe
    piece: Piece
    needs: Needs = Needs()

    @property
    def label(self) -> str:
        rows = f" of {self.piece.rows} rows" if self.piece.rows else ""
        return f"a piece ({type(self.piece).__name__}{rows})"

    def run(self, bench: Bench) -> Any:
        from circuitfind.model.pieces import done

        return done(bench.runs(self.recipe), self.piece)
