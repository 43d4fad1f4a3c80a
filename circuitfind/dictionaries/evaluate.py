"""How good dictionaries are: of the activations, and in the model that runs on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitfind.dictionaries.activations import Rows, batched, own_mlp, run_mlps
from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.dictionaries.splice import check_fit, run_spliced
from circuitfind.dictionaries.texts import Tokens
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.model.bridge import Model
from circuitfind.task.metrics import AnswerBatch, Metric, correct
from circuitfind.task.pairs import PromptPairs

HEAD_ROWS = 512
"""Tokens whose logits are computed at once."""


@dataclass(frozen=True)
class Score:
    """A metric's mean under a change, and how much of what the ablation of the same MLPs costs is kept.

    Attributes:
        spliced: With dictionaries for MLPs, without errors.
        zero, mean: With these MLPs' outputs at zero, or at their mean over the data.
        accuracy: Share of prompts that the spliced model answers rightly; None on text.
    """

    spliced: float
    zero: float
    mean: float
    accuracy: float | None = None

    def recovered(self, base: float, floor: float) -> float | None:
        """``(spliced - floor) / (base - floor)``: 1 is the model itself; None where the ablation costs nothing."""
        return (self.spliced - floor) / (base - floor) if abs(base - floor) > 1e-9 else None

    def as_dict(self, base: float) -> dict[str, Any]:
        """For JSON, with what is recovered of either floor."""
        return {
            **asdict(self),
            "recovered_zero": self.recovered(base, self.zero),
            "recovered_mean": self.recovered(base, self.mean),
        }


@dataclass(frozen=True)
class LayerQuality:
    """One layer's dictionary.

    Attributes:
        layer: Which one.
        fvu: Fraction of the variance of what the MLP writes that is not explained; 1 is a constant.
        l0: Features that fire on a token.
        dead: Share of the features that never fire on the data.
        width: Features.
        score: With this layer alone replaced.
    """

    layer: int
    fvu: float
    l0: float
    dead: float
    width: int
    score: Score


@dataclass(frozen=True)
class Quality:
    """All layers' dictionaries on some data.

    Attributes:
        metric: ``cross-entropy`` on text (lower is better); the metric's name on a task.
        tokens, prompts: Of the data.
        base: The model's own.
        accuracy: Share of prompts that it answers rightly; None on text.
        layers: Each alone.
        together: With all of them replaced.
    """

    metric: str
    tokens: int
    prompts: int
    base: float
    accuracy: float | None
    layers: tuple[LayerQuality, ...]
    together: Score

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        layers = [{**asdict(one), "score": one.score.as_dict(self.base)} for one in self.layers]
        return {**asdict(self), "layers": layers, "together": self.together.as_dict(self.base)}

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Titles, and a row for each layer and one for all together."""
        titles = ("layer", "FVU", "L0", "dead", self.metric, "zero", "mean", "recovered")
        extra = () if self.accuracy is None else ("accuracy",)
        rows = [
            (str(q.layer), f"{q.fvu:.3f}", f"{q.l0:.1f}", f"{q.dead:.1%}", *self._cells(q.score))
            for q in self.layers
        ]
        rows.append(("all", "", "", "", *self._cells(self.together)))
        return titles + extra, rows

    def _cells(self, score: Score) -> tuple[str, ...]:
        kept = score.recovered(self.base, score.mean)
        found = (
            f"{score.spliced:.4f}",
            f"{score.zero:.4f}",
            f"{score.mean:.4f}",
            "-" if kept is None else f"{kept:.1%}",
        )
        return found if score.accuracy is None else (*found, f"{score.accuracy:.1%}")


Judge = Callable[[Rows, Tensor], Tensor]
"""(rows, stream) -> sums: [metric, what it is a mean over, right answers]."""


def evaluate_text(
    model: Model, dictionaries: Mapping[int, Dictionary], sequences: Sequence[Tokens]
) -> Quality:
    """Quality on text, by the cross-entropy of the next token in nats.

    Raises:
        UsageError: The dictionaries are of another model, or there is nothing to predict.
        UnsupportedError: The model does not predict the next token.
    """
    if not model.causal or model.n_vocab_out != model.n_vocab:
        raise UnsupportedError(
            f"{model.name} does not predict the next token, so text has no cross-entropy",
            hint="give a task (--task)",
        )
    if not any(len(sequence) > 1 for sequence in sequences):
        raise UsageError(
            "the text is too short: there is no token to predict", hint="give texts of two tokens or more"
        )
    return _evaluate(model, dictionaries, sequences, partial(_cross_entropy, model), "cross-entropy")


