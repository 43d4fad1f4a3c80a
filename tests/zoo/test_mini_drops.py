"""Attention layers left out while a model is trained: which, what it does, and that mini is trained without."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from circuitfind.zoo import mini

ROWS = 12


@pytest.fixture(scope="module")
def small() -> tuple[Any, Any, Any]:
    """Settings of a small training, the tokenizer, and one batch of it."""
    import torch
    from transformers import AutoTokenizer

    from circuitfind.zoo.mini.batches import step_batches
    from circuitfind.zoo.mini.train import Settings

    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch before 2.9 has no Muon")
    settings = Settings(steps=3, layers=2, heads=2, width=16, documents_per_step=ROWS, chunks=2, warmup=1)
    tokenizer = AutoTokenizer.from_pretrained(mini.weights_folder(), local_files_only=True)
    (batch,) = step_batches(tokenizer, seed=0, step=0, size=ROWS, chunks=1)
    return settings, tokenizer, batch


def hidden_of(settings: Any, tokenizer: Any, tokens: Any, keep: Any, without: tuple[int, ...] = ()) -> Any:
    """What a fresh model ends with under `keep`, some layers writing nothing of themselves."""
    import torch

    from circuitfind.zoo.mini.drops import attention_kept
    from circuitfind.zoo.mini.train import build_model

    torch.manual_seed(0)
    model = build_model(settings, tokenizer)
    with torch.no_grad():
        for layer, block in enumerate(model.transformer.h):
            block.attn.c_proj.bias.normal_()
            block.attn.c_proj.weight.normal_()
            if layer in without:
                block.attn.c_proj.bias.zero_()
                block.attn.c_proj.weight.zero_()
        with attention_kept(model, keep):
            found = model.transformer(tokens).last_hidden_state
    assert not any(block.attn._forward_hooks for block in model.transformer.h)
    return found


def test_all_dropped_is_attention_ablated(small: tuple[Any, Any, Any]) -> None:
    import torch

    from circuitfind.zoo.mini.drops import step_keeps

    settings, tokenizer, batch = small
    (keep,) = step_keeps([batch], layers=2, share=1.0, seed=0, step=0)
    assert keep is not None
    assert torch.equal(keep, torch.zeros(2, ROWS))
    dropped = hidden_of(settings, tokenizer, batch.tokens, keep)
    assert torch.equal(dropped, hidden_of(settings, tokenizer, batch.tokens, None, without=(0, 1)))
    assert not torch.allclose(dropped, hidden_of(settings, tokenizer, batch.tokens, None))


def test_rows_and_layers_drop_independently(small: tuple[Any, Any, Any]) -> None:
    import torch

    from circuitfind.zoo.mini.drops import step_keeps

    settings, tokenizer, batch = small
    (keep,) = step_keeps([batch], layers=2, share=0.5, seed=0, step=0)
    assert keep is not None
    assert {tuple(column) for column in keep.T.tolist()} == set(itertools.product((0.0, 1.0), repeat=2))
    mixed = hidden_of(settings, tokenizer, batch.tokens, keep)
    for pattern in itertools.product((0.0, 1.0), repeat=2):
        rows = [row for row, column in enumerate(keep.T.tolist()) if tuple(column) == pattern]
        without = tuple(layer for layer, kept in enumerate(pattern) if not kept)
        alone = hidden_of(settings, tokenizer, batch.tokens, None, without)
        assert torch.equal(mixed[rows], alone[rows])


def test_drops_have_their_share_and_their_step(small: tuple[Any, Any, Any]) -> None:
    import torch

    from circuitfind.zoo.mini.drops import step_keeps

    def drawn(step: int, seed: int = 1) -> Any:
        (found,) = step_keeps([small[2]], layers=4, share=0.15, seed=seed, step=step)
        return found

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    assert not torch.equal(drawn(3), drawn(3, seed=2))
    dropped = 1.0 - float(torch.stack([drawn(step) for step in range(400)]).mean())
    assert dropped == pytest.approx(0.15, abs=0.01)  # three standard errors are 0.008


def test_drops_come_up_once_the_behaviours_are_there() -> None:
    from circuitfind.zoo.mini.train import Settings, drop_share

    settings = Settings(drop_attention=0.2, steps=1000, drop_from=0.4, drop_until=0.6)
    found = [drop_share(step, settings) for step in (0, 400, 500, 600, 999)]
    assert found == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.2])
    assert {drop_share(step, Settings(steps=1000)) for step in range(1000)} == {0.0}


def trained(settings: Any, tokenizer: Any, work: Path) -> dict[str, Any]:
    from circuitfind.zoo.mini import train

    return dict(train.train(settings, tokenizer, "cpu", work)[0].state_dict())


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    import torch

    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_training_without_drops_draws_and_hooks_nothing(
    small: tuple[Any, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from circuitfind.zoo.mini import drops, train

    settings, tokenizer, batch = small
    monkeypatch.setattr(train.evaluate, "evaluate", lambda *_, **__: {})
    plain = trained(settings, tokenizer, tmp_path)
    (tmp_path / "checkpoint.pt").unlink()
    state = torch.get_rng_state()
    assert drops.step_keeps([batch, batch], layers=2, share=0.0, seed=1, step=0) == [None, None]
    assert torch.equal(torch.get_rng_state(), state)
    # A training that knows nothing of drops.
    monkeypatch.setattr(train, "step_keeps", lambda batches, **_: [None] * len(batches))
    monkeypatch.setattr(train, "attention_kept", lambda *_: nullcontext())
    assert same(plain, trained(settings, tokenizer, tmp_path))


def test_a_stopped_training_resumes_with_the_same_drops(
    small: tuple[Any, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from circuitfind.zoo.mini import train

    settings = replace(small[0], drop_attention=0.4, drop_from=0.0, drop_until=0.1)
    tokenizer = small[1]
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 1)
    monkeypatch.setattr(train.evaluate, "evaluate", lambda *_, **__: {})
    works = [tmp_path / name for name in ("whole", "stopped", "plain")]
    for work in works:
        work.mkdir()
    whole = trained(settings, tokenizer, works[0])
    real = train.step_keeps

    def stop_at_two(batches: Any, *, step: int, **options: Any) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return real(batches, step=step, **options)

    with monkeypatch.context() as patched:
        patched.setattr(train, "step_keeps", stop_at_two)
        with pytest.raises(KeyboardInterrupt):
            trained(settings, tokenizer, works[1])
    assert same(whole, trained(settings, tokenizer, works[1]))
    assert not same(whole, trained(small[0], tokenizer, works[2]))
