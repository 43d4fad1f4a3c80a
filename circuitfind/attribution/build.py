"""From a prompt to its attribution graph: run, encode, then rows in the order of their influence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from circuitfind.attribution.features import Replacement, replace_mlps
from circuitfind.attribution.frozen import FrozenRun, freeze, pull
from circuitfind.attribution.graph import AttributionGraph, NodeKind, Nodes, sum_gap
from circuitfind.attribution.influence import influence
from circuitfind.attribution.rows import Linear, Targets
from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.errors import RunError, UsageError
from circuitfind.model.bridge import Model

UPDATE = 2048
"""Rows between two estimates of influence."""
TOLERANCE = 1e-3
"""How far a row may be from adding up, relative to the sizes in it; single precision stays far below."""


@dataclass(frozen=True)
class Options:
    """What decides the graph of a prompt.

    Attributes:
        max_features: Features whose inputs are computed; of more the most influential are.
        max_logits: Logit nodes at the most.
        logit_probability: Logits are taken, the likeliest first, until they have so much probability.
    """

    max_features: int = 7500
    max_logits: int = 10
    logit_probability: float = 0.95

    def __post_init__(self) -> None:
        if self.max_features < 1 or self.max_logits < 1:
            raise UsageError(
                f"{min(self.max_features, self.max_logits)} is no number of features or logits to trace",
                hint="give at least 1",
            )
        if not 0 < self.logit_probability <= 1:
            raise UsageError(
                f"a probability of {self.logit_probability} does not exist",
                hint="give a share such as 0.95",
            )


def attribute(
    model: Model,
    prompts: Sequence[Sequence[int]],
    dictionaries: Iterable[Dictionary],
    *,
    texts: Sequence[str] | None = None,
    answers: Sequence[int] | None = None,
    named: str = "",
    options: Options | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[AttributionGraph]:
    """The attribution graph of each prompt.

    Args:
        model: The model.
        prompts: Token ids.
        dictionaries: Its transcoders, one a layer; each is asked for once and let go. A layer without one is all error.
        texts: The prompts as text.
        answers: The position that each is read at; its last token if None.
        named: What the dictionaries are called.
        options: What decides the result.
        progress: Called with rows done and rows to do, of each prompt.

    Raises:
        PromptError: A prompt is empty, too long or has ids that the model does not know.
        UnsupportedError, ModelError, UsageError: The dictionaries do not fit.
        RunError: A graph does not add up, or values are not finite.
    """
    options = options or Options()
    runs = [freeze(model, [p], None if answers is None else [answers[i]]) for i, p in enumerate(prompts)]
    replacements = replace_mlps(runs, dictionaries)
    for number in range(len(runs)):
        one, replacements[number] = replacements[number], Replacement(runs[number])
        text = "" if texts is None else texts[number]
        yield _Builder(one, options, progress).graph(text, named)


class _Builder:
    """The graph of one prompt in the making."""

    def __init__(
        self, replacement: Replacement, options: Options, progress: Callable[[int, int], None] | None
    ) -> None:
        self._replacement, self._options = replacement, options
        self._run = replacement.run
        self._linear = Linear(replacement)
        self._progress = progress or (lambda done, of: None)
        with torch.no_grad():
            self._chosen, self._probability = top_logits(self._run, options)
            self._targets = self._all_targets()
            self._values = self._all_values()
        self._nodes = self._make_nodes()

    def graph(self, text: str, named: str) -> AttributionGraph:
        logits = np.flatnonzero(self._nodes.kind == NodeKind.LOGIT)
        features = np.flatnonzero(self._nodes.kind == NodeKind.FEATURE)
        count = min(self._options.max_features, len(features))
        total = len(logits) + count
        edges = np.zeros((total, self._linear.n_columns), dtype=np.float32)
        bias = np.zeros(total)
        row_nodes = np.full(total, -1)
        done = 0

        def add(nodes: np.ndarray) -> None:
            nonlocal done
            index = self._target_of(nodes)
            order = self._linear.order(self._targets.take(index)).cpu().numpy()
            for start in range(0, len(nodes), self._linear.chunk):
                some = order[start : start + self._linear.chunk]
                found, added = self._linear.rows(self._targets.take(index[some]))
                here = slice(done, done + len(some))
                edges[here], bias[here] = found.cpu().numpy(), added.cpu().numpy()
                row_nodes[here] = nodes[some]
                done += len(some)
                self._progress(done, total)

        add(logits)
        while done < total:
            left = np.setdiff1d(features, row_nodes[:done])
            if total - done < len(left):
                known = influence(
                    edges[:done],
                    row_nodes[:done],
                    self._nodes.layer[row_nodes[:done]],
                    self._weights(),
                )
                left = left[np.argsort(-known[left], kind="stable")][: min(UPDATE, total - done)]
            add(left)
        order = np.argsort(row_nodes)
        if (order != np.arange(total)).any():
            _reorder(edges, order)
        bias, row_nodes = bias[order], row_nodes[order]
        inputs = self._values[self._target_of(row_nodes).cpu()].double().cpu().numpy()
        self._check(edges, bias, inputs)
        return self._finished(text, named, edges, bias, inputs, row_nodes)

    def _weights(self) -> np.ndarray:
        out = np.zeros(len(self._nodes))
        out[self._linear.n_columns :] = self._probability
        return out

    def _check(self, edges: np.ndarray, bias: np.ndarray, inputs: np.ndarray) -> None:
        gap = sum_gap(edges, bias, inputs)
        if not gap <= TOLERANCE:
            raise RunError(
                f"the edges into a feature do not sum to its pre-activation (off by {gap:.2g} of their size)",
                hint="run in single precision on the CPU; if it stays, please report it with the model's name",
            )

    # Targets: features in the order of their columns, then logits.

    def _target_of(self, nodes: np.ndarray) -> Tensor:
        return torch.from_numpy(self._target_index[nodes]).to(self._run.model.device)

    def _all_targets(self) -> Targets:
        active = self._replacement.active
        layers, device = sorted(active), self._run.model.device
        levels = [torch.full((len(active[i]),), i, device=device) for i in layers]
        reads, constants = logit_targets(self._run, self._chosen)
        count = len(self._chosen)
        return Targets(
            layer=torch.cat([*levels, torch.full((count,), self._linear.n_layers, device=device)]),
            position=torch.cat([*(active[i].position for i in layers), self._run.answers.expand(count)]),
            reads=torch.cat([*(active[i].reads for i in layers), reads]),
            constant=torch.cat([*(active[i].constant for i in layers), constants]),
        )

    def _all_values(self) -> Tensor:
        """The pre-activation of each target, straight from the run."""
        active = self._replacement.active
        run = self._run
        centred = _centred(run, self._chosen)
        logits = run.model.final_norm(run.final)[0] @ centred + _centred_bias(run, self._chosen).expand(
            len(self._chosen)
        )
        return torch.cat([*(active[i].activation for i in sorted(active)), logits])

    def _make_nodes(self) -> Nodes:
        linear, run = self._linear, self._run
        n_pos, n_layers = linear.n_pos, linear.n_layers
        positions = np.arange(n_pos)
        tokens = run.tokens[0].cpu().numpy()
        parts = [(NodeKind.TOKEN, -1, positions, tokens, np.ones(n_pos))]
        for layer in range(n_layers):
            one = self._replacement.active.get(layer)
            if one is not None:
                index, value = one.index.cpu().numpy(), one.activation.double().cpu().numpy()
                parts.append((NodeKind.FEATURE, layer, one.position.cpu().numpy(), index, value))
            size = self._replacement.errors[layer].double().norm(dim=1).cpu().numpy()
            parts.append((NodeKind.ERROR, layer, positions, np.full(n_pos, -1), size))
        count = len(self._chosen)
        at = np.full(count, int(run.answers[0]))
        logits = self._values[len(self._values) - count :].double().cpu().numpy()
        parts.append((NodeKind.LOGIT, n_layers, at, self._chosen.cpu().numpy(), logits))
        nodes = Nodes(
            kind=np.concatenate([np.full(len(p[2]), int(p[0])) for p in parts]),
            layer=np.concatenate([np.full(len(p[2]), p[1]) for p in parts]),
            position=np.concatenate([p[2] for p in parts]),
            index=np.concatenate([p[3] for p in parts]),
            value=np.concatenate([p[4] for p in parts]),
        )
        self._target_index = np.full(len(nodes), -1)
        read = (nodes.kind == NodeKind.FEATURE) | (nodes.kind == NodeKind.LOGIT)
        self._target_index[read] = np.arange(int(read.sum()))
        return nodes

    def _finished(
        self,
        text: str,
        named: str,
        edges: np.ndarray,
        bias: np.ndarray,
        inputs: np.ndarray,
        row_nodes: np.ndarray,
    ) -> AttributionGraph:
        model, tokens = self._run.model, tuple(self._run.tokens[0].tolist())
        return AttributionGraph(
            model=model.name,
            dictionaries=named,
            prompt=text,
            tokens=tokens,
            pieces=tuple(piece(model, token) for token in tokens),
            n_layers=self._linear.n_layers,
            nodes=self._nodes,
            probability=self._probability,
            logit_pieces=tuple(piece(model, int(token)) for token in self._chosen),
            row_nodes=row_nodes,
            edges=edges,
            bias=bias,
            inputs=inputs,
            settings=asdict(self._options),
        )


def _reorder(edges: np.ndarray, order: np.ndarray) -> None:
    """Rows into another order in their own memory: there may be gigabytes of them."""
    target = np.empty(len(order), dtype=int)
    target[order] = np.arange(len(order))
    for start in range(len(target)):
        while target[start] != start:
            to = target[start]
            edges[[start, to]] = edges[[to, start]]
            target[[start, to]] = target[[to, start]]


# Logits.


def top_logits(run: FrozenRun, options: Options) -> tuple[Tensor, np.ndarray]:
    """The likeliest next tokens of the one prompt of a run, and their probabilities."""
    probability = run.model.head(run.final)[0].float().softmax(-1)
    values, index = probability.topk(min(options.max_logits, len(probability)))
    before = values.double().cumsum(0) - values
    count = int((before < options.logit_probability).sum())
    return index[:count], values[:count].double().cpu().numpy()


def _centred(run: FrozenRun, tokens: Tensor) -> Tensor:
    """Unembedding columns of some tokens less the mean of all, ``[d_model, token]``."""
    w_u = run.model.w_u
    return w_u[:, tokens] - w_u.mean(1, keepdim=True)


def _centred_bias(run: FrozenRun, tokens: Tensor) -> Tensor:
    b_u = run.model.b_u
    return run.final.new_zeros(1) if b_u is None else b_u[tokens] - b_u.mean()


def logit_targets(run: FrozenRun, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of some centred logits at the final stream, and what biases add behind it."""
    centred = _centred(run, tokens).T
    norm = run.model.final_norm
    constant = _centred_bias(run, tokens).expand(len(tokens))
    if norm.bias is not None and norm.kind != "none":
        constant = constant + centred @ norm.bias
    return pull(norm, centred, run.final_scale), constant


def piece(model: Model, token: int) -> str:
    """The text of a token; its number where there is no tokenizer."""
    if model.tokenizer is None:
        return str(token)
    found = model.tokenizer.piece(token)
    return found.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")
