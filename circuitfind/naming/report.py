"""Everything that is known of some units, as plain data: the nodes of ``names.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from circuitfind.dictionaries.texts import Tokens
from circuitfind.names import Node
from circuitfind.naming.banks import Banks, index_of
from circuitfind.naming.contexts import Activity, Context, find_contexts, shares
from circuitfind.naming.evidence import (
    AnswerDirection,
    HeadWrite,
    answer_direction,
    answer_write,
    head_writes,
    unit_writes,
)
from circuitfind.naming.lens import Promoted, promoted
from circuitfind.task.pairs import PromptPairs

TOKENS, HEADS, PAIRS = 8, 5, 60
"""Promoted tokens, heads and pairs of units that are kept."""

Piece = Callable[[int], str]


def describe(
    banks: Banks,
    nodes: Sequence[Node],
    sequences: Sequence[Tokens],
    piece: Piece,
    *,
    pairs: PromptPairs | None = None,
    top: int = 5,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Contexts, promoted tokens and evidence of some neurons and features (docs/naming.md).

    Args:
        banks: Where their weights are.
        nodes: Neurons, features, and groups of them.
        sequences: Texts as tokens.
        piece: The text of a token.
        pairs: Of the task whose answer they may write.
        top: Contexts to keep of each.
        progress: Hears how many texts more are done.
    """
    found = find_contexts(banks, nodes, sequences, top=top, progress=progress)
    parts = {node: shares(found[node], len(node.units)) for node in nodes}
    direction = None if pairs is None or not len(pairs) else answer_direction(banks.model, pairs)
    heads = head_writes(banks, nodes)
    listed = [_node(banks, n, found[n], parts[n], piece, direction, heads[n]) for n in nodes]
    between = [
        {**asdict(one), "sender": str(one.sender), "receiver": str(one.receiver)}
        for one in unit_writes(banks, nodes, parts)[:PAIRS]
    ]
    answer = (
        None
        if direction is None or pairs is None
        else {"pairs": len(pairs), "agreement": direction.agreement}
    )
    return {"answer": answer, "nodes": listed, "between": between}


def _node(
    banks: Banks,
    node: Node,
    found: Activity,
    parts: Tensor,
    piece: Piece,
    direction: AnswerDirection | None,
    heads: dict[str, list[HeadWrite]],
) -> dict[str, Any]:
    writes = banks[node].writes(index_of(node, banks.model.device))
    written = parts.to(writes) @ writes
    (lens,) = promoted(banks.model, written[None], TOKENS)
    strongest = (lens.reversed if found.side < 0 else lens).promotes
    answer = None if direction is None else asdict(answer_write(banks, node, direction, parts))
    return {
        "name": str(node),
        "kind": node.kind.name.lower(),
        "layer": node.layer,
        "units": [
            {"unit": unit, "share": float(share)} for unit, share in zip(node.units, parts, strict=True)
        ],
        "activation": {
            "tokens": found.tokens,
            "fires": found.fires,
            "mean": found.mean,
            "largest": found.largest,
            "smallest": found.smallest,
        },
        "contexts": [_context(c, piece) for c in found.top],
        "negative_contexts": [_context(c, piece) for c in found.bottom],
        **_tokens(lens, piece),
        "hint": f"'{piece(strongest[0][0])}'" if strongest else None,
        "answer": answer,
        "heads": {
            entry: [{**asdict(one), "head": str(one.head)} for one in some[:HEADS]]
            for entry, some in heads.items()
        },
    }


def _context(context: Context, piece: Piece) -> dict[str, Any]:
    return {
        "value": context.value,
        "tokens": [piece(token) for token in context.tokens],
        "at": context.at,
        "text": context.text,
        "position": context.position,
    }


def _tokens(lens: Promoted, piece: Piece) -> dict[str, list[dict[str, Any]]]:
    return {
        side: [{"token": piece(token), "value": value} for token, value in getattr(lens, side)]
        for side in ("promotes", "suppresses")
    }
