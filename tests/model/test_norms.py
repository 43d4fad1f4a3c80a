"""Norms against torch's own modules and against autograd, in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from circuitfind.errors import UnsupportedError
from circuitfind.model.norms import Norm, read_norm

D = 12


def norms() -> dict[str, Norm]:
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(D, generator=generator, dtype=torch.float64) for _ in range(2))
    return {
        "ln": Norm("ln", weight, bias, 1e-5),
        "ln without bias": Norm("ln", weight, None, 1e-5),
        "ln without parameters": Norm("ln", None, None, 1e-5),
        "ln with a large eps": Norm("ln", weight, bias, 0.5),
        "rms": Norm("rms", weight, None, 1e-6),
        "rms without weight": Norm("rms", None, None, 1e-6),
        "rms with a large eps": Norm("rms", weight, None, 0.5),
        "none": Norm("none"),
    }


every_norm = pytest.mark.parametrize("name", list(norms()))


@every_norm
def test_forward(name: str) -> None:
    norm, x = norms()[name], torch.randn(3, 5, D, dtype=torch.float64) * 2 + 1
    wanted = x
    if norm.kind != "none":
        wanted = x - x.mean(-1, keepdim=True) if norm.kind == "ln" else x
        wanted = wanted / (wanted.pow(2).sum(-1, keepdim=True) / D + norm.eps).sqrt()
        wanted = wanted * (1 if norm.weight is None else norm.weight) + (
            0 if norm.bias is None else norm.bias
        )
    torch.testing.assert_close(norm(x), wanted, atol=1e-12, rtol=0)


@every_norm
def test_pullback_is_autograd(name: str) -> None:
    norm = norms()[name]
    x = (torch.randn(3, 5, D, dtype=torch.float64) * 2 + 1).requires_grad_()
    v = torch.randn(4, 3, 5, D, dtype=torch.float64)
    kept = v.clone()
    found = norm.pullback(x.detach(), v)  # v with one axis more than x, as heads have it
    for row, ours in zip(v, found, strict=True):
        (wanted,) = torch.autograd.grad(norm(x), x, row)
        torch.testing.assert_close(ours, wanted, atol=1e-12, rtol=1e-10)
    assert torch.equal(v, kept), "the gradient that was given was overwritten"


class GemmaNorm(nn.Module):
    """Stores the scale minus one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.randn(D)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * (1 + self.weight)


class Squash(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.tanh()


class MaxNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.abs().amax(-1, keepdim=True) * self.weight


def test_read_norm_recovers_the_kind_and_the_parameters() -> None:
    ln = nn.LayerNorm(D)
    rms = nn.RMSNorm(D, eps=1e-5)
    for module in (ln, rms):
        nn.init.normal_(module.weight)
    nn.init.normal_(ln.bias)
    gemma = GemmaNorm()
    x = torch.randn(7, D) * 3
    for module, kind in ((ln, "ln"), (rms, "rms"), (gemma, "rms"), (nn.Identity(), "none")):
        norm = read_norm(module, D, "here")
        assert norm.kind == kind
        torch.testing.assert_close(norm(x), module(x).detach(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(read_norm(gemma, D, "here").weight, 1 + gemma.weight.detach())


@pytest.mark.parametrize("module", [Squash(), MaxNorm()])
def test_an_unknown_norm_is_refused_by_name(module: nn.Module) -> None:
    with pytest.raises(UnsupportedError, match=f"block 3.*{type(module).__name__}"):
        read_norm(module, D, "block 3")
