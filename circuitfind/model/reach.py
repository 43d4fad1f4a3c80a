"""Which nodes a patched pass must compute: those that can differ from a known run and that something still reads.

Two runs are known. Seen from the base run a node differs when it is replaced or when something that it reads is; seen from
the replaced end (a circuit: most edges are cut) a node differs from what a cut edge carries only when an edge from the
prompt still reaches it. Either way a node that nothing reads is left out. The smaller of the two sets is computed.
No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool

from circuitfind.model.anatomy import Anatomy

Writers = Bool[np.ndarray, " writer"]
Readers = Bool[np.ndarray, " reader"]


@dataclass(frozen=True)
class Reach:
    """What to compute.

    Attributes:
        end: The run that all other nodes are taken from: ``base`` or ``cut``.
        active: Writers that are computed or replaced.
        varied: Those of them whose value may depend on the patch; the others are computed once for all patches.
    """

    end: Literal["base", "cut"]
    active: Writers
    varied: Writers


def reach(
    anatomy: Anatomy,
    nodes: Bool[np.ndarray, "patch writer"],
    cut: Bool[np.ndarray, "patch writer reader"],
    *,
    cut_is_run: bool,
    heads_together: bool,
) -> Reach:
    """Find the smaller set of nodes to compute.

    Args:
        anatomy: What the masks are indexed by.
        nodes: Writers that each patch replaces.
        cut: Edges that each patch replaces.
        cut_is_run: See ``Contrast``.
        heads_together: Heads of a layer depend on each other (a norm behind attention).
    """
    any_cut, any_node, all_node = (np.asarray(found) for found in (cut.any(0), nodes.any(0), nodes.all(0)))
    kept = anatomy.edge_mask & ~cut.all(0)
    needed = _needed(anatomy, kept, all_node, heads_together)
    changed = needed & _spread(anatomy, kept, any_node, np.asarray(any_cut.any(0)), heads_together)
    lit = needed.copy()
    if cut_is_run:
        seeds = any_node.copy()
        seeds[list(anatomy.source_rows)] = True
        lit &= _spread(anatomy, kept, seeds, np.zeros(len(anatomy.readers), dtype=bool), heads_together)
    mostly_cut = any_cut.sum() > 0.5 * anatomy.n_edges
    # A stream of nothing but zeros plus differences that should cancel is rounding, which a norm blows up.
    exact = mostly_cut and not cut_is_run
    # The prompt costs nothing to compute.
    costs = int(lit[1:].sum()), int(changed[1:].sum())
    from_cut = exact or costs[0] < costs[1] or (costs[0] == costs[1] and mostly_cut)
    active = lit if from_cut else changed
    if len(cut) == 1:
        return Reach("cut" if from_cut else "base", active, np.zeros_like(active))
    split = (cut != cut[:1]).any((0, 1))
    varied = _spread(anatomy, kept, (nodes != nodes[:1]).any(0), split, heads_together, within=active)
    return Reach("cut" if from_cut else "base", active, varied)


def _spread(
    anatomy: Anatomy,
    kept: Bool[np.ndarray, "writer reader"],
    seeds: Writers,
    touched: Readers,
    together: bool,
    within: Writers | None = None,
) -> Writers:
    """Writers that a difference gets to over kept edges, from some writers and some readers; only ``within`` some."""
    out: Writers = np.array(seeds)
    kv = np.array([anatomy.kv_of(h) for h in range(anatomy.n_heads)])
    if within is not None:
        out &= within

    def reads(layer: int, slot: str) -> Readers:
        columns, before = anatomy.reader_slice(layer, slot), anatomy.rows_before(layer, slot)
        found: Readers = touched[columns] | kept[:before, columns][out[:before]].any(0)
        return found

    for layer in range(anatomy.n_layers):
        heads = anatomy.head_slice(layer)
        found = reads(layer, "q") | reads(layer, "k")[kv] | reads(layer, "v")[kv]
        out[heads] |= found if within is None else found & within[heads]
        if together:
            out[heads] = out[heads].any() if within is None else out[heads].any() & within[heads]
        rows = _reading(anatomy, layer)
        found = reads(layer, "mlp")
        out[rows] |= found if within is None else found & within[rows]
        if together:
            out[rows] = out[rows].any() if within is None else out[rows].any() & within[rows]
    return out


def _reading(anatomy: Anatomy, layer: int) -> slice:
    """Rows of the MLP of a layer, or of its parts, that read the stream: frozen errors do not."""
    columns, start = anatomy.reader_slice(layer, "mlp"), anatomy.mlp_slice(layer).start
    return slice(start, start + columns.stop - columns.start)


def _needed(
    anatomy: Anatomy, kept: Bool[np.ndarray, "writer reader"], all_node: Writers, together: bool
) -> Writers:
    """Writers whose current value reaches the logits in some patch."""
    out = np.zeros(len(anatomy.writers), dtype=bool)
    wanted = np.zeros(len(anatomy.readers), dtype=bool)
    wanted[-1] = True
    kv = np.array([anatomy.kv_of(h) for h in range(anatomy.n_heads)])
    for layer in reversed(range(anatomy.n_layers)):
        mlps, rows = anatomy.mlp_slice(layer), _reading(anatomy, layer)
        out[mlps] = kept[mlps][:, wanted].any(1)
        if together:
            out[rows] = out[rows].any()
        wanted[anatomy.reader_slice(layer, "mlp")] = out[rows] & ~all_node[rows]
        heads = anatomy.head_slice(layer)
        out[heads] = kept[heads][:, wanted].any(1)
        if together:
            out[heads] = out[heads].any()
        asking = out[heads] & ~all_node[heads]
        wanted[anatomy.reader_slice(layer, "q")] = asking
        for slot in ("k", "v"):
            wanted[anatomy.reader_slice(layer, slot)] = np.bincount(kv, asking, anatomy.n_kv_heads) > 0
    out[0] = kept[0, wanted].any()
    return out
