"""What happens on each pair, and which pairs are worth a look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from circuitfind.model.runs import Runs
from circuitfind.views.report import PromptRow, short

MOST = 6
"""Pairs that are chosen."""
MOST_OUTLIERS = 3
TOLD = 4
"""Tokens of an answer that are told."""

Values = Float[np.ndarray, " prompt"]


def predicted(runs: Runs) -> Int[np.ndarray, " prompt"]:
    """The likeliest token at the answer position of each clean prompt."""
    found = np.zeros(len(runs), dtype=int)
    for number, batch in enumerate(runs.batches):
        with torch.no_grad():
            logits = runs.model.head(runs.trace(number, "clean").final)
        found[batch.index] = logits.argmax(-1).cpu().numpy()
    return found


def rows(
    runs: Runs,
    numbers: Sequence[int],
    piece: Callable[[int], str],
    *,
    corrupted: Values | None,
    circuit: Values | None,
    empty: Values | None,
    outliers: Mapping[int, str],
) -> tuple[PromptRow, ...]:
    """One row a pair.

    Args:
        runs: Of the pairs.
        numbers: What each pair is called.
        piece: The text of a token.
        corrupted: The metric of each pair on its corrupted prompt; None where there are no such prompts.
        circuit: The same in the circuit.
        empty: The same with every edge ablated.
        outliers: By place in ``runs``, why the circuit misses a pair.
    """
    clean, right, likeliest = runs.clean, runs.answered_rightly, predicted(runs)

    def at(values: Values | None, i: int) -> float | None:
        return None if values is None else short(float(values[i]))

    return tuple(
        PromptRow(
            pair=number,
            clean=_text(pair.clean_text, pair.clean, piece),
            corrupted=None if corrupted is None else _text(pair.corrupted_text, pair.corrupted, piece),
            answer=_tokens(pair.answer, piece) or "",
            wrong=_tokens(pair.wrong, piece),
            template=pair.group,
            where=pair.where,
            right=bool(right[i]),
            predicted=piece(int(likeliest[i])),
            clean_metric=at(clean, i) or 0.0,
            corrupted_metric=at(corrupted, i),
            circuit_metric=at(circuit, i),
            empty_metric=at(empty, i),
            outlier=outliers.get(i),
        )
        for i, (number, pair) in enumerate(zip(numbers, runs.pairs, strict=True))
    )


def choose(
    values: Values, groups: Sequence[str], outliers: Sequence[int], most: int = MOST
) -> list[tuple[int, str]]:
    """Places of the pairs to look at, each with why: the typical one, the best, the worst, outliers, and with what room
    is left the typical one of each other template.

    Args:
        values: The metric of each clean prompt.
        groups: The template of each.
        outliers: Pairs that the circuit misses, the worst first.
        most: Pairs to choose.
    """
    found: dict[int, str] = {}

    def typical(some: Int[np.ndarray, " some"]) -> int:
        return int(some[np.argmin(np.abs(values[some] - np.median(values[some])))])

    every = np.arange(len(values))
    found[typical(every)] = "typical"
    found.setdefault(int(np.argmax(values)), "best")
    found.setdefault(int(np.argmin(values)), "worst")
    for i in outliers[:MOST_OUTLIERS]:
        found.setdefault(i, "outlier")
    names = np.array(groups)
    seen = {groups[i] for i in found}
    for name in dict.fromkeys(groups):
        if name not in seen:
            found.setdefault(typical(every[names == name]), f"template {name}")
    return list(found.items())[:most]


def _text(text: str, tokens: Sequence[int], piece: Callable[[int], str]) -> str:
    return text or " ".join(map(piece, tokens))


def _tokens(tokens: Sequence[int], piece: Callable[[int], str]) -> str | None:
    """The first tokens of a set; None of an empty one."""
    if not tokens:
        return None
    more = ["..."] if len(tokens) > TOLD else []
    return "|".join([*map(piece, tokens[:TOLD]), *more])
