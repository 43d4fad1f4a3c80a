"""One adapter over ``TransformerBridge``: the only file that knows its hook names and modules.

Raw weights, no compatibility mode, no split-qkv flags. Hooks are torch forward hooks on the bridge's hook points, which
see the raw ``[batch, pos, head * d_head]`` tensors and are handed exactly what the next module reads; TransformerLens's
own hooks reshape to views whose gradient is lost.

When a model is wrapped, a probe on random tokens proves the identities that everything else rests on: the writers sum to
the residual stream, and heads read it through the norm and the weights that we hold. A model that breaks one is refused by
name; a wrong circuit is never returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitfind.errors import RunError, UnsupportedError
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.norms import Norm, read_norm

if TYPE_CHECKING:
    from circuitfind.task.prompts import Tokenizer

Hook = Callable[[Tensor], "Tensor | None"]
"""Sees the tensor at a site; returns another to put in its place, or None to leave it."""


@dataclass(frozen=True)
class Layer:
    """The sites and weights of one block.

    Sites are hook points: ``resid`` (stream into the block), ``q``, ``k``, ``v`` (projections before any rotation or
    head norm), ``z`` (head values before W_O), ``attn_raw`` and ``attn_out`` (before and after a post-norm; the same
    point without one), ``mlp_in`` (stream into the MLP's norm), ``mlp_out`` (what the MLP adds to the stream).
    """

    sites: dict[str, nn.Module]
    norm: Norm
    post_norm: Norm | None
    w_q: Float[Tensor, "head d_model d_head"]
    w_k: Float[Tensor, "kv_head d_model d_head"]
    w_v: Float[Tensor, "kv_head d_model d_head"]
    w_o: Float[Tensor, "head d_head d_model"]
    b_q: Float[Tensor, "head d_head"] | None
    b_k: Float[Tensor, "kv_head d_head"] | None
    b_v: Float[Tensor, "kv_head d_head"] | None
    b_o: Float[Tensor, " d_model"] | None
    """Added to the stream beside the heads; it belongs to no writer and is never ablated."""

    def project(
        self, slot: str, normed: Float[Tensor, "patch head token d_model"]
    ) -> Float[Tensor, "patch token hd"]:
        """Each head's own normalised input through its own columns of W_Q, W_K or W_V, heads side by side."""
        weight = {"q": self.w_q, "k": self.w_k, "v": self.w_v}[slot]
        bias = {"q": self.b_q, "k": self.b_k, "v": self.b_v}[slot]
        out = torch.matmul(normed, weight)
        if bias is not None:
            out = out + bias[:, None, :]
        return out.transpose(1, 2).flatten(2)

    def scaled(
        self, z: Float[Tensor, "*batch head d_head"], raw: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch head d_head"]:
        """Head values such that ``scaled @ w_o`` is what each head adds to the stream, post-norm included.

        A post-norm (Gemma 2) divides the sum of all heads by its scale; each head's share of the sum is divided alike,
        so the writers still sum to the stream exactly, whatever run they come from.
        """
        return z if self.post_norm is None else z * self.post_norm.inverse_scale(raw)[..., None]


class Model:
    """A transformer as writers and readers.

    Attributes:
        name: As the user gave it.
        anatomy: Its writers and readers.
        tokenizer: None for models that read token ids.
        fingerprint: Hash of the weights.
    """

    def __init__(
        self,
        bridge: Any,
        *,
        name: str,
        fingerprint: str,
        tokenizer: Tokenizer | None,
        source: str,
        n_vocab_out: int | None = None,
    ) -> None:
        self.bridge = bridge
        self.name = name
        self.fingerprint = fingerprint
        self.tokenizer = tokenizer
        self.source = source
        bridge.eval()
        for parameter in bridge.parameters():
            parameter.requires_grad_(False)
        config = bridge.cfg
        self.d_model = int(config.d_model)
        self.d_head = int(config.d_head)
        self.n_ctx = int(config.n_ctx)
        self.n_vocab = int(config.d_vocab)
        self.n_vocab_out = n_vocab_out or self.n_vocab
        self.causal = getattr(config, "attention_dir", "causal") == "causal"
        blocks = list(bridge.blocks)
        n_heads = int(config.n_heads)
        n_kv_heads = int(getattr(config, "n_key_value_heads", None) or n_heads)
        self._check_blocks(blocks)
        self.has_mlp = hasattr(blocks[0], "mlp")
        self.layers = [self._layer(block, i, n_heads, n_kv_heads) for i, block in enumerate(blocks)]
        self.final_site: nn.Module = bridge.ln_final.hook_in
        self.passes = {"forward": 0, "backward": 0}
        parallel = self._probe(n_heads, n_kv_heads)
        self.anatomy = Anatomy(len(blocks), n_heads, n_kv_heads, has_mlp=self.has_mlp, parallel=parallel)

    @property
    def device(self) -> torch.device:
        return torch.device(next(iter(self.bridge.parameters())).device)

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = next(iter(self.bridge.parameters())).dtype
        return found

    # Reading the bridge.

    def _check_blocks(self, blocks: Sequence[Any]) -> None:
        for i, block in enumerate(blocks):
            attention = getattr(block, "attn", None)
            if attention is None or any(not hasattr(attention, part) for part in ("q", "k", "v", "o")):
                raise UnsupportedError(
                    f"block {i} of {self.name} has no attention with separate q, k, v and o",
                    hint="circuits are found in transformers with plain attention (GPT-2, Pythia, Llama, Qwen, Gemma)",
                )

    def _layer(self, block: Any, index: int, n_heads: int, n_kv_heads: int) -> Layer:
        attention = block.attn
        post_attn = getattr(block, "ln1_post", None)
        post_mlp = getattr(block, "ln2_post", None)
        sites = {
            "resid": block.hook_in,
            "q": attention.q.hook_out,
            "k": attention.k.hook_out,
            "v": attention.v.hook_out,
            "z": attention.o.hook_in,
            "attn_raw": attention.hook_out,
            "attn_out": attention.hook_out if post_attn is None else post_attn.hook_out,
        }
        if self.has_mlp:
            sites["mlp_in"] = block.ln2.hook_in
            sites["mlp_out"] = block.mlp.hook_out if post_mlp is None else post_mlp.hook_out
        where = f"{self.name}, block {index}"
        post_norm = None
        w_o = _weight(attention.o).T.reshape(n_heads, self.d_head, self.d_model)
        if post_attn is not None:
            post_norm = read_norm(
                post_attn.original_component, self.d_model, f"{where}, norm after attention"
            )
            if post_norm.kind == "ln" or _bias(attention.o) is not None:
                raise UnsupportedError(
                    f"{where}: the norm after attention mixes heads in a way that cannot be shared out among them",
                    hint="an RMSNorm after a projection without bias (Gemma 2) is supported",
                )
            if post_norm.weight is not None:
                w_o = w_o * post_norm.weight

        def heads(linear: Any, count: int) -> tuple[Tensor, Tensor | None]:
            weight = _weight(linear).T.reshape(self.d_model, count, self.d_head).transpose(0, 1)
            bias = _bias(linear)
            return weight.contiguous(), None if bias is None else bias.reshape(count, self.d_head)

        w_q, b_q = heads(attention.q, n_heads)
        w_k, b_k = heads(attention.k, n_kv_heads)
        w_v, b_v = heads(attention.v, n_kv_heads)
        norm = read_norm(block.ln1.original_component, self.d_model, f"{where}, norm before attention")
        b_o = _bias(attention.o)
        return Layer(sites, norm, post_norm, w_q, w_k, w_v, w_o.contiguous(), b_q, b_k, b_v, b_o)

    # Running.

    @contextmanager
    def hooked(self, hooks: Sequence[tuple[nn.Module, Hook]]) -> Iterator[None]:
        """Attach hooks to sites for the time of the block."""

        def wrap(hook: Hook) -> Callable[..., Tensor | None]:
            return lambda module, args, output: hook(output)

        handles = [site.register_forward_hook(wrap(hook)) for site, hook in hooks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def logits(
        self,
        tokens: Int[Tensor, "batch pos"],
        answer_positions: Int[Tensor, " batch"],
        mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch vocab"]:
        """One forward pass; logits at each row's answer position only.

        Args:
            tokens: Right-padded ids.
            answer_positions: Where each row is read.
            mask: False at padding; None when nothing is padded.
        """
        self.passes["forward"] += 1
        kept, index = torch.unique(answer_positions, return_inverse=True)
        extra: dict[str, Any] = {} if mask is None else {"attention_mask": mask.long()}
        out = self.bridge(tokens, return_type="logits", use_cache=False, logits_to_keep=kept, **extra)
        rows = torch.arange(len(tokens), device=tokens.device)
        # Models that do not know the argument return every position.
        at = index if out.shape[1] == len(kept) else answer_positions
        found: Tensor = out[rows, at]
        return found

    def _probe(self, n_heads: int, n_kv_heads: int) -> bool:
        """Prove the identities on random tokens; returns whether blocks are parallel."""
        length = max(1, min(6, self.n_ctx))
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, self.n_vocab, (2, length), generator=generator).to(self.device)
        seen: dict[tuple[int, str], Tensor] = {}

        def keep(key: tuple[int, str]) -> Hook:
            def hook(tensor: Tensor) -> None:
                seen[key] = tensor

            return hook

        hooks = [
            (site, keep((i, name)))
            for i, layer in enumerate(self.layers)
            for name, site in layer.sites.items()
        ]
        hooks.append((self.final_site, keep((-1, "final"))))
        with torch.no_grad(), self.hooked(hooks):
            self.logits(tokens, torch.full((2,), length - 1, device=self.device))
        broken = next((key for key, tensor in seen.items() if not bool(torch.isfinite(tensor).all())), None)
        if broken is not None:
            raise RunError(
                f"{self.name} gives NaN or infinite values on random tokens, first at {broken[1]} of block {broken[0]}",
                hint="check the model's weights; a damaged or wrongly converted model does this",
            )
        stream = seen[0, "resid"]
        parallel = False
        for i, layer in enumerate(self.layers):
            here = {name: seen[i, name] for name in layer.sites}
            self._same(
                stream, here["resid"], f"the writers below block {i} do not sum to the residual stream"
            )
            normed = layer.norm(here["resid"])[None, None].flatten(2, 3)
            for slot in ("q", "k", "v"):
                wanted = here[slot].flatten(0, 1)[None]
                self._same(
                    layer.project(slot, normed), wanted, f"{slot} of block {i} is not what its weights give"
                )
            z = layer.scaled(here["z"].unflatten(-1, (n_heads, self.d_head)), here["attn_raw"])
            total = torch.einsum("bshe,hed->bsd", z, layer.w_o) + (0 if layer.b_o is None else layer.b_o)
            self._same(total, here["attn_out"], f"the heads of block {i} do not sum to its attention output")
            after = stream + here["attn_out"]
            if self.has_mlp:
                parallel = not _close(here["mlp_in"], after)
                if parallel:
                    self._same(
                        here["mlp_in"],
                        stream,
                        f"the MLP of block {i} reads neither before nor after attention",
                    )
                after = after + here["mlp_out"]
            stream = after
        self._same(stream, seen[-1, "final"], "the writers do not sum to the final residual stream")
        return parallel

    def _same(self, ours: Tensor, theirs: Tensor, problem: str) -> None:
        if not _close(ours, theirs):
            family = getattr(self.bridge.cfg, "architecture", None) or type(self.bridge).__name__
            raise UnsupportedError(
                f"{self.name} ({family}) cannot be taken apart: {problem}",
                hint="known to work: GPT-2, Pythia/NeoX, Llama, Qwen 2 and 3, Gemma 2, and TransformerLens-format models",
            )


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = 1e-4 if a.dtype == torch.float32 else 5e-2
    scale = float(b.abs().max()) if b.numel() else 0.0
    return bool(torch.allclose(a.broadcast_to(b.shape), b, atol=tolerance * max(scale, 1.0), rtol=0))


def _weight(linear: Any) -> Tensor:
    """[out, in], whatever the module stores (GPT-2's Conv1D keeps its transpose)."""
    module = linear.original_component
    weight: Tensor = module.weight.detach()
    return weight.T if type(module).__name__ == "Conv1D" else weight


def _bias(linear: Any) -> Tensor | None:
    bias = getattr(linear.original_component, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None