def evaluate_task(
    model: Model, dictionaries: Mapping[int, Dictionary], pairs: PromptPairs, metric: Metric
) -> Quality:
    """Quality on a task's clean prompts, by its metric at the answer position.

    Raises:
        UsageError: The dictionaries are of another model, or there are no prompts.
    """
    if not len(pairs):
        raise UsageError("there are no prompts", hint="give a task with at least one usable pair")
    judge = _TaskJudge(model, pairs, metric)
    return _evaluate(model, dictionaries, [pair.clean for pair in pairs], judge, metric.name, task=True)


def _cross_entropy(model: Model, rows: Rows, stream: Tensor) -> Tensor:
    counted = rows.real[:, 1:]
    x, wanted = stream[:, :-1][counted], rows.tokens[:, 1:][counted]
    lost = torch.zeros((), dtype=torch.float64, device=stream.device)
    for at in range(0, len(x), HEAD_ROWS):
        logits = model.head(x[at : at + HEAD_ROWS]).float()
        part = torch.nn.functional.cross_entropy(logits, wanted[at : at + HEAD_ROWS], reduction="none")
        lost += part.double().sum()
    return torch.stack((lost, lost.new_tensor(float(len(x))), lost.new_zeros(())))


class _TaskJudge:
    """The metric at the answer positions; compares with the model's own run where the metric asks for it."""

    def __init__(self, model: Model, pairs: PromptPairs, metric: Metric) -> None:
        self._model, self._metric = model, metric
        self._answers = AnswerBatch.of(pairs, model.device)
        self._positions = [pair.answer_position for pair in pairs]
        self._clean: dict[int, Tensor] = {}

    def __call__(self, rows: Rows, stream: Tensor) -> Tensor:
        at = torch.tensor([self._positions[i] for i in rows.index], device=stream.device)
        logits = self._model.head(stream[torch.arange(len(at), device=stream.device), at])
        reference = None
        if self._metric.needs_clean:
            # The first run of any rows is the model's own.
            reference = self._clean.setdefault(rows.index[0], logits.float().log_softmax(-1))
        answers = self._answers[rows.index]
        values = self._metric(logits, answers, reference).double()
        right = correct(logits, answers).double().sum()
        return torch.stack((values.sum(), values.new_tensor(float(len(values))), right))


def _evaluate(
    model: Model,
    dictionaries: Mapping[int, Dictionary],
    sequences: Sequence[Tokens],
    judge: Judge,
    metric: str,
    *,
    task: bool = False,
) -> Quality:
    check_fit(model, dictionaries)
    dictionaries = {layer: one.to(model.device) for layer, one in sorted(dictionaries.items())}
    longest = max(map(len, sequences))
    if longest > model.n_ctx:
        raise UsageError(
            f"a text has {longest} tokens, but {model.name} reads at most {model.n_ctx}",
            hint="cut the text into shorter ones",
        )
    base, counts = _Counts.of(model, dictionaries, sequences, judge)
    variants = {
        name: torch.zeros(3, dtype=torch.float64, device=model.device)
        for name, _ in _variants(model, dictionaries, counts)
    }
    for rows in batched(sequences, model.device):
        for name, run in _variants(model, dictionaries, counts):
            variants[name] += judge(rows, run(rows))

    def score(which: str) -> Score:
        sums = {how: variants[f"{how} {which}"].tolist() for how in ("spliced", "zero", "mean")}
        spliced, zero, mean = (sums[how][0] / sums[how][1] for how in ("spliced", "zero", "mean"))
        return Score(spliced, zero, mean, sums["spliced"][2] / sums["spliced"][1] if task else None)

    whole = base.tolist()
    return Quality(
        metric=metric,
        tokens=counts.tokens,
        prompts=sum(bool(len(s)) for s in sequences),
        base=whole[0] / whole[1],
        accuracy=whole[2] / whole[1] if task else None,
        layers=tuple(
            LayerQuality(layer, *counts.figures(layer), one.n_features, score(str(layer)))
            for layer, one in dictionaries.items()
        ),
        together=score("all"),
    )


