"""The stage that draws the prompts: pairs that line up, run once, without those that the model answers wrongly."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitfind.errors import PromptError
from circuitfind.session import Session

if TYPE_CHECKING:
    from circuitfind.task.pairs import PromptPairs

Made = tuple[dict[str, bytes | str], dict[str, Any]]


def draw_prompts(session: Session) -> Made:
    """Files and facts of the stage.

    Raises:
        PromptError: The model answers too few of the prompts rightly.
    """
    settings = session.settings
    pairs = session.all_pairs
    runs = session.runs_of(pairs)
    right = runs.answered_rightly
    accuracy = float(right.mean())
    if accuracy < settings.min_accuracy or not right.any():
        raise _too_inaccurate(session, pairs, right, runs.clean)
    kept = [int(i) for i in np.flatnonzero(right)]
    for text in pairs.notes:
        session.reporter.note(text)
    if len(kept) < len(pairs):
        session.reporter.note(
            f"{len(pairs) - len(kept)} of {len(pairs)} pairs left out: the model answers them wrongly"
        )
    lines = [
        json.dumps(
            {
                "clean": pair.clean_text or list(pair.clean),
                "corrupted": pair.corrupted_text or list(pair.corrupted),
                "clean_tokens": list(pair.clean),
                "corrupted_tokens": list(pair.corrupted),
                "answer": list(pair.answer),
                "wrong": list(pair.wrong),
                "answer_position": pair.answer_position,
                "positions": dict(pair.positions),
                "metric": round(float(runs.clean[i]), 6),
                "kept": bool(right[i]),
                "where": pair.where,
            },
            ensure_ascii=False,
        )
        for i, pair in enumerate(pairs)
    ]
    facts = {
        "kept": kept,
        "aligned": len(pairs),
        "dropped_unaligned": len(pairs.dropped),
        "answered_wrongly": len(pairs) - len(kept),
        "accuracy": accuracy,
        "counterfactual": pairs.counterfactual,
        "left_out": {slot: list(values) for slot, values in pairs.left_out.items()},
        "notes": list(pairs.notes),
        "content_hash": pairs.content_hash(),
    }
    return {"prompts.jsonl": "\n".join(lines) + "\n"}, facts


def _too_inaccurate(
    session: Session, pairs: PromptPairs, right: np.ndarray, values: np.ndarray
) -> PromptError:
    wrong = [int(i) for i in np.flatnonzero(~right)[:5]]
    vocab, tokenizer = session.spec.vocab, session.model.tokenizer
    piece = tokenizer.piece if tokenizer is not None else vocab.__getitem__ if vocab is not None else str
    shown = [
        f"{pairs[i].where}: '{pairs[i].clean_text or list(pairs[i].clean)}' wants {'|'.join(map(piece, pairs[i].answer[:4]))}, "
        f"metric {values[i]:.3g}"
        for i in wrong
    ]
    # With no pair left there is nothing to look at, whatever accuracy is asked for.
    below = f", below the {session.settings.min_accuracy:.0%} that the task asks for" if right.any() else ""
    lower = "; to look all the same, lower --min-accuracy (wrongly answered pairs are left out)"
    return PromptError(
        f"{session.settings.model} answers {right.mean():.0%} of the {len(pairs)} clean prompts rightly"
        f"{below}: it does not do this task",
        where=str(session.spec.path or session.spec.name),
        details=shown,
        hint="use another model or prompts" + (lower if right.any() else ""),
    )
