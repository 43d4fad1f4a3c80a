"""EAP-IG (activations): edge attribution with the gradient averaged over runs in which one component after the other goes
from its ablated to its clean output (Hanna, Pezzelle and Belinkov 2024, arXiv 2403.17806, as in the authors' repository).

The components are ``input``, and for each layer its attention (all heads) and its MLP. The path of each is the straight
line w(t) = w_ablated + t (w_clean - w_ablated) of what it writes, put into the clean run as a constant: what lies above it
is computed anew, and no gradient flows through it. The gradients at the inputs of all readers, those below the component
too, are added up over components and points and divided by their number. ``steps`` and ``points`` are those of EAP-IG
(methods/eap_ig.py); the authors' code takes ``points=right``: the clean end, never the ablated one.

The ends are what the corrupted run writes under ``resample`` ablation, and means, zeros or learned constants under the
others. Direction makes no difference: the path has both ends.

A pass starts at its component (what is below is the clean run) and goes back through every layer, so the forward passes of
one point come to 1 + n_layers whole ones, and the backward passes to 1 + 2 n_layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction, Level, Positions
from circuitfind.methods.base import Cost
from circuitfind.methods.contraction import ReaderGradients
from circuitfind.methods.eap_ig import path_points, run_between
from circuitfind.methods.gradient_edges import Passes, edge_scores
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.bridge import Model
from circuitfind.model.contrast import Contrast
from circuitfind.model.forward import BlockRun, Trace, run_block
from circuitfind.model.gradients import Part
from circuitfind.model.precision import lowered
from circuitfind.model.runs import Runs


def components(anatomy: Anatomy) -> list[Part | None]:
    """What is interpolated: None is ``input``."""
    kinds = ("attn", "mlp") if anatomy.has_mlp else ("attn",)
    return [None, *((layer, kind) for layer in range(anatomy.n_layers) for kind in kinds)]


def run_with(runs: Runs, contrast: Contrast, part: Part | None, at: float) -> Trace:
    """The base run with one component between its ablated (0) and its clean output (1); keeps what a backward pass needs.

    Blocks below the component are those of the base run, which must have kept the same.
    """
    if part is None:
        return run_between(runs, contrast, at)
    model, base, index = runs.model, contrast.base, part[0]
    model.passes["forward"] += 1
    with torch.no_grad():
        block = _block_with(model, contrast, part, at)
        x = block.mid if block.mlp is None else block.mid + block.mlp
        blocks = [*base.blocks[:index], block]
        for above in range(index + 1, len(model.layers)):
            before = None if contrast.before is None else contrast.before[above]
            x, block = run_block(model, above, x, base.place, before, keep=True)
            blocks.append(block)
    return Trace(base.place, base.input, blocks, x[:, 0])


@lowered
def _block_with(model: Model, contrast: Contrast, part: Part, at: float) -> BlockRun:
    """The block of the interpolated component."""
    (index, kind), place = part, contrast.base.place
    layer, block, last = model.layers[index], contrast.base.blocks[index], index == len(model.layers) - 1
    ablated = contrast.cut.z[index]
    if kind == "mlp":
        assert contrast.cut.mlp is not None
        ablated = contrast.cut.mlp[index]
    end = place.at_answer(ablated) if last else ablated
    if kind == "mlp":
        assert block.mlp is not None
        return replace(block, mlp=torch.lerp(end, block.mlp, at))
    z = torch.lerp(end, block.z, at)
    here = place.at_answer(block.resid) if last else block.resid
    block = replace(block, z=z, mid=here + layer.heads_out(z))
    if layer.mlp is None or model.anatomy.parallel:
        return block
    model.passes["work"] += block.resid.shape[0] * block.resid.shape[1]
    out, saved = layer.mlp.run(layer.mlp_norm(block.mid))
    return replace(block, mlp=out, saved=saved)


@dataclass(frozen=True)
class EAPIGActivations:
    """See the module.

    Attributes:
        steps: Points at which the gradient is taken, for each component.
        points: Where they lie: ``midpoint``, ``left`` or ``right``.
    """

    steps: int = 5
    points: str = "midpoint"

    name: ClassVar[str] = "eap-ig-activations"
    level: ClassVar[Level] = "edge"

    def cost(self, anatomy: Anatomy) -> Cost:
        layers = anatomy.n_layers
        # Above the attention of layer l are its MLP (unless that reads beside it) and layers - 1 - l blocks.
        above = (
            layers if anatomy.has_mlp and not anatomy.parallel else (layers - 1) * (1 + anatomy.has_mlp) / 2
        )
        return Cost(forward=2 + self.steps * (1 + above), backward=self.steps * len(components(anatomy)))

    def passes(self, runs: Runs, *, ablation: Ablation, direction: Direction) -> Passes:
        """A backward pass at each point of the path of each component.

        Raises:
            UnsupportedError: A metric without gradient, or one whose gradient is zero at an end point that is taken.
        """
        path = path_points(self.steps, self.points)
        runs.check_gradient("clean" if 1.0 in path else "corrupted")
        parts = components(runs.model.anatomy)
        weight = 1 / (len(path) * len(parts))

        def collect(
            part: Part | None, runs: Runs, number: int, contrast: Contrast, into: ReaderGradients
        ) -> None:
            dropped = () if part is None else (part,)
            for at in path:
                trace = run_with(runs, contrast, part, at)
                visit = partial(into.add, trace, weight=weight)
                _, behind = runs.backward(number, trace, visit, dropped=dropped)
                into.add_input(behind, weight)

        return Passes(tuple(partial(collect, part) for part in parts))

    def run(
        self, runs: Runs, *, ablation: Ablation, direction: Direction, positions: Positions = "none"
    ) -> Scores:
        """Scores of every edge, the mean over prompts, positive where the clean value helps.

        Raises:
            UnsupportedError: As for ``passes``.
        """
        return edge_scores(runs, self, ablation=ablation, direction=direction, positions=positions)
