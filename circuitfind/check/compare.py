"""What has changed since the baseline, from causes to consequences. No torch here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from circuitfind.check.baseline import Baseline, Metric, Prompts, Weights
from circuitfind.check.reasons import Kind, Reason, brief, some
from circuitfind.task.findings import Tolerance

SAME_WEIGHTS = 1e-4
"""Of the norm of a part's weights: a larger change is another part, a smaller one rounding."""

TRAINED_EDGES = 0.9
"""Least Jaccard index of the edges of trained models, whose weakest edges lie close to each other."""

LISTED = 8
"""Lines shown of one reason."""

UPDATE = "look at the difference, then `circuitfind check {task} --update`"

ScoreOf = Callable[[str], "float | None"]


def compare(
    before: Baseline,
    now: Baseline,
    tolerance: Tolerance,
    *,
    planted: bool,
    score_of: ScoreOf = lambda _: None,
) -> list[Reason]:
    """Every difference that is more than noise.

    Args:
        before: The stored baseline.
        now: What was measured; what a refused run did not come to is not compared.
        tolerance: How far apart they may be.
        planted: Whether the weights are written, so that nothing is close to a cut.
        score_of: Score now of an edge that is in the circuit no more.
    """
    found: list[Reason] = []
    found += _model(before, now)
    found += _stale(before, now)
    if before.prompts is not None and now.prompts is not None:
        found += _prompts(before.prompts, now.prompts, tolerance)
    if before.metric is not None and now.metric is not None:
        found += _metric(before.metric, now.metric, tolerance)
    if before.edges is None or now.edges is None:
        return found
    found += _scores("edges", before.edges, now.edges, tolerance.scores)
    found += _scores("nodes", before.nodes or {}, now.nodes or {}, tolerance.scores)
    least = tolerance.edges
    if least is None:
        least = 1.0 if planted else TRAINED_EDGES
    found += _edges(before.edges, now.edges, least, score_of)
    for ablation, value in (before.faithfulness or {}).items():
        current = (now.faithfulness or {}).get(ablation)
        if current is None or not abs(current - value) <= tolerance.faithfulness:
            text = f"the faithfulness under {ablation} ablation is {brief(current)}, was {brief(value)}"
            found.append(_reason("faithfulness", text))
    found += _backups(before.backups or {}, now.backups or {}, tolerance.backups)
    return found


def _reason(kind: Kind, text: str, lines: Iterator[str] | list[str] | tuple[str, ...] = ()) -> Reason:
    listed = list(lines)
    left = len(listed) - LISTED
    return Reason(kind, "baseline", text, (*listed[:LISTED], *([f"and {left} more"] if left > 0 else [])))


# Causes.


def _model(before: Baseline, now: Baseline) -> Iterator[Reason]:
    if before.model != now.model:
        yield _reason("model", f"the baseline is of model {before.model}, this is {now.model}")
        return
    if before.weights is not None and now.weights is not None:
        other = list(_other_weights(before.weights, now.weights))
        if other:
            names = [line.partition(":")[0] for line in other]
            parts = f"all {len(other)} parts" if len(other) == len(before.weights) > 6 else some(names)
            yield _reason("model", f"the model's weights are others: {parts}", other)
            return
    if before.model_hash != now.model_hash:
        text = "the files of the model are others than those of the baseline, its weights are the same"
        yield _reason("files", f"{text}: {UPDATE.format(task=now.task)}")


def _other_weights(before: Weights, now: Weights) -> Iterator[str]:
    for name in dict.fromkeys((*before, *now)):
        if name not in before or name not in now:
            yield f"{name}: {'new' if name in now else 'gone'}"
            continue
        (norm, projection), (norm_now, projection_now) = before[name], now[name]
        moved = abs(projection_now - projection) + abs(norm_now - norm)
        if not moved <= SAME_WEIGHTS * max(norm, norm_now) * math.sqrt(2):
            told = (
                f"norm {brief(norm_now)}, was {brief(norm)}"
                if abs(norm_now - norm) > SAME_WEIGHTS * norm
                else "of the same norm"
            )
            yield f"{name}: {told}"


def _stale(before: Baseline, now: Baseline) -> Iterator[Reason]:
    if before.task_hash != now.task_hash:
        text = "the baseline was made of another task file"
        yield _reason("task", f"{text}: {UPDATE.format(task=now.task)}")
    changed = list(_changed_settings(before.settings, now.settings))
    if changed:
        text = f"the baseline was made with other settings ({some(changed, 3)})"
        yield _reason("settings", f"{text}: {UPDATE.format(task=now.task)}")


def _changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> Iterator[str]:
    for name in sorted({*before, *now}):
        old, new = before.get(name, "default"), now.get(name, "default")
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changed_settings(old, new, f"{where}{name}.")
        elif old != new:
            yield f"{where}{name} {new}, was {old}"


def _prompts(before: Prompts, now: Prompts, tolerance: Tolerance) -> Iterator[Reason]:
    if before.aligned != now.aligned:
        yield _reason("prompts", f"there are {now.aligned} prompt pairs, were {before.aligned}")
    elif before.content != now.content:
        yield _reason("prompts", *_what_of_prompts(before, now))
    allowed = 1 / max(before.aligned, 1) if tolerance.accuracy is None else tolerance.accuracy
    if not abs(now.accuracy - before.accuracy) <= allowed + 1e-9:
        text = f"the model answers {now.accuracy:.1%} of the prompts rightly, was {before.accuracy:.1%}"
        yield _reason("metric", text)


