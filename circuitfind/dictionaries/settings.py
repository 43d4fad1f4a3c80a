"""What a training of transcoders is determined by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from circuitfind.dictionaries.dictionary import Activation
from circuitfind.errors import UsageError, did_you_mean

Penalty = Literal["l1", "tanh"]

DEFAULT_K = 16
DEFAULT_L0 = 16.0
SAE_SITES = ("resid_post", "attn_out", "mlp_out")


@dataclass(frozen=True)
class TranscoderSettings:
    """Site, sizes, sparsity, schedule; inputs and outputs are scaled to unit variance first, so that all of it is free of scale.

    Attributes:
        width: Features of each layer.
        activation: ``topk`` keeps the k largest; ``relu`` pays for what fires; ``jumprelu`` learns a threshold for each feature.
        k: Features that TopK keeps. Of TopK alone; 16 if None.
        l0: Features that should fire on a token: the weight of the penalty is steered until they do. Of ReLU and JumpReLU;
            16 if neither this nor ``l1`` is given.
        l1: A fixed weight of the penalty. Of ReLU alone, in place of ``l0``.
        penalty: What ReLU pays for: ``l1``, activations times decoder norms, or ``tanh`` of those, which lets large ones be.
        skip: A linear map from input to output beside the features; not of SAEs.
        site: Train an SAE of this in place of a transcoder: ``resid_post``, ``attn_out`` or ``mlp_out``.
        steps, batch: Updates, and tokens in each.
        lr: Adam's highest rate; falls with the root of the width if None, as in Gao et al. 2024.
        warmup, decay: Shares of the steps in which the rate comes up from zero and goes down to it.
        seed: Of weights and order.
        bandwidth: Of JumpReLU's pseudo-gradient, in standard deviations of a pre-activation.
        aux: Weight of TopK's auxiliary loss, with which dead features learn what the others leave.
        dead_after: A feature that has not fired for so many tokens is dead while training goes on.
        resample: How often dead features of ReLU and JumpReLU start anew, in the first half of the steps.
        buffer: Tokens that are shuffled together; fewer where they would take more than half a gigabyte.
    """

    width: int
    activation: str = "topk"
    k: int | None = None
    l0: float | None = None
    l1: float | None = None
    penalty: str = "l1"
    skip: bool = False
    steps: int = 2000
    batch: int = 1024
    lr: float | None = None
    warmup: float = 0.05
    decay: float = 0.3
    seed: int = 0
    bandwidth: float = 0.1
    aux: float = 1 / 32
    dead_after: int = 50_000
    resample: int = 3
    buffer: int = 1 << 15
    site: str | None = None

    def __post_init__(self) -> None:
        for name in ("width", "steps", "batch", "dead_after", "buffer"):
            _at_least(name, getattr(self, name), 1)
        _at_least("seed", self.seed, 0)
        _at_least("resample", self.resample, 0)
        _one_of("activation", self.activation, get_args(Activation))
        _one_of("penalty", self.penalty, get_args(Penalty))
        if self.site is not None:
            _one_of("site", self.site, SAE_SITES)
            if self.skip:
                raise UsageError(
                    "an SAE with a skip connection would copy what it reads", hint="leave out --skip"
                )
        for name in ("warmup", "decay"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}", hint="give a share of the steps, from 0 to 1")
        for name in ("l0", "l1", "lr", "bandwidth"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value}", hint="give a number above zero")
        self._check_sparsity()

    def _check_sparsity(self) -> None:
        if self.activation == "topk":
            if self.l0 is not None or self.l1 is not None:
                raise UsageError("topk takes no l0 or l1", hint="give --k, or another --activation")
            _at_least("k", self.kept, 1)
            if self.kept > self.width:
                raise UsageError(
                    f"k is {self.kept}, but there are {self.width} features",
                    hint="give a smaller --k or a larger --width",
                )
            return
        if self.k is not None:
            raise UsageError(f"{self.activation} takes no k", hint="give --l0, or --activation topk")
        if self.l1 is not None and (self.activation == "jumprelu" or self.l0 is not None):
            raise UsageError("l1 is for relu alone, in place of l0", hint="give --l0 without --l1")
        if self.l0 is not None and self.l0 >= self.width:
            raise UsageError(
                f"l0 is {self.l0:g}, but there are {self.width} features",
                hint="give a smaller --l0 or a larger --width",
            )

    @property
    def kept(self) -> int:
        """The k of TopK."""
        return DEFAULT_K if self.k is None else self.k

    @property
    def target(self) -> float | None:
        """The L0 that the penalty is steered to; None where nothing is steered."""
        if self.activation == "topk" or self.l1 is not None:
            return None
        return min(DEFAULT_L0, self.width / 2) if self.l0 is None else self.l0

    @property
    def rate(self) -> float:
        """Adam's highest rate."""
        return 2e-4 * math.sqrt(2**14 / self.width) if self.lr is None else self.lr

    def factor(self, step: int) -> float:
        """The share of the rate at a step: up, level, and down to zero."""
        up = (step + 1) / max(1.0, self.warmup * self.steps)
        down = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, up, down)

    def resamples_at(self, step: int) -> bool:
        """Whether dead features start anew behind a step."""
        if self.activation == "topk" or not self.resample:
            return False
        every = max(1, self.steps // (2 * self.resample))
        return (step + 1) % every == 0 and (step + 1) // every <= self.resample

    def as_dict(self) -> dict[str, Any]:
        """For checkpoints and files; a transcoder has no site, as before there were SAEs."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("site", None)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TranscoderSettings:
        """What ``as_dict`` gave."""
        return cls(**data)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{name} is {value}", hint=f"give a whole number from {least} on")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"there is no {name} '{value}'", hint=did_you_mean(value, known))
