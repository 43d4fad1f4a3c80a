"""Training transcoders: pseudo-gradients, sparsity, known features found again, the same again, going on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from circuitfind.dictionaries import activations
from circuitfind.dictionaries.activations import Buffer, Sample, batched, collect
from circuitfind.dictionaries.dictionary import Dictionary, top
from circuitfind.dictionaries.losses import JumpReLU, Steering, Step, paid, revived
from circuitfind.dictionaries.texts import Sequences, mini_documents, read_text, tokenize
from circuitfind.dictionaries.train import Told, TranscoderSettings, train
from circuitfind.dictionaries.trainee import Trainee
from circuitfind.errors import CircuitfindError, ModelError, UnsupportedError, UsageError
from circuitfind.model.load import load_model
from tests import families
from tests.dictionaries.synthetic import Known, learn, random_texts


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A second thread only waits for tensors so small."""
    with families.one_thread():
        yield


SMALL = TranscoderSettings(width=12, k=3, steps=12, batch=16, buffer=64, seed=3)


# --- pseudo-gradients and penalties -----------------------------------------------------------------------------


def smooth_step(distance: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """What a step is on average when its edge is blurred over the window: its slope is the kernel."""
    return (distance / bandwidth + 0.5).clamp(0, 1)


@pytest.mark.parametrize("bandwidth", [0.1, 0.5])
def test_the_gradient_of_the_step_is_that_of_the_blurred_one(bandwidth: float) -> None:
    generator = torch.Generator().manual_seed(0)
    pre = torch.rand(200, 5, generator=generator, dtype=torch.float64) * 2
    upstream = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    threshold = torch.linspace(0.4, 1.2, 5, dtype=torch.float64).requires_grad_()
    (found,) = torch.autograd.grad((Step.apply(pre, threshold, bandwidth) * upstream).sum(), threshold)
    h = 1e-7
    with torch.no_grad():
        higher = (smooth_step(pre - threshold - h, bandwidth) * upstream).sum(0)
        lower = (smooth_step(pre - threshold + h, bandwidth) * upstream).sum(0)
    assert torch.allclose(found, (higher - lower) / (2 * h), atol=1e-4)
    assert found.abs().min() > 0


def test_the_gradient_of_jumprelu_is_that_of_a_blurred_jump() -> None:
    generator = torch.Generator().manual_seed(1)
    bandwidth = 0.3
    pre = (torch.rand(300, 4, generator=generator, dtype=torch.float64) * 2).requires_grad_()
    threshold = torch.linspace(0.4, 1.2, 4, dtype=torch.float64).requires_grad_()
    upstream = torch.randn(300, 4, generator=generator, dtype=torch.float64)
    out = JumpReLU.apply(pre, threshold, bandwidth)
    by_pre, by_threshold = torch.autograd.grad((out * upstream).sum(), (pre, threshold))
    assert torch.equal(out, torch.where(pre > threshold, pre, 0.0))
    assert torch.equal(by_pre, torch.where(pre > threshold, upstream, 0.0))
    h = 1e-7
    with torch.no_grad():  # the height of the jump is the threshold
        ends = [(smooth_step(pre - threshold - s, bandwidth) * upstream).sum(0) for s in (h, -h)]
        wanted = threshold * (ends[0] - ends[1]) / (2 * h)
    assert torch.allclose(by_threshold, wanted, atol=1e-4)


def test_relu_pays_the_same_however_size_is_shared_out() -> None:
    generator = torch.Generator().manual_seed(0)
    features, w_dec = torch.rand(6, 4, generator=generator), torch.randn(4, 9, generator=generator)
    for penalty in ("l1", "tanh"):
        assert torch.allclose(paid(features, w_dec, penalty), paid(features * 5, w_dec / 5, penalty))
    by_hand = sum(
        float(features[i, j]) * float(w_dec[j].square().sum()) ** 0.5 / 3 for i in range(6) for j in range(4)
    )
    assert float(paid(features, w_dec, "l1")) == pytest.approx(by_hand / 6, rel=1e-5)
    assert float(paid(features * 1e6, w_dec, "tanh")) == pytest.approx(4.0)


def test_topk_keeps_the_largest_that_are_positive() -> None:
    pre = torch.tensor([[3.0, -1.0, 2.0, 1.0], [-1.0, -2.0, 0.5, -3.0]])
    assert top(pre, 2).tolist() == [[3.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.5, 0.0]]


def test_only_dead_features_learn_from_what_is_left() -> None:
    pre = torch.rand(5, 4).requires_grad_()
    w_dec = torch.randn(4, 6).requires_grad_()
    dead = torch.tensor([False, True, False, True])
    by_pre, by_dec = torch.autograd.grad(revived(pre, dead, w_dec, torch.randn(5, 6)), (pre, w_dec))
    assert not by_pre[:, ~dead].any()
    assert not by_dec[~dead].any()
    assert by_dec[dead].abs().min() > 0
    assert float(revived(pre, torch.zeros(4, dtype=torch.bool), w_dec, torch.randn(5, 6))) == 0.0


def test_steering_pushes_towards_the_target() -> None:
    def after(l0: float, *, signed: bool) -> float:
        steering = Steering(10.0, signed=signed)
        for _ in range(50):
            steering.hear(l0)
        return steering.weight

    assert after(20.0, signed=False) > after(10.0, signed=False) > after(5.0, signed=False) == 0.0
    assert after(5.0, signed=True) < 0.0


# --- learning ---------------------------------------------------------------------------------------------------

RECOVERY = {
    "topk": TranscoderSettings(width=32, k=4, steps=600, batch=256, lr=1e-2, dead_after=5000),
    "relu": TranscoderSettings(width=32, activation="relu", l0=5.0, steps=600, batch=256, lr=1e-2),
    "jumprelu": TranscoderSettings(width=32, activation="jumprelu", l0=3.0, steps=600, batch=256, lr=1e-2),
}


@pytest.mark.parametrize("name", RECOVERY)
def test_known_features_are_found_again(name: str) -> None:
    known = Known()
    dictionary = learn(known, RECOVERY[name]).dictionary()
    nearest = (unit_rows(known.write) @ unit_rows(dictionary.w_dec).T).max(1).values
    assert (nearest > 0.95).float().mean() > 0.8, nearest
    sample = known.sample(4096)
    left = (sample.y - dictionary(sample.x)).square().sum() / (sample.y - sample.y.mean(0)).square().sum()
    assert left < 0.15


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-9)


