"""Node scores: the indirect effect of each feature and each error, by integrated gradients at one site at a time.

With ``x`` what stands at a site in the clean run and ``x'`` when all of it is ablated, the score of a feature is

    sum over positions of (f - f') * (decoder . g),    g = mean over the path from x' to x of dm/dx

and that of the error ``(e - e') . g`` (Marks et al. 2024: features and error move together). Everything else in the model
is as in the clean run below the site, and computed anew above it. Since ``x = f @ decoder + bias + e``, the scores of a site sum
to ``m(clean) - m(site ablated)`` as the number of steps grows. Positive where the clean value helps the metric.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitfind.sparse.baseline import Baseline
from circuitfind.sparse.passes import gradients, recorded, with_values
from circuitfind.sparse.sites import Point, Site


def path_points(steps: int) -> list[float]:
    """Where gradients are taken, 0 the ablated and 1 the clean end: at midpoints; a single one at the clean run."""
    return [1.0] if steps == 1 else [(k + 0.5) / steps for k in range(steps)]


def clean_gradients(base: Baseline, number: int) -> dict[Point, Float[Tensor, "row pos d_model"]]:
    """The gradient of the metric at every site of the clean run, from one backward pass."""
    held, points = base.batch(number), [site.point for site in base.sites]
    first = points[0][0]
    with torch.enable_grad():
        stream = held.entry[first].detach().requires_grad_()
        final, seen = recorded(base.model, held.place, stream, points, begin=first)
        found = gradients(base.model, base.metric(number, final), [seen[p] for p in points])
    return dict(zip(points, found, strict=True))


def path_gradient(base: Baseline, number: int, site: Site, steps: int) -> Float[Tensor, "row pos d_model"]:
    """The mean gradient at a site between its ablated and its clean value."""
    held, model = base.batch(number), base.model
    clean, cut = held.clean[site.point], held.cut[site.point]
    total = torch.zeros_like(clean)
    for share in path_points(steps):
        with torch.enable_grad():
            x = (cut + share * (clean - cut)).detach().requires_grad_()
            if site.begin == len(model.layers):
                final = held.place.at_answer(x)[:, 0]
            elif site.point[1] == "post":
                final = with_values(model, held.place, x, {}, begin=site.begin)
            else:
                final = with_values(
                    model, held.place, held.entry[site.begin], {site.point: x}, begin=site.begin
                )
            (found,) = gradients(model, base.metric(number, final), [x])
        total += found
    return total / len(path_points(steps))


@torch.no_grad()
def score_nodes(
    base: Baseline, steps: int = 10, *, progress: Callable[[int], None] = lambda rows: None
) -> Float[np.ndarray, " node"]:
    """The score of every node, in the order of ``base.nodes``: a mean over prompts, in units of the metric.

    Args:
        base: Prompts, SAEs, ablation.
        steps: Gradients on the path; 1 takes the one at the clean run alone (attribution patching).
        progress: Called with the prompts that a gradient was taken of.

    Raises:
        UnsupportedError: The metric has no gradient, or none at the clean run.
    """
    base.runs.check_gradient("clean")
    scores = np.zeros(len(base.nodes))
    for number, batch in enumerate(base.runs.batches):
        plain = clean_gradients(base, number) if steps == 1 else {}
        for at, site in enumerate(base.sites):
            grad = plain[site.point] if steps == 1 else path_gradient(base, number, site, steps)
            scores[base.nodes.span(at)] += _of_site(base, number, at, grad)
            progress(len(batch.index) * (1 if steps == 1 else steps))
    return scores / len(base.runs)


def _of_site(
    base: Baseline, number: int, at: int, grad: Float[Tensor, "row pos d_model"]
) -> Float[np.ndarray, " node"]:
    """Scores of the nodes of a site, summed over the prompts of a batch."""
    site, held = base.sites[at], base.batch(number)
    index = torch.from_numpy(base.nodes.held[at]).to(base.model.device)
    x = held.clean[site.point]
    error = (((base.errors_of(site, x) - held.errors[site.point]) * grad).double()).sum()
    features = torch.zeros(len(index), dtype=torch.float64, device=x.device)
    weights = site.decoder[index].T
    step = max(1, base.at_once // x.shape[1])
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        change = site.encode(x[rows])[..., index] - base.cut_features(number, site, index, rows)
        features += (change * (grad[rows] @ weights)).double().sum((0, 1))
    return torch.cat((features, error[None])).cpu().numpy()
