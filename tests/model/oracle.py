"""A second opinion on every family, in double precision, one edge at a time.

Hugging Face models: torch hooks on the library's own modules. A reader whose edges are replaced runs its own
projection again, on its own normalisation of (stream + sum of (wanted - written)), by calling the library's
modules; everything else is the library's forward pass. Native models: tests/reference.py. Neither shares anything
with the package: no bridge, no gradients, no buffers of differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from circuitfind.task.pairs import PromptPairs
from tests import families, reference

Edge = tuple[str, str]


class Truth(Protocol):
    """A model as its writers and readers, computed the slow way."""

    written: dict[str, Tensor]
    """Writer -> [batch, pos, d_model] in the latest run."""
    stream: Tensor | None
    """What the final norm read in the latest run."""

    def run(
        self,
        tokens: Tensor,
        *,
        replaced: Mapping[Edge, Tensor] | None = None,
        moved: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Logits at every position.

        Args:
            replaced: What one reader sees of one writer in place of what it wrote.
            moved: Added to what a writer writes, for every reader.
        """
        ...


class NativeOracle:
    """tests/reference.py behind the same words; key/value groups are written out as one key/value head a head."""

    def __init__(self, family: str) -> None:
        config = dict(families.NATIVE_CONFIGS[family])
        state = {k: v.double() for k, v in families.native_state(config).items()}
        self.share = config["n_heads"] // (config.pop("n_key_value_heads", None) or config["n_heads"])
        for name in list(state):
            if name.endswith(("_K", "_V")):
                state[name] = state[name].repeat_interleave(self.share, 0)
        self.config, self.state = config, state
        self.written: dict[str, Tensor] = {}
        self.stream: Tensor | None = None

    def _spread(self, edge: Edge) -> list[Edge]:
        writer, reader = edge
        if ".kv" not in reader:
            return [edge]
        layer, rest = reader.split(".kv")
        group, slot = rest.split("<")
        return [(writer, f"{layer}.h{int(group) * self.share + i}<{slot}") for i in range(self.share)]

    def run(
        self,
        tokens: Tensor,
        *,
        replaced: Mapping[Edge, Tensor] | None = None,
        moved: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        seen = {one: x for edge, x in (replaced or {}).items() for one in self._spread(edge)}
        if moved:
            # What a writer writes does not depend on later ones: shift it, one writer at a time, in model order.
            assert len(moved) == 1, "the reference moves one writer"
            (name, shift), *_ = moved.items()
            clean = reference.forward(self.config, self.state, tokens)[1][name]
            seen |= {edge: clean + shift for edge in reference.edges(self.config) if edge[0] == name}
        with torch.no_grad():
            logits, self.written = reference.forward(self.config, self.state, tokens, seen)
        constants = [v for k, v in self.state.items() if k.endswith(".b_O")]
        self.stream = sum(self.written.values()) + sum(constants)
        return logits


@dataclass
class Block:
    """The modules of one block. ``columns[slot]`` are, by head, the outputs of the projection that belong to it."""

    ln1: nn.Module
    projections: dict[str, nn.Module]
    columns: dict[str, list[slice]]
    out: nn.Module
    w_o: Tensor  # [head, d_head, d_model]
    post_attention: nn.Module | None
    ln2: nn.Module
    mlp_end: nn.Module


@dataclass
class HFOracle:
    """One Hugging Face model in double precision (some of its parts compute in single precision all the same)."""

    model: Any
    blocks: list[Block]
    first: nn.Module
    final: nn.Module
    grouped: bool
    written: dict[str, Tensor] = field(default_factory=dict)
    stream: Tensor | None = None  # as the final norm reads it

    def run(
        self,
        tokens: Tensor,
        *,
        replaced: Mapping[Edge, Tensor] | None = None,
        moved: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        self.written, self.stream = {}, None
        with torch.no_grad(), self._hooked(dict(replaced or {}), dict(moved or {})):
            logits: Tensor = self.model(tokens, use_cache=False).logits
        return logits

    def _gap(self, reader: str, replaced: Mapping[Edge, Tensor]) -> Tensor | None:
        parts = [wanted - self.written[w] for (w, r), wanted in replaced.items() if r == reader]
        return sum(parts[1:], parts[0]) if parts else None

    @contextmanager
    def _hooked(self, replaced: dict[Edge, Tensor], moved: dict[str, Tensor]) -> Iterator[None]:
        handles: list[Any] = []

        def write(name: str) -> Callable[..., Any]:
            def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
                self.written[name] = output + moved.get(name, 0)
                return self.written[name]

            return hook

        def start(module: nn.Module, args: Any) -> Any:
            self.written["input"] = args[0] + moved.get("input", 0)
            return (self.written["input"], *args[1:])

        def read(reader: str) -> Callable[..., Any]:
            def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
                if reader == "logits":
                    self.stream = args[0]
                gap = self._gap(reader, replaced)
                return output if gap is None else module.forward(args[0] + gap)

            return hook

        handles.append(self.first.register_forward_pre_hook(start))
        for layer, block in enumerate(self.blocks):
            handles += self._attention(layer, block, replaced, moved)
            handles.append(block.ln2.register_forward_hook(read(f"m{layer}")))
            handles.append(block.mlp_end.register_forward_hook(write(f"m{layer}")))
        handles.append(self.final.register_forward_hook(read("logits")))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _attention(
        self, layer: int, block: Block, replaced: Mapping[Edge, Tensor], moved: Mapping[str, Tensor]
    ) -> list[Any]:
        kept: dict[str, Tensor] = {}
        names = [f"a{layer}.h{h}" for h in range(len(block.w_o))]

        def keep_stream(module: nn.Module, args: Any, output: Tensor) -> None:
            kept["x"] = args[0]

        def project(slots: list[str]) -> Callable[..., Any]:
            def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
                output = output.clone()
                for slot in slots:
                    unit = "kv" if self.grouped and slot != "q" else "h"
                    for head, columns in enumerate(block.columns[slot]):
                        gap = self._gap(f"a{layer}.{unit}{head}<{slot}>", replaced)
                        if gap is not None:
                            again = module.forward(block.ln1.forward(kept["x"] + gap))
                            output[..., columns] = again[..., columns]
                return output

            return hook

        def keep_z(module: nn.Module, args: Any) -> None:
            kept["z"] = args[0].unflatten(-1, block.w_o.shape[:2])

        def end(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            # With a post-norm (an RMSNorm) each head's share of the sum is divided and weighted as the sum is.
            factor: Tensor | float = 1.0
            if block.post_attention is not None:
                raw = args[0]
                eps = block.post_attention.eps
                factor = (1 + block.post_attention.weight) / (
                    raw.square().mean(-1, keepdim=True) + eps
                ).sqrt()
            for head, name in enumerate(names):
                extra = moved.get(name)
                self.written[name] = kept["z"][..., head, :] @ block.w_o[head] * factor
                if extra is not None:
                    self.written[name] = self.written[name] + extra
                    output = output + extra
            return output

        handles = [block.ln1.register_forward_hook(keep_stream), block.out.register_forward_pre_hook(keep_z)]
        by_module: dict[nn.Module, list[str]] = {}
        for slot, module in block.projections.items():
            by_module.setdefault(module, []).append(slot)
        handles += [module.register_forward_hook(project(slots)) for module, slots in by_module.items()]
        handles.append((block.post_attention or block.out).register_forward_hook(end))
        return handles


def bare(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """The family's model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    path = str(families.folder(family))
    found = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=dtype)
    return found.eval()


@cache
def oracle(family: str) -> Truth:
    """The oracle of a family."""
    return _hf_oracle(family) if family in families.HF_FAMILIES else NativeOracle(family)


def _hf_oracle(family: str) -> HFOracle:
    model = bare(family, torch.float64)
    config = model.config
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    d_model = config.hidden_size
    width = getattr(config, "head_dim", None) or d_model // heads

    def spans(count: int, start: int = 0, step: int = width) -> list[slice]:
        return [slice(start + i * step, start + i * step + width) for i in range(count)]

    blocks: list[Block] = []
    if family == "gpt2":
        layers, final = model.transformer.h, model.transformer.ln_f
        for b in layers:
            joint = b.attn.c_attn
            columns = {s: spans(heads, i * d_model) for i, s in enumerate("qkv")}
            w_o = b.attn.c_proj.weight.reshape(heads, width, d_model)
            blocks.append(
                Block(b.ln_1, dict.fromkeys("qkv", joint), columns, b.attn.c_proj, w_o, None, b.ln_2, b.mlp)
            )
    elif family.startswith("neox"):
        layers, final = model.gpt_neox.layers, model.gpt_neox.final_layer_norm
        for b in layers:
            joint = b.attention.query_key_value
            columns = {s: spans(heads, i * width, 3 * width) for i, s in enumerate("qkv")}
            out = b.attention.dense
            w_o = out.weight.T.reshape(heads, width, d_model)
            projections = dict.fromkeys("qkv", joint)
            blocks.append(
                Block(
                    b.input_layernorm, projections, columns, out, w_o, None, b.post_attention_layernorm, b.mlp
                )
            )
    else:
        layers, final = model.model.layers, model.model.norm
        gemma = family == "gemma2"
        for b in layers:
            a = b.self_attn
            projections = {"q": a.q_proj, "k": a.k_proj, "v": a.v_proj}
            columns = {"q": spans(heads), "k": spans(groups), "v": spans(groups)}
            w_o = a.o_proj.weight.T.reshape(heads, width, d_model)
            blocks.append(
                Block(
                    b.input_layernorm,
                    projections,
                    columns,
                    a.o_proj,
                    w_o,
                    b.post_attention_layernorm if gemma else None,
                    b.pre_feedforward_layernorm if gemma else b.post_attention_layernorm,
                    b.post_feedforward_layernorm if gemma else b.mlp,
                )
            )
    return HFOracle(model, blocks, layers[0], final, grouped=groups != heads)


# --- questions that tests ask of it -----------------------------------------------------------------------------


def tokens_of(pairs: PromptPairs, side: str) -> Tensor:
    """Prompts of one length as a tensor; ``side`` is ``clean`` or ``corrupted``."""
    return torch.tensor([getattr(pair, side) for pair in pairs])


def logit_diffs(logits: Tensor, pairs: PromptPairs) -> np.ndarray:
    """logit(answer) - logit(wrong) at each pair's answer position; logits [batch, pos, vocab]."""
    rows = torch.arange(len(pairs))
    at = logits[rows, torch.tensor([p.answer_position for p in pairs])]
    answer, wrong = (torch.tensor([getattr(p, name)[0] for p in pairs]) for name in ("answer", "wrong"))
    return (at[rows, answer] - at[rows, wrong]).double().numpy()


def written(truth: Truth, tokens: Tensor) -> dict[str, Tensor]:
    """What every writer writes in an untouched run."""
    truth.run(tokens)
    return truth.written


def ablated_writes(truth: Truth, pairs: PromptPairs, ablation: str) -> dict[str, Tensor]:
    """What a replaced part carries, by writer; the mean is over both sides of all prompts."""
    clean, corrupted = (written(truth, tokens_of(pairs, side)) for side in ("clean", "corrupted"))
    if ablation == "resample":
        return corrupted
    if ablation == "clean":
        return clean
    if ablation == "zero":
        return {name: torch.zeros_like(x) for name, x in clean.items()}
    both = {name: torch.cat([x, corrupted[name]]) for name, x in clean.items()}
    return {name: x.mean(0).expand(len(pairs), -1, -1) for name, x in both.items()}


def slope(at: Callable[[float], float], step: float = 0.001) -> float:
    """The derivative at 0, from central differences of two widths (error of the fourth order in ``step``)."""
    near, far = at(step) - at(-step), at(2 * step) - at(-2 * step)
    return (8 * near - far) / (12 * step)