@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
@pytest.mark.parametrize("target", [2.0, 6.0])
def test_l0_comes_to_what_was_asked(activation: str, target: float) -> None:
    known = Known()
    settings = replace(RECOVERY[activation], l0=target, steps=800)
    dictionary = learn(known, settings).dictionary()
    found = float((dictionary.encode(known.sample(4096).x) > 0).float().sum(1).mean())
    assert found == pytest.approx(target, rel=0.2)


def test_a_skip_connection_learns_what_is_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 10, generator=generator) * 3 + 1
    matrix = torch.randn(10, 10, generator=generator)
    sample = Sample(x, x @ matrix + 5)
    lefts = []
    for skip in (False, True):
        settings = TranscoderSettings(width=8, k=1, skip=skip, steps=400, batch=256, lr=1e-2)
        trainee = Trainee(0, settings, sample)
        for step in range(settings.steps):
            begin = step % 16 * 256
            rows = slice(begin, begin + 256)
            trainee.step(Sample(sample.x[rows], sample.y[rows]), step)
        dictionary = trainee.dictionary()
        assert (dictionary.w_skip is not None) == skip
        lefts.append(float((sample.y - dictionary(x)).square().mean() / sample.y.var(0).mean()))
    assert lefts[1] < 0.01 < lefts[0]


def test_dead_features_start_anew() -> None:
    known = Known()
    settings = TranscoderSettings(
        width=16, activation="relu", l0=3.0, steps=100, batch=64, dead_after=64, resample=1
    )
    trainee = Trainee(0, settings, known.sample(4096))
    with torch.no_grad():
        trainee.parameters["b_enc"][:4] = -1e3
    for step in range(49):
        trainee.step(known.sample(64), step)
    assert trainee.dead >= 0.25
    trainee.step(known.sample(64), 49)
    assert trainee.dead == 0.0
    assert (trainee.dictionary().encode(known.sample(512).x)[:, :4] > 0).any(0).sum() >= 3


