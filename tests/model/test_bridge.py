"""The adapter refuses what it cannot take apart, and leaves nothing behind in the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from circuitfind.errors import UnsupportedError
from circuitfind.methods.eap import EAP
from circuitfind.model.bridge import Model
from circuitfind.model.load import load_model
from circuitfind.model.patched import Patch
from circuitfind.model.runs import Runs
from circuitfind.task.metrics import get_metric
from tests import families
from tests.families import pairs_for


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def again(model: Model) -> Model:
    """Wrap the model's bridge once more, probe included."""
    return Model(model.bridge, name="odd-model", fingerprint="", tokenizer=None, source="test")


def raw(component: Any) -> nn.Module:
    module: nn.Module = component.original_component
    return module


def scale_output(module: nn.Module) -> Any:
    def hook(_: nn.Module, args: Any, output: Any) -> Any:
        return (output[0] * 1.1, *output[1:]) if isinstance(output, tuple) else output * 1.1

    return module.register_forward_hook(hook)


BROKEN: dict[str, tuple[str, Callable[[Any], nn.Module], str]] = {
    "residual scaled between blocks": ("gpt2", lambda b: b.blocks[0], "do not sum to the residual stream"),
    "residual scaled after the last block": (
        "gpt2",
        lambda b: b.blocks[1],
        "do not sum to the final residual stream",
    ),
    "residual scaled in a native model": ("ln", lambda b: b.blocks[1], "do not sum to the residual stream"),
    "query scaled": ("llama", lambda b: raw(b.blocks[1].attn.q), "q of block 1 is not what its weights give"),
    "value scaled": ("llama", lambda b: raw(b.blocks[0].attn.v), "v of block 0 is not what its weights give"),
    "attention output scaled": ("llama", lambda b: raw(b.blocks[0].attn.o), "heads of block 0 do not sum"),
    "stream into the MLP scaled": (
        "rms-gated",
        lambda b: b.blocks[1].ln2.hook_in,
        "reads neither before nor after",
    ),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_what_cannot_be_taken_apart_is_refused_by_name(case: str) -> None:
    family, pick, problem = BROKEN[case]
    model = families.model(family)
    again(model)  # as it is, it can
    handle = scale_output(pick(model.bridge))
    try:
        with pytest.raises(UnsupportedError, match=problem) as caught:
            again(model)
    finally:
        handle.remove()
    assert "odd-model" in caught.value.what
    assert "GPT-2" in caught.value.hint
    again(model)


def test_a_block_without_plain_attention_is_refused() -> None:
    model = load_model(str(families.folder("gpt2")), device="cpu")

    class Other(nn.Module):
        pass

    blocks = list(model.bridge.blocks)
    with pytest.raises(UnsupportedError, match=r"block 1 of .* has no attention with separate q, k, v and o"):
        model._check_blocks([blocks[0], Other()])


def test_a_post_norm_that_mixes_heads_is_refused(tmp_path: Path) -> None:
    """A LayerNorm after attention subtracts the mean of all heads: it cannot be shared out."""
    shutil.copytree(families.folder("gemma2"), tmp_path / "odd")
    model = load_model(str(tmp_path / "odd"), device="cpu")
    block = model.bridge.blocks[0]
    block.ln1_post.original_component.forward = nn.LayerNorm(model.d_model).forward
    with pytest.raises(UnsupportedError, match="norm after attention"):
        again(model)


def hooks_in(model: Model) -> int:
    modules = list(model.bridge.modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "ln"])
def test_nothing_is_left_in_the_model(family: str) -> None:
    """No gradients on the weights, no graph, no hooks; the weights are what they were."""
    model = families.model(family)
    before, hooks = {k: v.clone() for k, v in model.bridge.state_dict().items()}, hooks_in(model)
    runs = Runs(model, pairs_for(model), get_metric("logit-diff"))
    EAP().run(runs, ablation="resample", direction="noising")
    runs.patched([Patch(edges=model.anatomy.edge_mask.copy())])
    assert all(p.grad is None and not p.requires_grad for p in model.bridge.parameters())
    assert not runs.writes(0, "clean").input.requires_grad
    assert hooks_in(model) == hooks
    after = model.bridge.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not model.bridge.training


@pytest.mark.parametrize("family", ["gpt2", "ln"])
def test_hooks_go_when_a_pass_fails(family: str) -> None:
    model = families.model(family)
    hooks, batch = hooks_in(model), torch.tensor([[1, 2, 3]])

    def stop(x: torch.Tensor) -> None:
        raise KeyboardInterrupt

    at = torch.tensor([2])
    wanted = model.logits(batch, at)
    sites = [(site, lambda x: x * 2) for site in model.layers[0].sites.values()]
    with pytest.raises(KeyboardInterrupt), model.hooked([*sites, (model.final_site, stop)]):
        model.logits(batch, at)
    assert hooks_in(model) == hooks
    assert torch.equal(model.logits(batch, at), wanted)


def test_logits_are_read_at_each_rows_own_position() -> None:
    for family in ("gpt2", "ln"):  # one knows logits_to_keep, the other does not
        model = families.model(family)
        tokens = torch.randint(0, model.n_vocab, (3, 5), generator=torch.Generator().manual_seed(0))
        every = model.bridge(tokens, return_type="logits")
        found = model.logits(tokens, torch.tensor([4, 1, 4]))
        torch.testing.assert_close(
            found, torch.stack([every[0, 4], every[1, 1], every[2, 4]]), atol=1e-6, rtol=0
        )


def test_passes_are_counted() -> None:
    model = families.model("ln")
    before = dict(model.passes)
    model.logits(torch.tensor([[1, 2]]), torch.tensor([1]))
    assert {k: model.passes[k] - before[k] for k in before} == {"forward": 1, "backward": 0}
