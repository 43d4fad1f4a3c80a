"""The Python API: ``circuitfind.discover`` and ``circuitfind.find_backups``, with the words of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitfind.config import CONTROLS, DEFAULT_CONTROLS, DEFAULT_MIN_SHARE, DEFAULT_RATE
from circuitfind.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from circuitfind.backups.report import BackupReport
    from circuitfind.summary import Discovery
    from circuitfind.task.spec import TaskSpec


def discover(
    task: str | Path | TaskSpec,
    model: str | None = None,
    *,
    outputs: str | Path | None = None,
    device: str = "auto",
    memory: str | int | None = None,
    force: bool = False,
    formats: Sequence[str] = ("svg",),
    controls: str = DEFAULT_CONTROLS,
    **settings: Any,
) -> Discovery:
    """Find a small circuit for a task, with the evidence for it.

    Args:
        task: A task's name, the path of a YAML file, or a loaded task.
        model: Zoo name, local folder or hub name; the task's own model if None.
        outputs: Folder of run folders (default ``outputs``).
        device: ``auto``, ``cpu``, ``cuda``, ...
        memory: To plan for beyond the model's weights: ``"8GB"``, or bytes; what is free if None.
        force: Run finished stages again.
        formats: Pictures to draw.
        controls: How thoroughly the circuit is held against controls, on prompts that it was not pruned on: ``cheap``,
            ``full``, or ``none`` for no such evidence.
        **settings: Those of ``circuitfind discover``, with underscores: ``method``, ``options`` (a mapping,
            such as ``{"steps": 10}``), ``metric``, ``ablation``, ``direction``, ``counterfactual``, ``faithfulness``,
            ``edges``, ``threshold``, ``evaluations``, ``positions``, ``precision``, ``count``, ``seed``,
            ``min_accuracy``, ``drop_bad_pairs``, ``backups`` (look for what stands in when heads are removed; True),
            ``include_backups`` (let it join the circuit; False), ``nodes`` (``"heads,mlps"``, ``"heads,neurons"``,
            ``"heads,features"``), ``dictionaries``, ``errors`` and ``model_b`` (another model of the same shape, whose
            values cut edges carry).

    Raises:
        CircuitfindError: Whatever the command would print; ``hint`` says what to do.
    """
    from circuitfind.output.draw import FORMATS
    from circuitfind.pipeline import discover_task
    from circuitfind.settings import memory_bytes, resolve
    from circuitfind.task.spec import TaskSpec, load_task

    pictures = (formats,) if isinstance(formats, str) else tuple(formats)
    for name in pictures:
        if name not in FORMATS:  # before the work, not after it
            raise UsageError(f"unknown picture format '{name}'", hint=did_you_mean(name, FORMATS))
    if controls not in CONTROLS:
        raise UsageError(f"no controls are called '{controls}'", hint=did_you_mean(controls, CONTROLS))
    spec = task if isinstance(task, TaskSpec) else load_task(task)
    return discover_task(
        spec,
        resolve(spec, model=model, **settings),
        outputs=outputs,
        device=device,
        force=force,
        formats=pictures,
        memory=memory_bytes(memory),
        controls=controls,  # type: ignore[arg-type]  # checked
    )


def find_backups(
    task: str | Path | TaskSpec,
    model: str | None = None,
    *,
    primaries: Sequence[str] = (),
    readers: Sequence[str] = (),
    min_share: float = DEFAULT_MIN_SHARE,
    rate: float = DEFAULT_RATE,
    outputs: str | Path | None = None,
    device: str = "auto",
    memory: str | int | None = None,
    force: bool = False,
    **settings: Any,
) -> BackupReport:
    """Find what stands in when components are removed, without a circuit.

    Args:
        task: A task's name, the path of a YAML file, or a loaded task.
        model: Zoo name, local folder or hub name; the task's own model if None.
        primaries: What to remove, such as ``["a9.h9", "9.6"]``; what direct effects point to if empty.
        readers: What is written to, such as ``["logits", "a9.h6<q>"]``; the logits and one chosen input if empty.
        min_share: A component counts when it takes over at least this share of what was lost.
        rate: False-discovery rate.
        outputs: Folder of run folders (default ``outputs``).
        device: ``auto``, ``cpu``, ``cuda``, ...
        memory: As for ``discover``.
        force: Search again.
        **settings: ``ablation``, ``counterfactual``, ``count``, ``seed``, ``min_accuracy``, ``drop_bad_pairs``.

    Raises:
        CircuitfindError: Whatever the command would print; ``hint`` says what to do.
    """
    from circuitfind.backup_runs import search_task
    from circuitfind.settings import BackupOptions, memory_bytes, resolve
    from circuitfind.task.spec import TaskSpec, load_task

    spec = task if isinstance(task, TaskSpec) else load_task(task)
    return search_task(
        spec,
        resolve(spec, model=model, metric="logit-diff", **settings),
        BackupOptions(_names(primaries), _names(readers), rate, min_share),
        outputs=outputs,
        device=device,
        force=force,
        memory=memory_bytes(memory),
    ).report


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