class _Counts:
    """Sums over tokens of a plain run: of what MLPs write, of what dictionaries make of it, of what fires."""

    def __init__(self, model: Model, dictionaries: Mapping[int, Dictionary]) -> None:
        def zeros(size: int = 1) -> Tensor:
            return torch.zeros(size, dtype=torch.float64, device=model.device)

        self.tokens = 0
        self.targets = sorted({at + i for at, one in dictionaries.items() for i in range(one.n_layers_out)})
        self.sums = {layer: zeros(model.d_model) for layer in self.targets}
        self.squares = {layer: zeros() for layer in self.targets}
        self.lost = {layer: zeros() for layer in self.targets}
        self.fired = {layer: zeros(one.n_features) for layer, one in dictionaries.items()}

    @classmethod
    def of(
        cls,
        model: Model,
        dictionaries: Mapping[int, Dictionary],
        sequences: Sequence[Tokens],
        judge: Judge,
    ) -> tuple[Float[Tensor, " three"], _Counts]:
        """The judgement of the model's own run, and the counts."""
        found, base = cls(model, dictionaries), torch.zeros(3, dtype=torch.float64, device=model.device)
        for rows in batched(sequences, model.device):
            base += judge(rows, found.watch(model, dictionaries, rows))
        return base, found

    def watch(self, model: Model, dictionaries: Mapping[int, Dictionary], rows: Rows) -> Tensor:
        """Count one batch; returns the stream of the model's own run."""
        plain, written = own_mlp(model), {}

        def keep(index: int, read: Tensor, normed: Tensor) -> Tensor:
            out = plain(index, read, normed)
            written[index] = out
            return out

        stream = run_mlps(model, rows, keep)
        run = run_spliced(model, rows, dictionaries, errors="recomputed")
        self.tokens += int(rows.real.sum())
        for layer in self.targets:
            y = written[layer][rows.real].double()
            self.sums[layer] += y.sum(0)
            self.squares[layer] += y.square().sum()
            self.lost[layer] += run.errors[layer][rows.real].double().square().sum()
        for layer, features in run.features.items():
            self.fired[layer] += (features[rows.real] > 0).double().sum(0)
        return stream

    def mean(self, layer: int) -> Float[Tensor, " d_model"]:
        """What the MLP writes on average."""
        return self.sums[layer] / self.tokens

    def figures(self, layer: int) -> tuple[float, float, float]:
        """FVU, L0 and the share of dead features."""
        variance = float(self.squares[layer] - self.tokens * self.mean(layer).square().sum())
        fired = self.fired[layer]
        lost = float(self.lost[layer])
        fvu = lost / variance if variance > 0 else float(lost > 0)
        return fvu, float(fired.sum()) / self.tokens, float((fired == 0).double().mean())


def _variants(
    model: Model, dictionaries: Mapping[int, Dictionary], counts: _Counts
) -> Iterator[tuple[str, Callable[[Rows], Tensor]]]:
    """Names and runs: each layer and all of them, spliced without errors or ablated."""
    groups = {str(layer): {layer: one} for layer, one in dictionaries.items()}
    plain = own_mlp(model)
    for name, group in {**groups, "all": dict(dictionaries)}.items():
        targets = {layer + i for layer, one in group.items() for i in range(one.n_layers_out)}

        def spliced(rows: Rows, group: Mapping[int, Dictionary] = group) -> Tensor:
            return run_spliced(model, rows, group).stream

        def ablated(rows: Rows, share: float, targets: set[int] = targets) -> Tensor:
            def mlp(index: int, read: Tensor, normed: Tensor) -> Tensor:
                if index not in targets:
                    return plain(index, read, normed)
                return (share * counts.mean(index)).to(read.dtype).expand_as(read)

            return run_mlps(model, rows, mlp)

        yield f"spliced {name}", spliced
        yield f"zero {name}", partial(ablated, share=0.0)
        yield f"mean {name}", partial(ablated, share=1.0)
