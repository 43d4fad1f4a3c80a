"""A second opinion: the frozen network of a prompt in double precision, differentiated by autograd.

It runs the library's own modules, takes
patterns from ``output_attentions`` and norm scales from what the norms read, and shares nothing with the package. Sources are
leaves, so a derivative is the direct effect along linear paths. Dictionaries are what was written to the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from tests.dictionaries import files
from tests.dictionaries.files import Weights
from tests.model.oracle import HFOracle, oracle

WIDTH = 9
"""Features of each layer."""


@dataclass(frozen=True)
class Coded:
    """The dictionary of one layer as it was written to a file."""

    weights: Weights
    cross: bool
    jump: bool
    skip: bool
    k: int | None = None

    def act(self, pre: Tensor) -> Tensor:
        if self.k is not None:
            kept = torch.zeros_like(pre)
            for row, values in enumerate(pre):
                best = values.argsort(descending=True)[: self.k]
                kept[row, best] = values[best].clamp_min(0)
            return kept
        if self.jump:
            return torch.where(pre > self["threshold"], pre.clamp_min(0), torch.zeros_like(pre))
        return pre.clamp_min(0)

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.weights[name]).double()


def write_layers(
    folder: Path,
    d_model: int,
    n_layers: int,
    *,
    jump: bool = True,
    skip: bool = True,
    hook: str = "mlp.hook_in",
) -> list[Coded]:
    """A set of circuit-tracer, one transcoder a layer."""
    sets = [files.weights(i, d_in=d_model, d_out=d_model, n_features=WIDTH + i) for i in range(n_layers)]
    kind = ("jumprelu" if jump else "relu") + ("_skip" if skip else "")
    files.write_set(folder, sets, kind=kind, feature_input_hook=hook)
    return [Coded(w, False, jump, skip) for w in sets]


def write_cross(
    folder: Path, d_model: int, n_layers: int, *, jump: bool = True, hook: str = "mlp.hook_in"
) -> list[Coded]:
    """A cross-layer set of circuit-tracer."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for i in range(n_layers):
        w = files.weights(i, d_in=d_model, d_out=d_model, n_features=WIDTH + i)
        shape = (WIDTH + i, n_layers - i, d_model)
        w["dec"] = np.random.default_rng(50 + i).normal(size=shape).astype(np.float32)
        tensors = {
            f"W_enc_{i}": np.ascontiguousarray(w["enc"].T),
            f"b_enc_{i}": w["b_enc"],
            f"b_dec_{i}": w["b_dec"],
        }
        if jump:
            tensors[f"threshold_{i}"] = w["threshold"]
        save_file(tensors, folder / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": w["dec"]}, folder / f"W_dec_{i}.safetensors")
        found.append(Coded(w, True, jump, False))
    files.write_yaml(folder, model_kind="cross_layer_transcoder", feature_input_hook=hook)
    return found


def write_topk(folder: Path, d_model: int, n_layers: int) -> list[Coded]:
    """A folder for each layer in the format of sae-lens."""
    found = []
    for i in range(n_layers):
        w = files.weights(i, d_in=d_model, d_out=d_model, n_features=WIDTH + i)
        hooks = {"hook_name": f"blocks.{i}.mlp.hook_in"}
        files.write_sae_lens(folder / f"layer_{i}", w, "topk_transcoder", layer=i, metadata=hooks)
        found.append(Coded(w, False, False, False, k=3))
    return found


def _frozen(module: nn.Module, clean: Tensor) -> Any:
    """A norm with the scale that it has at ``clean``."""
    weight, bias = module.weight, getattr(module, "bias", None)
    eps = getattr(module, "variance_epsilon", None) or module.eps
    centre = isinstance(module, nn.LayerNorm)
    if "Gemma" in type(module).__name__:
        weight = weight + 1

    def off(x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if centre else x

    scale = (off(clean).square().mean(-1, keepdim=True) + eps).rsqrt().detach()

    def norm(x: Tensor) -> Tensor:
        y = off(x) * scale * weight
        return y if bias is None else y + bias

    return norm


class Frozen:
    """The frozen network of one prompt of a Hugging Face family, and its sources as leaves.

    Attributes:
        pre: Pre-activations of every feature, by layer. ``[pos, feature]``
        features, errors: Leaves, by layer.
        embedded: A leaf.
        stream: What the final norm reads.
        logits: Of every token at the last position, less their mean, before any cap.
    """

    def __init__(self, family: str, coded: list[Coded], tokens: list[int], hook: str = "mlp.hook_in") -> None:
        truth = oracle(family)
        assert isinstance(truth, HFOracle)
        self._truth, self._coded, self._hook = truth, coded, hook
        self._parallel = family == "neox"
        for parameter in truth.model.parameters():
            parameter.requires_grad_(False)
        seen, attentions, self.model_logits = self._record(torch.tensor([tokens]))
        self._patterns = [a[0].double() for a in attentions]
        self._norms = {
            name: _frozen(module, seen[name]) for name, module in self._modules().items() if name in seen
        }
        self.embedded = seen["embedded"].clone().requires_grad_()
        with torch.no_grad():
            self._fill(seen)
        self._forward()

    def _modules(self) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {"final": self._truth.final}
        for i, block in enumerate(self._truth.blocks):
            found |= {f"ln1.{i}": block.ln1, f"ln2.{i}": block.ln2}
            if block.post_attention is not None:
                found[f"post.{i}"] = block.post_attention
        return found

    def _record(self, tokens: Tensor) -> tuple[dict[str, Tensor], Any, Tensor]:
        truth, seen = self._truth, {}

        def keep(name: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                seen[name] = args[0][0]

            return hook

        def ends(name: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                seen[name] = output[0]

            return hook

        def start(module: nn.Module, args: Any) -> None:
            seen["embedded"] = args[0][0]

        handles = [module.register_forward_hook(keep(name)) for name, module in self._modules().items()]
        handles += [b.mlp_end.register_forward_hook(ends(f"mlp.{i}")) for i, b in enumerate(truth.blocks)]
        handles.append(truth.first.register_forward_pre_hook(start))
        with torch.no_grad():
            out = truth.model(tokens, use_cache=False, output_attentions=True)
        for handle in handles:
            handle.remove()
        return seen, out.attentions, out.logits[0, -1]

    def _read(self, layer: int, x: Tensor) -> Tensor:
        return x if self._hook == "hook_resid_mid" else self._norms[f"ln2.{layer}"](x)

    def _fill(self, seen: dict[str, Tensor]) -> None:
        """Features from what the MLPs read in the run, errors from what they wrote."""
        self.features, self.errors = [], []
        for layer, one in enumerate(self._coded):
            x = self._read(layer, seen[f"ln2.{layer}"])
            self.features.append(one.act(x @ one["enc"] + one["b_enc"]))
            self.errors.append(seen[f"mlp.{layer}"] - self._decoded(layer, x))
        for leaf in (*self.features, *self.errors):
            leaf.requires_grad_()

    def _decoded(self, layer: int, x: Tensor) -> Tensor:
        """What dictionaries write at a layer."""
        one = self._coded[layer]
        out = one["b_dec"].expand(len(x), -1)
        if one.skip:
            out = out + x @ one["skip"]
        if not one.cross:
            return out + self.features[layer] @ one["dec"]
        for below in range(layer + 1):
            out = out + self.features[below] @ self._coded[below]["dec"][:, layer - below]
        return out

    def _attention(self, layer: int, x: Tensor) -> Tensor:
        block, pattern = self._truth.blocks[layer], self._patterns[layer]
        out = block.projections["v"](self._norms[f"ln1.{layer}"](x))
        columns = block.columns["v"]
        share = len(pattern) // len(columns)
        z = torch.cat([pattern[h] @ out[:, columns[h // share]] for h in range(len(pattern))], -1)
        written: Tensor = block.out(z)
        return self._norms[f"post.{layer}"](written) if f"post.{layer}" in self._norms else written

    def _forward(self) -> None:
        x, self.pre = self.embedded, []
        for layer, one in enumerate(self._coded):
            mid = x + self._attention(layer, x)
            read = self._read(layer, x if self._parallel else mid)
            self.pre.append(read @ one["enc"] + one["b_enc"])
            x = mid + self._decoded(layer, read) + self.errors[layer]
        self.stream = x
        w_u = self._truth.model.get_output_embeddings().weight
        logits = self._norms["final"](x)[-1] @ w_u.T
        self.logits = logits - logits.mean()

    # The same network with features that answer to what they read.

    def rerun(self, feature: Any) -> tuple[Tensor, list[Tensor]]:
        """Logits as the model gives them, and activations, when ``feature(layer, pre)`` says what each layer's features are."""
        kept = self.features
        x, self.features = self.embedded, []
        for layer, one in enumerate(self._coded):
            mid = x + self._attention(layer, x)
            read = self._read(layer, x if self._parallel else mid)
            self.features.append(feature(layer, read @ one["enc"] + one["b_enc"]))
            x = mid + self._decoded(layer, read) + self.errors[layer]
        found, self.features = self.features, kept
        logits = self._norms["final"](x)[-1] @ self._truth.model.get_output_embeddings().weight.T
        cap = getattr(self._truth.model.config, "final_logit_softcapping", None)
        return (logits if cap is None else cap * torch.tanh(logits / cap)), found

    def total_gradients(self, answer: int, wrong: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Of the logit difference at all features, errors and tokens, through the features that fire."""
        moved = [torch.zeros_like(f).requires_grad_() for f in self.features]
        fires = [(f > 0).double() for f in self.features]
        logits, _ = self.rerun(lambda layer, pre: pre * fires[layer] + moved[layer])
        leaves = [*moved, *self.errors, self.embedded]
        grads = torch.autograd.grad(logits[answer] - logits[wrong], leaves)
        n = len(moved)
        return list(grads[:n]), list(grads[n : 2 * n]), grads[-1]

    def ablated(self, live: list[Tensor], others: list[Tensor], answer: int, wrong: int) -> float:
        """The logit difference when the features that are not ``live`` have the values of ``others``."""
        logits, _ = self.rerun(
            lambda layer, pre: torch.where(live[layer], self._coded[layer].act(pre), others[layer])
        )
        return float((logits[answer] - logits[wrong]).detach())

    # What the package should find.

    def sources(self) -> list[tuple[str, Tensor]]:
        """Names and values of all sources, in no order that the package knows of."""
        found = []
        for layer, (features, errors) in enumerate(zip(self.features, self.errors, strict=True)):
            for at, index in (features > 0).nonzero().tolist():
                found.append((f"t{layer}.f{index}@{at}", features[at, index]))
            found += [(f"t{layer}.err@{at}", errors[at]) for at in range(len(errors))]
        return found + [(f"input@{at}", self.embedded[at]) for at in range(len(self.embedded))]

    def edges(self, target: Tensor) -> dict[str, float]:
        """What each source adds to a target: its derivative times its value."""
        leaves = [*self.features, *self.errors, self.embedded]
        grads = torch.autograd.grad(target, leaves, retain_graph=True, allow_unused=True)
        grads = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)]
        n = len(self.features)
        found = {}
        for layer in range(n):
            values = (grads[layer] * self.features[layer]).detach()
            for at, index in (self.features[layer] > 0).nonzero().tolist():
                found[f"t{layer}.f{index}@{at}"] = float(values[at, index])
            for at, value in enumerate((grads[n + layer] * self.errors[layer]).sum(-1).tolist()):
                found[f"t{layer}.err@{at}"] = value
        for at, value in enumerate((grads[-1] * self.embedded).sum(-1).tolist()):
            found[f"input@{at}"] = value
        return found

    def targets(self, logits: list[int]) -> dict[str, Tensor]:
        """Every active feature, and some logits."""
        found = {
            f"t{layer}.f{index}@{at}": self.pre[layer][at, index]
            for layer, features in enumerate(self.features)
            for at, index in (features > 0).nonzero().tolist()
        }
        return found | {f"logits:{token}": self.logits[token] for token in logits}
