"""Metrics against the same formulas written out in numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from circuitfind.errors import UsageError
from circuitfind.task.metrics import METRICS, AnswerBatch, correct, get_metric
from circuitfind.task.pairs import PromptPair, PromptPairs

VOCAB = 11
ANSWERS = [(3,), (0, 5), (1, 2, 4)]
WRONGS = [(4,), (0 + 7,), (0, 9)]

Array = npt.NDArray[np.float64]


def make(answers: list[tuple[int, ...]], wrongs: list[tuple[int, ...]]) -> AnswerBatch:
    pairs = tuple(
        PromptPair((1,), (2,), answer, wrong, 0, {}, "", "", "", "")
        for answer, wrong in zip(answers, wrongs, strict=True)
    )
    return AnswerBatch.of(PromptPairs(pairs, "corrupted"))


@pytest.fixture
def batch() -> AnswerBatch:
    """Sets of different sizes; token 0, which pads them, is itself a member of some."""
    return make(ANSWERS, WRONGS)


@pytest.fixture
def logits() -> torch.Tensor:
    """Random logits in double precision."""
    return torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


def softmax(row: Array) -> Array:
    e = np.exp(row - row.max())
    return np.asarray(e / e.sum())


def expected(name: str, row: Array, answer: tuple[int, ...], wrong: tuple[int, ...], clean: Array) -> float:
    p = softmax(row)
    right, false = p[list(answer)].sum(), p[list(wrong)].sum()
    values = {
        "logit-diff": np.log(np.exp(row[list(answer)]).sum()) - np.log(np.exp(row[list(wrong)]).sum()),
        "prob-diff": right - false,
        "log-prob": np.log(right),
        "kl": -(softmax(clean) * (np.log(softmax(clean)) - np.log(p))).sum(),
        "accuracy": float(right > false),
    }
    return float(values[name])


@pytest.mark.parametrize("name", METRICS)
def test_against_numpy(name: str, batch: AnswerBatch, logits: torch.Tensor) -> None:
    clean = logits.flip(0)
    got = get_metric(name)(logits, batch, clean.log_softmax(-1))
    rows = zip(logits.numpy(), ANSWERS, WRONGS, clean.numpy(), strict=True)
    np.testing.assert_allclose(got.numpy(), [expected(name, *row) for row in rows], rtol=1e-10)


def test_logit_diff_of_single_tokens_is_the_plain_difference(logits: torch.Tensor) -> None:
    got = get_metric("logit-diff")(logits, make([(3,)] * 3, [(4,)] * 3))
    torch.testing.assert_close(got, logits[:, 3] - logits[:, 4])


def test_kl_of_the_clean_run_is_zero_with_zero_gradient(batch: AnswerBatch, logits: torch.Tensor) -> None:
    metric = get_metric("kl")
    logits.requires_grad_()
    value = metric(logits, batch, logits.detach().log_softmax(-1))
    torch.testing.assert_close(value, torch.zeros_like(value))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient.abs().max() < 1e-12
    assert metric.gradient_at_clean_is_zero
    assert [m.name for m in METRICS.values() if m.gradient_at_clean_is_zero] == ["kl"]


def test_kl_survives_tokens_that_the_clean_run_excludes(batch: AnswerBatch, logits: torch.Tensor) -> None:
    clean = logits.clone()
    clean[:, 0] = -torch.inf
    value = get_metric("kl")(logits, batch, clean.log_softmax(-1))
    assert torch.isfinite(value).all()
    assert (value < 0).all()


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.differentiable])
def test_gradients_are_finite_and_right(name: str, batch: AnswerBatch, logits: torch.Tensor) -> None:
    clean = logits.flip(0).log_softmax(-1)
    metric = get_metric(name)
    assert torch.autograd.gradcheck(lambda z: metric(z, batch, clean), logits.requires_grad_())


def test_accuracy_agrees_with_correct(batch: AnswerBatch, logits: torch.Tensor) -> None:
    got = get_metric("accuracy")(logits, batch)
    assert torch.equal(got.bool(), correct(logits, batch))
    assert not get_metric("accuracy").differentiable


def test_rows_of_a_batch(batch: AnswerBatch, logits: torch.Tensor) -> None:
    metric = get_metric("logit-diff")
    whole = metric(logits, batch)
    torch.testing.assert_close(metric(logits[1:], batch[1:]), whole[1:])
    rows = torch.tensor([2, 0, 2])
    torch.testing.assert_close(metric(logits[rows], batch[rows]), whole[rows])
    torch.testing.assert_close(metric(logits[rows], batch[[2, 0, 2]]), whole[rows])
    assert (len(batch), len(batch[1:])) == (3, 2)


def test_half_precision_is_widened(batch: AnswerBatch, logits: torch.Tensor) -> None:
    got = get_metric("log-prob")(logits.to(torch.bfloat16), batch)
    assert got.dtype == torch.float32


def test_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no metric is named 'logit_diff'") as caught:
        get_metric("logit_diff")
    assert "'logit-diff'" in caught.value.hint


def test_misuse(batch: AnswerBatch, logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="needs the log-probabilities"):
        get_metric("kl")(logits, batch)
    with pytest.raises(ValueError, match="2 rows of logits for 3 prompts"):
        get_metric("log-prob")(logits[:2], batch)
