"""The facts of a trained mini, plain or redundant (card.json), and the table made from them."""

from __future__ import annotations

import hashlib
import itertools
import platform
import random
from importlib import metadata
from pathlib import Path
from typing import Any

from circuitfind.zoo.mini import batches, corpus
from circuitfind.zoo.mini.evaluate import Score
from circuitfind.zoo.mini.examples import HELD_OUT_ONE_IN

HASHED_DOCUMENTS = 10_000
TABLE_BEGIN = "<!-- accuracy: written by the trainer -->"
TABLE_END = "<!-- end of accuracy -->"


def corpus_hash() -> str:
    """SHA-256 of the first documents of the stream that seed 0 gives."""
    digest = hashlib.sha256()
    for document in itertools.islice(corpus.documents(random.Random(0)), HASHED_DOCUMENTS):
        digest.update(document.text.encode() + b"\0")
    return digest.hexdigest()


def facts(
    settings: dict[str, Any],
    parameters: int,
    seconds: float,
    device: str,
    scores: dict[str, dict[str, Score]],
) -> dict[str, Any]:
    """What card.json holds."""
    return {
        "parameters": parameters,
        "training": settings,
        "optimizer": "Muon on block matrices, AdamW on the rest; warm-up, then cosine to zero",
        "loss": {
            "answer_weight": 1.0,
            "other_weight": batches.OTHER_WEIGHT,
            "other_share": batches.OTHER_SHARE,
        },
        "corpus": {
            "sha256_of_first_documents": corpus_hash(),
            "documents_hashed": HASHED_DOCUMENTS,
            "shares": corpus.WEIGHTS,
            "focus_shares": corpus.FOCUS_WEIGHTS,
            "held_out": f"CRC-32 of the key is 0 modulo {HELD_OUT_ONE_IN}",
        },
        "wall_seconds": round(seconds),
        "device": device,
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "transformers", "tokenizers")},
        },
        "accuracy": {
            opening: {behaviour: score.as_dict() for behaviour, score in by_behaviour.items()}
            for opening, by_behaviour in scores.items()
        },
    }


def table(card: dict[str, Any]) -> str:
    """The accuracy figures as a Markdown table, and what was trained, for the model card."""
    lines = [
        "| Behaviour | Held-out prompts | Beats the wrong answers | Top token | Both after `<|endoftext|>` |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for behaviour, plain in card["accuracy"]["plain"].items():
        bos = card["accuracy"]["bos"][behaviour]
        lines.append(
            f"| {behaviour} | {plain['prompts']} | {plain['beats_wrong']:.1%} | {plain['top1']:.1%} "
            f"| {bos['beats_wrong']:.1%}, {bos['top1']:.1%} |"
        )
    figures = "\n".join(lines).replace("<|endoftext|>", "<\\|endoftext\\|>")
    training, versions = card["training"], card["versions"]
    share = training.get("drop_attention", 0.0)
    dropped = f" (in the end each attention layer left out of {share:.0%} of them)" if share else ""
    return (
        f"{figures}\n\nThis model: seed {training['seed']}, {training['steps']:,} steps of "
        f"{training['documents_per_step']} documents{dropped}, {card['wall_seconds'] / 60:.0f} minutes on "
        f"{card['device']}; torch {versions['torch']}, transformers {versions['transformers']}."
    )


def update_readme(readme: Path, card: dict[str, Any]) -> None:
    """Replace the table between the marks of a model card."""
    text = readme.read_text(encoding="utf-8")
    head, begin, rest = text.partition(TABLE_BEGIN)
    _, end, tail = rest.partition(TABLE_END)
    if not begin or not end:
        raise ValueError(f"{readme} has no lines {TABLE_BEGIN!r} and {TABLE_END!r}")
    readme.write_text(f"{head}{begin}\n{table(card)}\n{end}{tail}", encoding="utf-8")
