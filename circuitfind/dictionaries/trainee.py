"""The transcoder of one layer while it is being trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitfind.dictionaries.activations import Sample
from circuitfind.dictionaries.dictionary import Activation, Dictionary, Site, top
from circuitfind.dictionaries.losses import JumpReLU, Steering, Step, paid, revived
from circuitfind.dictionaries.settings import TranscoderSettings

BETAS = (0.9, 0.999)
STEEP_START = 2.0
"""ReLU and JumpReLU begin with so many times the features that should fire."""


@dataclass(frozen=True)
class Scaling:
    """How activations become ones of mean 0 and variance 1 (over all dimensions together)."""

    x_mean: Float[Tensor, " d_in"]
    y_mean: Float[Tensor, " d_out"]
    x_scale: float
    y_scale: float

    @classmethod
    def of(cls, sample: Sample) -> Scaling:
        x_mean, y_mean = sample.x.mean(0), sample.y.mean(0)

        def scale(values: Tensor, mean: Tensor) -> float:
            return 1 / max(float((values - mean).square().mean().sqrt()), 1e-12)

        return cls(x_mean, y_mean, scale(sample.x, x_mean), scale(sample.y, y_mean))

    def __call__(self, sample: Sample) -> Sample:
        return Sample((sample.x - self.x_mean) * self.x_scale, (sample.y - self.y_mean) * self.y_scale)


class Trainee:
    """Parameters, optimiser and counters of one layer.

    Args:
        layer: Which one.
        settings: Of the training.
        sample: Activations that scales, biases and decoder are begun from.
    """

    def __init__(self, layer: int, settings: TranscoderSettings, sample: Sample) -> None:
        self.layer, self.settings = layer, settings
        self.scaling = Scaling.of(sample)
        self.steering = None
        if settings.target is not None:
            self.steering = Steering(settings.target, signed=settings.activation == "jumprelu")
        self.parameters = self._begin(self.scaling(sample))
        self.idle = torch.zeros(settings.width, dtype=torch.long, device=sample.x.device)
        """Tokens since each feature last fired."""
        self.told: dict[str, float] = {}
        """Unexplained variance and L0, running."""
        # foreach would be no faster here, and fused differs between devices.
        self.optimizer = torch.optim.Adam(list(self.parameters.values()), lr=settings.rate, betas=BETAS)

    def _begin(self, sample: Sample) -> dict[str, Tensor]:
        """Random unit encoder columns; biases or thresholds such that about the right number fires; and for each
        feature, as a unit decoder row, the mean of what the MLP wrote where it fired.
        """
        width, d_in, d_out = self.settings.width, sample.x.shape[1], sample.y.shape[1]
        generator = torch.Generator().manual_seed(self.settings.seed * 1009 + self.layer)
        w_enc = torch.randn(d_in, width, generator=generator).to(sample.x)
        w_enc = w_enc / w_enc.norm(dim=0)
        spare = torch.randn(width, d_out, generator=generator).to(sample.y)
        rows = slice(0, 8192)
        pre = sample.x[rows] @ w_enc
        b_enc = torch.zeros_like(pre[0])
        found = {"w_enc": w_enc, "b_enc": b_enc, "b_dec": sample.y.new_zeros(d_out)}
        target = self.settings.kept if self.settings.target is None else self.settings.target
        if self.settings.activation != "topk":
            rate = min(0.5, STEEP_START * target / width)
            edge = pre.quantile(1 - rate, 0).clamp_min(1e-2) if len(pre) > 1 else b_enc + 0.1
            if self.settings.activation == "jumprelu":
                found["log_threshold"] = edge.log()
            else:
                found["b_enc"] = -edge
        with torch.no_grad():
            fired = self._act(pre + found["b_enc"], found)
        w_dec = fired.T @ sample.y[rows]
        norms = w_dec.norm(dim=1, keepdim=True)
        w_dec = torch.where(norms > 1e-6, w_dec, spare)
        found["w_dec"] = w_dec / w_dec.norm(dim=1, keepdim=True)
        if self.settings.activation != "topk":
            # Rows all of one length, the best one: what fires is not few here, and unit rows overshoot.
            out = fired @ found["w_dec"]
            share = (out * sample.y[rows]).sum() / out.square().sum().clamp_min(1e-12)
            found["w_dec"] *= share.clamp(1e-3, 1.0)
        if self.settings.skip:
            found["w_skip"] = sample.x.new_zeros(d_in, d_out)
        return {name: value.clone().requires_grad_() for name, value in found.items()}

    def _act(self, pre: Tensor, parameters: dict[str, Tensor]) -> Float[Tensor, "row feature"]:
        if self.settings.activation == "topk":
            return top(pre, self.settings.kept)
        if self.settings.activation == "jumprelu":
            found: Tensor = JumpReLU.apply(pre, parameters["log_threshold"].exp(), self.settings.bandwidth)  # type: ignore[no-untyped-call]
            return found
        return pre.clamp_min(0)

    def step(self, sample: Sample, step: int) -> None:
        """One update from a batch."""
        p, scaled = self.parameters, self.scaling(sample)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * self.settings.factor(step)
        with torch.enable_grad():
            pre = scaled.x @ p["w_enc"] + p["b_enc"]
            features = self._act(pre, p)
            out = features @ p["w_dec"] + p["b_dec"]
            if "w_skip" in p:
                out = out + scaled.x @ p["w_skip"]
            left = scaled.y - out
            lost = left.square().mean()  # outputs have variance 1: this is the share that is not explained
            loss = lost + self._penalty(pre, features, left)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(list(p.values()), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            if self.settings.activation == "topk":
                p["w_dec"] /= p["w_dec"].norm(dim=1, keepdim=True).clamp_min(1e-12)
            self._count(features.detach() > 0, float(lost.detach()))
            if self.settings.resamples_at(step):
                self._resample(scaled, left.detach(), step)

    def _penalty(self, pre: Tensor, features: Tensor, left: Tensor) -> Tensor:
        settings, p = self.settings, self.parameters
        if settings.activation == "topk":
            dead = self.idle >= settings.dead_after
            return settings.aux * revived(pre, dead, p["w_dec"], left.detach())
        if settings.activation == "jumprelu":
            fired: Tensor = Step.apply(pre, p["log_threshold"].exp(), settings.bandwidth)  # type: ignore[no-untyped-call]
            assert self.steering is not None
            return self.steering.weight * fired.sum(1).mean() / self.steering.target
        weight = settings.l1 if self.steering is None else self.steering.weight
        assert weight is not None
        return weight * paid(features, p["w_dec"], settings.penalty)

    def _count(self, fired: Bool[Tensor, "row feature"], lost: float) -> None:
        self.idle += len(fired)
        self.idle[fired.any(0)] = 0
        l0 = float(fired.sum()) / len(fired)
        if self.steering is not None:
            self.steering.hear(l0)
        for name, value in (("fvu", lost), ("l0", l0)):
            self.told[name] = value if name not in self.told else 0.98 * self.told[name] + 0.02 * value

    @property
    def dead(self) -> float:
        """Share of the features that have not fired for long."""
        return float((self.idle >= self.settings.dead_after).float().mean())

    def _resample(self, scaled: Sample, left: Float[Tensor, "row d_out"], step: int) -> None:
        """Point dead features at tokens that are explained badly, with what is missing there."""
        dead = (self.idle >= self.settings.dead_after).nonzero()[:, 0]
        weights = left.square().sum(1).cpu()
        if not len(dead) or not float(weights.sum()):
            return
        generator = torch.Generator().manual_seed(self.settings.seed * 1013 + step * 31 + self.layer)
        rows = torch.multinomial(weights, len(dead), replacement=True, generator=generator).to(left.device)
        p, x = self.parameters, scaled.x[rows]
        length = x.norm(dim=1).clamp_min(1e-6)
        p["w_enc"][:, dead] = (x / length[:, None]).T
        row = left[rows] / left[rows].norm(dim=1, keepdim=True).clamp_min(1e-6)
        if self.settings.activation == "jumprelu":
            p["b_enc"][dead] = 0.0
            p["log_threshold"][dead] = (length / 2).log()
        else:
            p["b_enc"][dead] = -length / 2
        p["w_dec"][dead] = row * 0.2
        for name, axis in (("w_enc", 1), ("b_enc", 0), ("w_dec", 0), ("log_threshold", 0)):
            for moment in ("exp_avg", "exp_avg_sq"):
                if name in p:
                    self.optimizer.state[p[name]][moment].index_fill_(axis, dead, 0.0)
        self.idle[dead] = 0

    # Checkpoints and the result.

    def state(self) -> dict[str, Any]:
        """All that a training that goes on needs."""
        return {
            "parameters": {name: value.detach() for name, value in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "scaling": vars(self.scaling),
            "steering": None if self.steering is None else self.steering.state(),
            "idle": self.idle,
            "told": dict(self.told),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """What ``state`` gave."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaling = Scaling(**state["scaling"])
        if self.steering is not None:
            self.steering.restore(state["steering"])
        self.idle = state["idle"].to(self.idle)
        self.told = dict(state["told"])

    def dictionary(self) -> Dictionary:
        """What it has learnt, for activations as the model has them: scales and means go into the weights."""
        p = {name: value.detach().double() for name, value in self.parameters.items()}
        s, x_mean = self.scaling, self.scaling.x_mean.double()
        w_enc, w_dec = p["w_enc"] * s.x_scale, p["w_dec"] / s.y_scale
        b_dec = s.y_mean.double() + p["b_dec"] / s.y_scale
        w_skip = None
        if "w_skip" in p:
            w_skip = p["w_skip"] * (s.x_scale / s.y_scale)
            b_dec = b_dec - x_mean @ w_skip
        threshold = p["log_threshold"].exp().float() if "log_threshold" in p else None
        return Dictionary(
            kind="transcoder" if self.settings.site is None else "sae",
            layer=self.layer,
            site_in=cast(Site, self.settings.site or "mlp_normed"),
            site_out=cast(Site, self.settings.site or "mlp_out"),
            activation=cast(Activation, self.settings.activation),
            w_enc=w_enc.float(),
            b_enc=(p["b_enc"] - x_mean @ w_enc).float(),
            w_dec=w_dec.float(),
            b_dec=b_dec.float(),
            threshold=threshold,
            k=self.settings.kept if self.settings.activation == "topk" else None,
            w_skip=None if w_skip is None else w_skip.float(),
        )


def finite(trainee: Trainee) -> bool:
    """Whether training has not run away."""
    return all(math.isfinite(value) for value in trainee.told.values())