# --- the same again ---------------------------------------------------------------------------------------------


def weights(dictionary: Dictionary) -> list[torch.Tensor]:
    parts = (dictionary.w_enc, dictionary.b_enc, dictionary.w_dec, dictionary.b_dec)
    return [part for part in (*parts, dictionary.threshold, dictionary.w_skip) if part is not None]


def same(a: dict[int, Dictionary], b: dict[int, Dictionary]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(x, y) for layer in a for x, y in zip(weights(a[layer]), weights(b[layer]), strict=True)
    )


VARIANTS = [
    SMALL,
    replace(SMALL, skip=True),
    replace(SMALL, activation="jumprelu", k=None, l0=3.0, dead_after=32),
    replace(SMALL, activation="relu", k=None, l0=3.0, dead_after=32, penalty="tanh"),
]


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: f"{s.activation}{'-skip' * s.skip}")
def test_a_stopped_training_goes_on_bit_for_bit(settings: TranscoderSettings, tmp_path: Path) -> None:
    model = families.model("gpt2")
    texts = random_texts(model)
    whole = train(model, texts, settings).dictionaries
    assert same(whole, train(model, texts, settings).dictionaries)
    assert not same(whole, train(model, texts, replace(settings, seed=4)).dictionaries)

    class Stop(Exception):
        pass

    checkpoint = tmp_path / "checkpoint.pt"
    count = 0

    original = Buffer.next

    def until(self: Buffer) -> dict[int, Sample]:
        nonlocal count
        count += 1
        if count > 7:
            raise Stop
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Buffer, "next", until)
        with pytest.raises(Stop):
            train(model, texts, settings, checkpoint=checkpoint, every=5)
    told: list[Told] = []
    assert torch.load(checkpoint, weights_only=True)["step"] == 5
    again = train(model, texts, settings, checkpoint=checkpoint, every=5, progress=told.append)
    assert same(whole, again.dictionaries)
    assert told[-1].step == settings.steps
    # A finished one gives its result at once.
    assert same(whole, train(model, texts, settings, checkpoint=checkpoint).dictionaries)


@pytest.mark.parametrize("change", [{"seed": 9}, {"k": 2}, {"lr": 1e-3}])
def test_a_checkpoint_of_other_settings_is_refused(change: dict[str, float], tmp_path: Path) -> None:
    model = families.model("gpt2")
    checkpoint = tmp_path / "checkpoint.pt"
    train(model, random_texts(model), SMALL, checkpoint=checkpoint)
    with pytest.raises(UsageError, match="other settings"):
        train(model, random_texts(model), replace(SMALL, **change), checkpoint=checkpoint)
    with pytest.raises(UsageError, match="other settings"):
        train(model, random_texts(model, seed=1), SMALL, checkpoint=checkpoint)
    with pytest.raises(UsageError, match="other settings"):
        train(model, random_texts(model), SMALL, [0], checkpoint=checkpoint)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    model = families.model("gpt2")
    checkpoint = tmp_path / "checkpoint.pt"
    for content in (b"", b"no checkpoint", b"\x80\x04."):
        checkpoint.write_bytes(content)
        with pytest.raises(UsageError, match="damaged"):
            train(model, random_texts(model), SMALL, checkpoint=checkpoint)


# --- activations and texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "neox", "gemma2", "rms-gated", "bidirectional"])
def test_collected_activations_are_those_of_the_bridge(family: str) -> None:
    model = families.model(family)
    sequences = random_texts(model, count=7).items
    found = collect(model, sequences, range(len(model.layers)))
    order = [i for rows in batched(sequences, "cpu") for i in rows.index]
    for layer, sample in found.items():
        seen: list[torch.Tensor] = []
        for i in order:
            sites = model.layers[layer].sites
            kept: dict[str, torch.Tensor] = {}
            names = ("mlp_in", "mlp_out")
            hooks = [(sites[name], partial(kept.__setitem__, name)) for name in names]
            with torch.no_grad(), model.hooked(hooks):
                model.bridge_logits(torch.tensor([sequences[i]]), torch.tensor([0]))
            seen.append(torch.cat((model.layers[layer].mlp_norm(kept["mlp_in"]), kept["mlp_out"]), -1)[0])
        assert torch.allclose(torch.cat((sample.x, sample.y), 1), torch.cat(seen), atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "neox", "gemma2", "attn-only"])
