"""``--dry-run``: its options, and how a plan is shown."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from circuitfind.cli.common import Screen, duration, number, size, table
from circuitfind.errors import UsageError

if TYPE_CHECKING:
    from circuitfind.plan import Estimate, Memory, Plan
    from circuitfind.plan.room import Room

F = TypeVar("F", bound=Callable[..., Any])


def dry_run_options(command: F) -> F:
    """Add --dry-run and what belongs to it; the command gets them as one ``dry_run``: an ``Asked``, or None."""

    @click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
    @click.option(
        "--from-config",
        is_flag=True,
        help="With --dry-run: plan from the model's configuration, without loading it.",
    )
    @click.option(
        "--model-config",
        metavar="FILE|KEY=VALUE",
        multiple=True,
        help="The same from this config.json, or with sizes such as n_layers=32,d_model=4096; may be repeated.",
    )
    @click.option(
        "--prompt-tokens",
        type=int,
        metavar="N",
        help="Of a model that is not loaded: tokens of each prompt.  [default: as its tokenizer counts]",
    )
    @click.option(
        "--assume-tflops",
        type=float,
        metavar="N",
        help="The same: 10^12 operations in a second of one device.  [default: timed here]",
    )
    @wraps(command)
    def wrapped(
        *args: Any,
        dry_run: bool,
        from_config: bool,
        model_config: tuple[str, ...],
        prompt_tokens: int | None,
        assume_tflops: float | None,
        **kwargs: Any,
    ) -> Any:
        given = {
            "--from-config": from_config,
            "--model-config": bool(model_config),
            "--prompt-tokens": prompt_tokens is not None,
            "--assume-tflops": assume_tflops is not None,
        }
        alone = next((flag for flag, there in given.items() if there), None)
        asked = None
        if dry_run:
            from circuitfind.plan import Asked

            asked = Asked(from_config, model_config, prompt_tokens, assume_tflops)
        elif alone is not None:
            raise UsageError(f"{alone} says nothing without --dry-run", hint="add --dry-run, or leave it out")
        return command(*args, dry_run=asked, **kwargs)

    return wrapped  # type: ignore[return-value]  # the same command with more options


def show_plan(screen: Screen, plan: Plan) -> None:
    """The stages, what they take together, and from what that is estimated."""
    rows = table("stage", "state", "forward", "backward", "time", "", right=("forward", "backward", "time"))
    for stage in plan.stages:
        time_text = duration(stage.seconds) if stage.seconds else ""
        rows.add_row(
            stage.name,
            stage.state,
            str(stage.forward or ""),
            str(stage.backward or ""),
            time_text,
            stage.note,
        )
    screen.out.print(f"plan for {plan.run}", markup=False)
    screen.out.print(rows)
    if plan.memory_bytes is not None and plan.memory is not None:
        screen.out.print(
            f"{plan.prompts} prompt pairs, {plan.tokens} tokens a pass; about {duration(plan.seconds)} and "
            f"at most about {size(plan.memory_bytes)} of memory. A pass is one over all prompts; nothing was written."
        )
        screen.out.print(_memory_text(plan.memory), markup=False)
        if plan.workers > 1:
            least = duration(plan.shared_seconds)
            screen.out.print(f"workers  {plan.workers}: about {least} at best, each with the model's weights")
        if plan.estimate is not None:
            screen.out.print(_estimate_text(plan.estimate), markup=False)
    elif all(stage.state == "cached" for stage in plan.stages):
        screen.out.print("everything is cached: the model would not be loaded")
    else:
        screen.out.print("only the pictures are to be drawn: the model would not be loaded")


def _memory_text(memory: Memory) -> str:
    kept = "all kept" if memory.finished_runs <= memory.kept else f"at most {size(memory.kept)} of it kept"
    batches = "1 batch" if memory.batches == 1 else f"{memory.batches} batches"
    pairs, rows = number(memory.pairs_to_batch, "pair"), number(memory.node_rows, "patched prompt")
    weights = f"{size(memory.weights)} of weights and {size(memory.copies)} of copies"
    if memory.placed is not None:
        places = ", ".join(f"{size(count)} on {where}" for where, count in memory.placed.items())
        weights = f"weights: {places}; {size(memory.brought)} are brought at once"
        kept += "" if memory.spill == "none" else f", the rest to {memory.spill}"
    lines = (
        f"memory   {size(memory.budget)} planned for, beyond {weights}",
        f"batches  {batches} of at most {pairs}; finished runs take {size(memory.finished_runs)}, {kept}",
        f"a pass   {rows} where nodes are replaced, {memory.edge_rows} where edges are",
    )
    return "\n".join(lines)


def _estimate_text(found: Estimate) -> str:
    shape, speed = found.shape, found.speed
    grouped = f" ({shape.n_kv_heads} key/value)" if shape.n_kv_heads != shape.n_heads else ""
    mlp = f", {shape.d_mlp} neurons{' with gates' if shape.gated else ''}" if shape.d_mlp else ", no MLPs"
    blocks = f"{shape.n_layers} layers of {shape.n_heads} heads{grouped}, width {shape.d_model}{mlp}"
    each = ", ".join(f"{size(shape.parameters * width)} in {name}" for name, width in found.widths.items())
    token = f"{shape.flops(found.length) / 1e9:.3g} GFLOP for a token of a forward pass"
    told = [
        ("model", f"{found.model} is not loaded: {found.why}"),
        ("from", f"{found.origin}; all of this is estimated"),
        ("shape", f"{blocks}; {shape.widths.writers:,} writers, {shape.n_edges:,} edges"),
        ("weights", f"{shape.parameters:,} parameters: {each}; models are loaded in fp32"),
        ("speed", f"{speed.flops / 1e12:.3g} TFLOP/s, {speed.told}; {token}"),
    ]
    if speed.timed and not found.room.fits:
        told.append(("", "of another device: --assume-tflops"))
    told += [("room", _room_text(found.room))]
    told += [("assumed", text) for text in found.assumed]
    return "\n".join(f"{name:<9}{text}" for name, text in told)


def _room_text(room: Room) -> str:
    """Whether it fits here, and where it would."""
    gpus = [f"{one} GB: {'none' if count is None else count}" for one, count in room.gpus.items()]
    needed = f"{size(room.held)}, and at least {size(room.least)} for passes"
    here = f"{size(room.free)} free on {room.device}"
    text = f"fits: {needed}, of {here}" if room.fits else f"does not fit: {needed}, with {here}"
    if room.maps:
        text += (
            f"; with --device-map {' or '.join(room.maps)} it takes {size(room.placed)} there, and more time"
        )
    elif not room.fits:
        text += f"; {size(room.placed)} even with --device-map"
    return (
        f"{text}\n{'gpus':<9}that hold it, by size: {', '.join(gpus)} (more than one with --device-map auto)"
    )
