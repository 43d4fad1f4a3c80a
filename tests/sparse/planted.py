"""Dictionaries that are exact by construction: the directions that the planted induction model is written in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.model.load import load_model, planted
from circuitfind.model.runs import Runs
from circuitfind.names import parse_node
from circuitfind.task.metrics import get_metric
from circuitfind.task.pairs import PromptPair, PromptPairs


@dataclass(frozen=True)
class Directions:
    """The pieces of the stream, one row for each token or position.

    ``token`` and ``position`` are embedded, ``before`` (the token in front) is written by the previous-token head and ``out`` by
    the induction head.
    """

    token: Tensor
    position: Tensor
    before: Tensor
    out: Tensor

    def feature(self, piece: str, index: int) -> int:
        """Which feature of ``exact_sae`` holds a direction."""
        start = 0
        for name in ("token", "position", "before", "out"):
            if name == piece:
                return start + index
            start += len(getattr(self, name))
        raise KeyError(piece)

    def piece_of(self, feature: int) -> str:
        for name in ("token", "position", "before", "out"):
            if feature < len(getattr(self, name)):
                return name
            feature -= len(getattr(self, name))
        raise KeyError(feature)


def directions(name: str) -> tuple[Directions, int, int]:
    """The directions of a planted induction model; the layers of its two heads."""
    made = planted(name)
    places = {role: parse_node(head) for head, role in made.roles.items()}
    previous, induction = places["previous-token"], places["induction"]
    state = {key: value.double() for key, value in made.state.items()}
    token = state["embed.W_E"]

    def carried(layer: int, head: int) -> Tensor:
        return token @ state[f"blocks.{layer}.attn.W_V"][head] @ state[f"blocks.{layer}.attn.W_O"][head]

    pieces = (
        token,
        state["pos_embed.W_pos"],
        carried(previous.layer, previous.index),
        carried(induction.layer, induction.index),
    )
    unit = (piece / piece.norm(dim=1, keepdim=True) for piece in pieces)
    return Directions(*unit), previous.layer, induction.layer


def exact_sae(known: Directions, layer: int, *, site: str = "resid_post") -> Dictionary:
    """Each feature reads and writes one direction of the stream."""
    rows = torch.cat((known.token, known.position, known.before, known.out)).float()
    return Dictionary(
        kind="sae",
        layer=layer,
        site_in=site,  # type: ignore[arg-type]
        site_out=site,  # type: ignore[arg-type]
        activation="jumprelu",
        w_enc=rows.T.contiguous(),
        b_enc=torch.zeros(len(rows)),
        w_dec=rows,
        b_dec=torch.zeros(rows.shape[1]),
        threshold=torch.full((len(rows),), 0.01),
    )


def planted_runs(name: str, count: int = 24) -> Runs:
    pairs = tuple(
        PromptPair(
            p.clean, p.corrupted, (p.answer,), (p.wrong,), len(p.clean) - 1, p.positions, "", "", "x", "g"
        )
        for p in planted(name).pairs(count, 0)
    )
    return Runs(load_model(name, device="cpu"), PromptPairs(pairs, "planted"), get_metric("logit-diff"))