@pytest.mark.parametrize("site", ["resid_post", "attn_out", "mlp_out"])
def test_collected_sites_are_those_of_the_bridge(family: str, site: str) -> None:
    model = families.model(family)
    if site == "mlp_out" and not model.has_mlp:
        return
    sequences = random_texts(model, count=7).items
    found = collect(model, sequences, range(len(model.layers)), site)
    order = [i for rows in batched(sequences, "cpu") for i in rows.index]
    for layer, sample in found.items():
        behind = [*(above.sites["resid"] for above in model.layers[1:]), model.final_site]
        place = behind[layer] if site == "resid_post" else model.layers[layer].sites[site]
        seen: list[torch.Tensor] = []
        for i in order:
            with torch.no_grad(), model.hooked([(place, seen.append)]):
                model.bridge_logits(torch.tensor([sequences[i]]), torch.tensor([0]))
        assert torch.allclose(sample.x, torch.cat([x[0] for x in seen]), atol=1e-4)
        assert sample.y is sample.x


def test_saes_are_trained_of_a_site() -> None:
    """On what stands there they leave less and less unexplained, and say where they belong."""
    model = families.model("gpt2")
    texts = random_texts(model)
    settings = TranscoderSettings(width=32, k=8, steps=200, batch=64, site="resid_post")
    found = train(model, texts, settings, [1])
    (sae,) = found.dictionaries.values()
    assert (sae.kind, sae.layer, sae.site_in, sae.site_out) == ("sae", 1, "resid_post", "resid_post")
    x = collect(model, texts.items, [1], "resid_post")[1].x
    left = (x - sae(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert left < 0.3
    assert found.facts["settings"]["site"] == "resid_post"
    assert "site" not in TranscoderSettings(width=8, k=2).as_dict(), "old checkpoints keep their key"


@pytest.mark.parametrize("changes", [{"site": "mid"}, {"site": "resid_post", "skip": True}])
def test_sites_that_no_sae_is_trained_of(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        TranscoderSettings(width=8, k=2, **changes)  # type: ignore[arg-type]


def test_batches_hold_every_sequence_once_and_keep_their_size() -> None:
    sequences = [[1] * n for n in (5, 1, 9, 0, 3, 3)]
    rows = list(batched(sequences, "cpu", tokens=10))
    assert sorted(i for r in rows for i in r.index) == [0, 1, 2, 4, 5]
    assert all(r.tokens.numel() <= 10 for r in rows)
    assert [int(n) for r in rows for n in r.real.sum(1)] == [1, 3, 3, 5, 9]


def test_the_buffer_is_shuffled_whole_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.model("gpt2")
    texts = random_texts(model, count=20)
    buffer = Buffer(model, texts, [0], batch=8, tokens=10**6, seed=0)
    held = buffer.portion(0)[0]
    assert len(held.x) == texts.n_tokens
    plain = collect(model, texts.items, [0])[0]
    assert torch.allclose(held.x.sum(0), plain.x.sum(0), atol=1e-3)
    assert not torch.equal(held.x, plain.x)
    batches = torch.cat([buffer.next()[0].y for _ in range(texts.n_tokens // 8)])
    assert torch.equal(batches, held.y[: len(batches)])
    monkeypatch.setattr(activations, "BUFFER_BYTES", 8 * model.d_model * 30)
    assert len(Buffer(model, texts, [0], batch=8, tokens=10**6, seed=0).portion(0)[0].x) < 60


def test_a_list_is_gone_through_again_and_again() -> None:
    texts = Sequences(tuple((i,) for i in range(10)))
    drawn = [item for number in range(5) for item in texts.portion(number, 4, seed=1)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(texts.items)
    assert drawn[:10] != drawn[10:]
    assert texts.portion(3, 4, seed=1) == texts.portion(3, 4, seed=1)
    assert Sequences(((1,), (2,))).key != Sequences(((1, 2),)).key


def test_mini_reads_its_own_corpus() -> None:
    model = load_model("mini", device="cpu")
    texts = mini_documents(model)
    first = texts.portion(0, 500, 0)
    assert first == texts.portion(0, 500, 0) != texts.portion(1, 500, 0)
    assert sum(map(len, first)) >= 500
    end = texts.end
    assert all(row[-1] == end for row in first)
    assert 0.2 < sum(row[0] == end for row in first) / len(first) < 0.8
    assert max(map(len, first)) <= model.n_ctx
    long = tokenize(model, ["Mary and John went to the store. " * 60])
    assert len(long) > 1
    assert max(map(len, long)) <= model.n_ctx


def test_texts_of_files(tmp_path: Path) -> None:
    plain = tmp_path / "a.txt"
    plain.write_text("one\ntwo\n\n\nthree\n", encoding="utf-8")
    assert read_text(plain) == ["one\ntwo", "three"]
    lines = tmp_path / "a.jsonl"
    lines.write_text(json.dumps({"text": "a\n\nb"}) + "\n\n" + json.dumps({"text": "c"}), encoding="utf-8")
    assert read_text(lines) == ["a\n\nb", "c"]
    lines.write_text("{}\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no JSON object with a text"):
        read_text(lines)
    for content in (b"", b" \n\n"):
        plain.write_bytes(content)
        with pytest.raises(UsageError, match="holds no text"):
            read_text(plain)
    plain.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UsageError, match="no UTF-8"):
        read_text(plain)
    with pytest.raises(UsageError, match="cannot be read"):
        read_text(tmp_path / "none.txt")


# --- wrong inputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"width": 8, "k": 9},
        {"width": 8, "k": 0},
        {"width": 8, "l0": 3.0},
        {"width": 8, "activation": "gelu"},
        {"width": 8, "activation": "relu", "k": 2},
        {"width": 8, "activation": "relu", "l0": 2.0, "l1": 1.0},
        {"width": 8, "activation": "jumprelu", "l1": 1.0},
        {"width": 8, "activation": "jumprelu", "l0": 8.0},
        {"width": 8, "activation": "jumprelu", "l0": -1.0},
        {"width": 8, "penalty": "l2"},
        {"width": 8, "k": 2, "steps": 0},
        {"width": 8, "k": 2, "batch": -1},
        {"width": 8, "k": 2, "lr": float("nan")},
        {"width": 8, "k": 2, "warmup": 2.0},
        {"width": 8, "k": 2, "seed": -1},
    ],
    ids=str,
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        TranscoderSettings(**wrong)


def test_settings_survive_json() -> None:
    assert TranscoderSettings.from_dict(json.loads(json.dumps(SMALL.as_dict()))) == SMALL


def test_what_does_not_fit_the_model_is_refused() -> None:
    model = families.model("gpt2")
    texts = random_texts(model)
    cases: list[tuple[type[CircuitfindError], str, object]] = [
        (UsageError, "no layer 2", lambda: train(model, texts, SMALL, [0, 2])),
        (UsageError, "no layer -1", lambda: train(model, texts, SMALL, [-1])),
        (UsageError, "no layer is named", lambda: train(model, texts, SMALL, [])),
        (UsageError, "too short", lambda: train(model, Sequences(((1, 2, 3),)), SMALL)),
        (UsageError, "no text", lambda: Sequences(())),
        (UsageError, "reads at most", lambda: train(model, Sequences(((1,) * 99,)), SMALL)),
        (ModelError, "no tokenizer", lambda: tokenize(model, ["a"])),
    ]
    for kind, text, work in cases:
        with pytest.raises(kind, match=text):
            work()  # type: ignore[operator]
    bare = families.model("attn-only")
    with pytest.raises(UnsupportedError, match=f"{bare.name} has no MLPs"):
        train(bare, random_texts(bare), SMALL)