def _what_of_prompts(before: Prompts, now: Prompts) -> tuple[str, list[str]]:
    """What of the prompts is other than it was, and the first pair before and now."""
    first, was = now.first, before.first
    lines = [f"{key}: {first.get(key)!r}, was {was.get(key)!r}" for key in was if first.get(key) != was[key]]
    lines = [f"first pair, {line}" for line in lines]
    if before.tokens == now.tokens:
        if before.answer_positions != now.answer_positions:
            return "the prompts differ: answers are read at another position", lines
        if before.answers != now.answers:
            return "the prompts differ: the answers or wrong answers are others", lines
        return "the prompts differ: the named positions are others", lines
    if before.pairs == now.pairs:
        return "the prompts differ: they come in another order", lines
    if before.clean_prompts == now.clean_prompts and before.corrupted_prompts == now.corrupted_prompts:
        return (
            "the prompts differ: they are the same, but clean and corrupted ones are paired otherwise",
            lines,
        )
    if before.texts == now.texts:
        return "the prompts' tokens differ for the same texts: the tokenizer is another", lines
    same = [
        side
        for side in ("clean", "corrupted")
        if getattr(before, f"{side}_prompts") == getattr(now, f"{side}_prompts")
    ]
    if same:
        other = "corrupted" if same == ["clean"] else "clean"
        return f"the prompts differ: the {other} ones are others", lines
    return "the prompts differ: other ones are drawn or written", lines


# Consequences.


def _metric(before: Metric, now: Metric, tolerance: Tolerance) -> Iterator[Reason]:
    if before.name != now.name:
        yield _reason("metric", f"the metric is {now.name}, was {before.name}")
        return
    allowed = tolerance.metric * abs(before.clean - before.corrupted)
    for side in ("clean", "corrupted"):
        old, new = getattr(before, side), getattr(now, side)
        if not abs(new - old) <= allowed:
            yield _reason(
                "metric", f"the mean metric of the {side} prompts is {brief(new)}, was {brief(old)}"
            )
    if not now.empty:  # refused before circuits were measured
        return
    for ablation, old in before.empty.items():
        empty = now.empty.get(ablation)
        if empty is None:
            yield _reason("metric", f"nothing was measured under {ablation} ablation")
        elif not abs(empty - old) <= allowed:
            text = f"the mean metric of the empty circuit under {ablation} ablation is {brief(empty)}, was {brief(old)}"
            yield _reason("metric", f"{text}: what cut edges carry is other than it was")


def _scores(
    what: str, before: Mapping[str, float | None], now: Mapping[str, float | None], allowed: float
) -> Iterator[Reason]:
    """Of those that are in both; what came and went is told with the edges."""
    greatest = max((abs(score) for score in before.values() if score is not None), default=0.0)
    moved: dict[str, float] = {}
    for name, old in before.items():
        new = now.get(name)
        if name not in now or (old is None and new is None):
            continue
        change = math.inf if old is None or new is None else abs(new - old)
        if not change <= allowed * greatest:
            moved[name] = change
    if moved:
        order = sorted(moved, key=lambda name: -moved[name])
        most = moved[order[0]] / greatest if greatest and math.isfinite(moved[order[0]]) else math.inf
        part = (
            f"by up to {most:.2g} of the greatest ({brief(greatest)})"
            if math.isfinite(most)
            else "some are none"
        )
        text = f"scores of {what} differ {part}: {len(moved)} of {len(before)}"
        yield _reason("scores", text, [f"{n}  {brief(now[n])}, was {brief(before[n])}" for n in order])


def _edges(
    before: Mapping[str, float | None], now: Mapping[str, float | None], least: float, score_of: ScoreOf
) -> Iterator[Reason]:
    lost, gained = [e for e in before if e not in now], [e for e in now if e not in before]
    if not lost and not gained:
        return
    both = len(before) - len(lost)
    jaccard = both / (both + len(lost) + len(gained))
    sizes = [abs(score) for score in before.values() if score is not None]
    middle = statistics.median(sizes) if sizes else 0.0
    strong = [e for e in lost if _size(before[e]) >= middle] + [e for e in gained if _size(now[e]) >= middle]
    if jaccard >= least and not strong:
        return
    lost.sort(key=lambda e: -_size(before[e]))
    gained.sort(key=lambda e: -_size(now[e]))
    told = [f"lost {some(lost, 3)}"] if lost else []
    told += [f"gained {some(gained, 3)}"] if gained else []
    text = f"the circuit {' and '.join(told)} (Jaccard index {jaccard:.3f})"
    lines = [f"- {e}  {brief(score_of(e))}, was {brief(before[e])}" for e in lost[:LISTED]]
    lines += [f"- and {len(lost) - LISTED} more"] if len(lost) > LISTED else []
    lines += [f"+ {e}  {brief(now[e])}" for e in gained[:LISTED]]
    lines += [f"+ and {len(gained) - LISTED} more"] if len(gained) > LISTED else []
    yield Reason("edges", "baseline", text, tuple(lines))


def _size(score: float | None) -> float:
    return 0.0 if score is None else abs(score)


def _backups(before: Mapping[str, str], now: Mapping[str, str], allowed: int) -> Iterator[Reason]:
    lost = [name for name in before if name not in now]
    gained = [name for name in now if name not in before]
    other = [name for name in before if name in now and now[name] != before[name]]
    if len(lost) + len(gained) + len(other) <= allowed:
        return
    told = [f"lost {some(lost, 3)}"] if lost else []
    told += [f"gained {some(gained, 3)}"] if gained else []
    told += [f"{name} is {now[name]}, was {before[name]}" for name in other[:3]]
    yield _reason("backups", f"the search for backups differs: {'; '.join(told)}")
