"""Prompt pairs looked at before anything is found with them: their tokens, what is weak in them, and what a model makes of
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitfind.errors import ModelError, UsageError
from circuitfind.session import Reporter, Session, Silent
from circuitfind.settings import resolve
from circuitfind.task.advice import advise
from circuitfind.task.differences import Advice, about, counts, difference, of_pairs
from circuitfind.task.spec import TaskSpec

if TYPE_CHECKING:
    from circuitfind.task.pairs import PromptPair, PromptPairs, Tokenizer

LEAK = 0.75
"""Accuracy without what the counterfactual changes, from which the answer counts as guessable."""
STAYS = 0.5
"""Share of the clean metric that is left of it in corrupted prompts, from which a counterfactual is weak."""
FAR = 5.0
"""Median absolute deviations from the median beyond which a pair is an outlier."""


@dataclass(frozen=True)
class Prompted:
    """The pairs of a task for one model.

    Attributes:
        spec: The task.
        model: The model's name.
        pairs: Those that line up, and those that do not.
        tokenizer: The model's; None where prompts are words of a vocab or token ids.
        session: With the model loaded; None where it is not run.
        why_not: Why it is not run, where nobody asked for that.
    """

    spec: TaskSpec
    model: str
    pairs: PromptPairs
    tokenizer: Tokenizer | None
    session: Session | None
    why_not: str | None = None

    def piece(self, token: int) -> str:
        """A token as text, with blanks and line ends as they are."""
        if self.tokenizer is None:
            return str(token)
        return self.tokenizer.piece(token).replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")


def gather(
    spec: TaskSpec,
    *,
    model: str | None = None,
    counterfactual: str | None = None,
    count: int | None = None,
    seed: int | None = None,
    run: bool | None = None,
    metric: str | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> Prompted:
    """Draw and align the pairs of a task; those that do not line up are counted.

    Args:
        spec: The task.
        model: A model, or a folder that holds a tokenizer alone; the task's if None.
        counterfactual: Which corrupted prompts; the task's first if None.
        count: How many; as the task says if None.
        seed: What templates are filled from.
        run: Load the model; if None, where there is one.
        metric: What is measured; the task's if None.
        device: Where the model runs.
        reporter: Hears of progress.

    Raises:
        UsageError: No such model or counterfactual, or no pair that lines up.
    """
    settings = resolve(
        spec,
        model=model,
        counterfactual=counterfactual,
        count=count,
        seed=seed,
        metric=metric,
        drop_bad_pairs=True,
    )
    why_not = None
    if run is not False:
        why_not = cannot_run(settings.model)
        if why_not is not None and run:
            raise ModelError(f"the model cannot be run: {why_not}", hint="give another --model, or --no-run")
    if run is False or why_not is not None:
        pairs, tokenizer = _pairs_alone(spec, settings.model, counterfactual, settings.count, settings.seed)
        return Prompted(spec, settings.model, pairs, tokenizer, None, why_not)
    session = Session(spec, settings, device, reporter or Silent())
    tokenizer = session.model.tokenizer or _vocab(spec)
    return Prompted(spec, settings.model, session.all_pairs, tokenizer, session)


def _vocab(spec: TaskSpec) -> Tokenizer | None:
    from circuitfind.task.pairs import VocabTokenizer

    return None if spec.vocab is None else VocabTokenizer(spec.vocab)


def cannot_run(name: str) -> str | None:
    """Why a name is no model, though it is a tokenizer."""
    from circuitfind.model.identity import model_folder
    from circuitfind.zoo import is_zoo

    folder = Path() if is_zoo(name) else model_folder(name)
    if is_zoo(name) or not folder.is_dir() or (folder / "config.json").is_file():
        return None
    return f"{folder.name} holds a tokenizer and no model" if (folder / "tokenizer.json").is_file() else None


def _pairs_alone(
    spec: TaskSpec, name: str, counterfactual: str | None, count: int | None, seed: int
) -> tuple[PromptPairs, Tokenizer | None]:
    """The pairs with the tokenizer alone."""
    from circuitfind.model.load import load_tokenizer, planted
    from circuitfind.task.prompts import make_pairs
    from circuitfind.zoo import is_planted

    tokenizer: Tokenizer | None = load_tokenizer(name)
    zoo_pairs = None
    if spec.prompts.zoo is not None and is_planted(name):
        zoo_pairs = planted(name).pairs(count or 64, seed)
    pairs = make_pairs(
        spec,
        tokenizer,
        counterfactual=counterfactual,
        count=count,
        seed=seed,
        drop_bad_pairs=True,
        zoo_pairs=zoo_pairs,
    )
    return pairs, tokenizer or _vocab(spec)


# What is found.


@dataclass(frozen=True)
class PromptCheck:
    """What there is to say of a task's pairs.

    Attributes:
        prompted: The pairs.
        rows: One for each pair.
        totals: Over all pairs.
        advice: Warnings, then notes.
    """

    prompted: Prompted
    rows: tuple[Mapping[str, Any], ...]
    totals: Mapping[str, Any]
    advice: tuple[Advice, ...]

    @property
    def warnings(self) -> int:
        """How many there are."""
        return counts(self.advice)["warnings"]

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        p = self.prompted
        return {
            "task": p.spec.name,
            "model": p.model,
            "run": p.session is not None,
            "counterfactual": p.pairs.counterfactual,
            **counts(self.advice),
            "totals": dict(self.totals),
            "advice": [one.as_dict() for one in self.advice],
            "pairs": [dict(row) for row in self.rows],
        }


def check_prompts(prompted: Prompted) -> PromptCheck:
    """Look at the pairs, and run the model on them where it is loaded."""
    pairs, session = prompted.pairs, prompted.session
    causal = session is None or session.model.causal
    advice = advise(prompted.spec, pairs, prompted.piece, causal=causal)
    rows = [_row(i, pair) for i, pair in enumerate(pairs)]
    lengths = [len(pair.clean) for pair in pairs]
    totals: dict[str, Any] = {
        "pairs": len(pairs),
        "dropped": len(pairs.dropped),
        "tokens": [min(lengths), max(lengths)],
        "templates": len({pair.group for pair in pairs}),
        "answers": len({pair.answer for pair in pairs}),
        "one_change": sum(len(row["differs"]) == 1 for row in rows),
    }
    if session is not None:
        found, seen, measured = _run(prompted, session)
        advice += found
        totals |= seen
        rows = [{**row, **more} for row, more in zip(rows, measured, strict=True)]
    ordered = sorted(advice, key=lambda one: one.level != "warning")
    return PromptCheck(prompted, tuple(rows), totals, tuple(ordered))


def _row(number: int, pair: PromptPair) -> dict[str, Any]:
    found = difference(pair)
    return {
        "pair": number + 1,
        "where": pair.where,
        "clean": pair.clean_text or list(pair.clean),
        "corrupted": pair.corrupted_text or list(pair.corrupted),
        "tokens": len(pair.clean),
        "differs": [list(span) for span in found.spans],
        "answer_position": pair.answer_position,
    }


def _run(prompted: Prompted, session: Session) -> tuple[list[Advice], dict[str, Any], list[dict[str, Any]]]:
    pairs, settings = prompted.pairs, session.settings
    runs = session.runs_of(pairs, edges=False)
    clean, corrupted, right = runs.clean, runs.corrupted, runs.answered_rightly
    still = session.runs_of(pairs, "accuracy", edges=False).corrupted > 0.5
    leak = None if prompted.spec.prompts.zoo is not None else _leak(session, pairs)
    advice = [
        *_accuracy(session, pairs, right),
        *_flips(pairs, clean, corrupted, right, still, settings.metric),
    ]
    advice += [*_spread(pairs, clean, settings.metric), *_leaks(leak)]
    totals = {
        "metric": settings.metric,
        "accuracy": float(right.mean()),
        "flipped": float((right & ~still).mean()),
        "clean": _summary(clean),
        "corrupted": _summary(corrupted),
        "without_context": None if leak is None else leak[0],
    }
    rows = [
        {
            "right": bool(right[i]),
            "clean_metric": float(clean[i]),
            "corrupted_metric": float(corrupted[i]),
            "flips": bool(right[i] and not still[i]),
        }
        for i in range(len(pairs))
    ]
    return advice, totals, rows


def _summary(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
    }


def _accuracy(session: Session, pairs: PromptPairs, right: np.ndarray) -> list[Advice]:
    wrong = [int(i) for i in np.flatnonzero(~right)]
    if not wrong:
        return []
    asked = session.settings.min_accuracy
    if right.mean() < asked:
        what = f"{session.settings.model} answers {right.mean():.0%} rightly, below the {asked:.0%} that the task asks for"
        hint = "use another model or prompts: discover refuses"
        return [about("warning", "low-accuracy", what, hint, pairs, wrong)]
    what = f"{session.settings.model} answers {of_pairs(wrong, pairs)} wrongly; discover leaves them out"
    return [about("note", "answered-wrongly", what, "look at what they have in common", pairs, wrong)]


def _flips(
    pairs: PromptPairs,
    clean: np.ndarray,
    corrupted: np.ndarray,
    right: np.ndarray,
    still: np.ndarray,
    metric: str,
) -> list[Advice]:
    found = []
    not_lower = [int(i) for i in np.flatnonzero(corrupted >= clean)]
    if not_lower:
        found.append(
            about(
                "warning",
                "no-effect",
                f"the corrupted prompt has no lower {metric} in {of_pairs(not_lower, pairs)}: there is nothing to explain",
                "corrupt what the answer depends on",
                pairs,
                not_lower,
            )
        )
    used = clean[right].mean() if right.any() else 0.0  # discover leaves the others out
    left = corrupted[right].mean() / used if used > 0 else 0.0
    keep = [int(i) for i in np.flatnonzero(still) if i not in set(not_lower)]
    if left > STAYS and metric != "kl":
        found.append(
            Advice(
                "warning",
                "weak-counterfactual",
                f"corrupted prompts keep {left:.0%} of the {metric}: a patch has little to change",
                "corrupt more of what the answer depends on",
            )
        )
    elif keep:
        what = f"the answer stays the likelier one in {of_pairs(keep, pairs)} when the prompt is corrupted"
        hint = "fine where the counterfactual takes the answer away without giving another"
        found.append(about("note", "answer-stays", what, hint, pairs, keep))
    return found


def _spread(pairs: PromptPairs, clean: np.ndarray, metric: str) -> list[Advice]:
    middle = float(np.median(clean))
    deviation = float(np.median(np.abs(clean - middle)))
    far = [int(i) for i in np.flatnonzero(np.abs(clean - middle) > FAR * deviation)] if deviation else []
    if not far or len(pairs) < 8 or len(far) > len(pairs) / 10:  # a tenth of them is no outlier any more
        return []
    what = f"the {metric} of {of_pairs(far, pairs)} is far from the median {middle:.3g} (more than {FAR:g} deviations)"
    return [about("note", "outliers", what, "a mean over prompts leans on them: look at them", pairs, far)]


def _leak(session: Session, pairs: PromptPairs) -> tuple[float, int, int] | None:
    """Accuracy when the model reads only what stands behind the last change; with the number of pairs and of tokens."""
    from circuitfind.task.pairs import PromptPairs as Pairs

    tokenizer = session.model.tokenizer
    bos = None if tokenizer is None else tokenizer.bos
    cut: list[PromptPair] = []
    for pair in pairs:
        at = pair.answer_position
        inner = [p for p in difference(pair).positions if p <= at]
        start = inner[-1] + 1 if inner else 0
        if not inner or start > at:
            continue
        front = (bos,) if bos is not None and pair.clean[0] == bos else ()
        tail = front + pair.clean[start : at + 1]
        cut.append(replace(pair, clean=tail, corrupted=tail, answer_position=len(tail) - 1, positions={}))
    if not cut:
        return None
    runs = session.runs_of(Pairs(tuple(cut), pairs.counterfactual), "accuracy", edges=False)
    return float(runs.clean.mean()), len(cut), max(len(pair.clean) for pair in cut)


def _leaks(leak: tuple[float, int, int] | None) -> list[Advice]:
    if leak is None or leak[0] < LEAK or leak[1] < 8:
        return []
    return [
        Advice(
            "warning",
            "leakage",
            f"the model gives the answer in {leak[0]:.0%} of {leak[1]} pairs when it reads only what stands behind the change: "
            "the change is not needed",
            "end the prompts alike, or let the same ending have either answer",
        )
    ]


def chosen(prompted: Prompted, numbers: Sequence[int]) -> list[int]:
    """Pairs by their numbers, from 1.

    Raises:
        UsageError: There is no such pair.
    """
    for number in numbers:
        if not 1 <= number <= len(prompted.pairs):
            raise UsageError(
                f"there is no pair {number}", hint=f"pairs are counted from 1 to {len(prompted.pairs)}"
            )
    return [number - 1 for number in numbers]
