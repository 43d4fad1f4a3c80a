"""The quality of dictionaries, against a slow plain computation."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from circuitfind.dictionaries import activations
from circuitfind.dictionaries.activations import batched, own_mlp, run_mlps
from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.dictionaries.evaluate import evaluate_task, evaluate_text
from circuitfind.errors import ModelError, UnsupportedError, UsageError
from circuitfind.model.bridge import Model
from circuitfind.task.metrics import get_metric
from tests import families
from tests.dictionaries.synthetic import random_dictionary, random_texts


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A second thread only waits for tensors so small."""
    with families.one_thread():
        yield


def plain_losses(model: Model, items, replaced) -> float:  # type: ignore[no-untyped-def]
    """Mean cross-entropy, text by text and token by token; ``replaced`` maps layers to functions of the MLP's input."""
    own, total, count = own_mlp(model), 0.0, 0
    for item in items:
        (rows,) = batched([item], "cpu")

        def mlp(index: int, read: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
            return replaced[index](normed) if index in replaced else own(index, read, normed)

        logits = model.head(run_mlps(model, rows, mlp))[0]
        for at in range(len(item) - 1):
            total -= float(logits[at].log_softmax(-1)[item[at + 1]])
            count += 1
    return total / count


def inputs(model: Model, items, layer: int):  # type: ignore[no-untyped-def]
    """Inputs and outputs of one MLP, text by text."""
    own, xs, ys = own_mlp(model), [], []
    for item in items:
        (rows,) = batched([item], "cpu")

        def mlp(index: int, read: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
            out = own(index, read, normed)
            if index == layer:
                xs.append(normed[0])
                ys.append(out[0])
            return out

        run_mlps(model, rows, mlp)
    return torch.cat(xs).double(), torch.cat(ys).double()


def test_text_against_a_plain_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "PASS_TOKENS", 30)
    model = families.model("gpt2")
    items = random_texts(model, count=9).items
    # A bias that silences some features for good.
    bias = torch.tensor([-1e3] * 3 + [0.1] * 7)
    found = {layer: random_dictionary(model, layer, b_enc=bias) for layer in (0, 1)}
    quality = evaluate_text(model, found, items)
    assert (quality.metric, quality.accuracy) == ("cross-entropy", None)
    assert quality.tokens == sum(map(len, items))
    assert quality.base == pytest.approx(plain_losses(model, items, {}), rel=1e-5)
    means = {}
    for one in quality.layers:
        x, y = inputs(model, items, one.layer)
        means[one.layer] = mean = y.mean(0).float()
        features = found[one.layer].encode(x.float())
        left = (y - found[one.layer](x.float()).double()).square().sum()
        assert one.fvu == pytest.approx(float(left / (y - y.mean(0)).square().sum()), rel=1e-4)
        assert one.l0 == pytest.approx(float((features > 0).sum(1).double().mean()))
        assert one.dead == pytest.approx(float((features <= 0).all(0).double().mean()))
        assert one.dead >= 0.3
        score, at = one.score, one.layer
        assert score.spliced == pytest.approx(plain_losses(model, items, {at: found[at]}), rel=1e-5)
        assert score.zero == pytest.approx(plain_losses(model, items, {at: torch.zeros_like}), rel=1e-5)
        constant = lambda normed, mean=mean: mean.expand_as(normed)  # noqa: E731
        assert score.mean == pytest.approx(plain_losses(model, items, {at: constant}), rel=1e-5)
        kept = score.recovered(quality.base, score.zero)
        assert kept == pytest.approx((score.spliced - score.zero) / (quality.base - score.zero))
    assert quality.together.spliced == pytest.approx(plain_losses(model, items, found), rel=1e-5)
    zeros = {0: torch.zeros_like, 1: torch.zeros_like}
    assert quality.together.zero == pytest.approx(plain_losses(model, items, zeros), rel=1e-5)
    data = json.loads(json.dumps(quality.as_dict(), allow_nan=False))
    assert data["layers"][1]["score"]["recovered_mean"] is not None
    titles, rows = quality.table()
    assert [row[0] for row in rows] == ["0", "1", "all"]
    assert {len(row) for row in rows} == {len(titles)}


def perfect(model: Model, layer: int) -> Dictionary:
    """A transcoder that is the MLP itself: neurons of a ReLU model are features."""
    mlp = model.layers[layer].mlp
    assert mlp is not None
    assert mlp.b_in is not None
    assert mlp.b_out is not None
    return random_dictionary(model, layer, w_enc=mlp.w_in, b_enc=mlp.b_in, w_dec=mlp.w_out, b_dec=mlp.b_out)


def test_a_perfect_transcoder_loses_nothing() -> None:
    model = families.model("ln-pre")  # its activation is ReLU
    found = {layer: perfect(model, layer) for layer in range(2)}
    pairs = families.pairs_for(model, count=12, lengths=(5, 7), last=False)
    for metric in ("logit-diff", "kl", "prob-diff"):
        quality = evaluate_task(model, found, pairs, get_metric(metric))
        assert quality.prompts == 12
        assert quality.together.spliced == pytest.approx(quality.base, abs=1e-5)
        assert quality.together.accuracy == quality.accuracy
        assert all(one.fvu < 1e-8 for one in quality.layers)
        assert quality.together.recovered(quality.base, quality.together.zero) == pytest.approx(1.0, abs=1e-3)


def test_a_task_is_measured_as_runs_measure_it() -> None:
    model = families.model("llama")
    pairs = families.pairs_for(model, count=10, lengths=(5, 8), last=False)
    quality = evaluate_task(model, {0: random_dictionary(model, 0)}, pairs, get_metric("logit-diff"))
    runs = families.runs_of(model, pairs)
    assert quality.base == pytest.approx(float(runs.clean.mean()), abs=1e-5)
    assert quality.accuracy == pytest.approx(float(runs.answered_rightly.mean()))
    assert quality.together == quality.layers[0].score


def test_what_cannot_be_measured_is_refused() -> None:
    model = families.model("gpt2")
    found = {0: random_dictionary(model, 0)}
    with pytest.raises(UsageError, match="too short"):
        evaluate_text(model, found, [[1], [2]])
    with pytest.raises(UsageError, match="reads at most"):
        evaluate_text(model, found, [[1] * 99])
    other = families.model("bidirectional")
    with pytest.raises(UnsupportedError, match="next token"):
        evaluate_text(other, {0: random_dictionary(other, 0)}, [[1, 2]])
    with pytest.raises(ModelError):
        evaluate_text(families.model("ln"), found, [[1, 2]])
