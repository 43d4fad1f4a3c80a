"""One adapter over ``TransformerBridge``: the only file that runs the bridge.

The bridge loads a model and says what its parts are; the passes that the methods need run on the weights themselves
(model/forward.py), since every part of them must start at any layer and position, for rows of different patches, and be
pulled back under a method's rules. So that this is never another model, a probe on random tokens proves when a model is
wrapped that each part - what writers write, what heads read, attention, MLPs, the logits - is what the bridge's own
forward pass gives. A model that fails is refused by name; a wrong circuit is never returned.

Raw weights, no compatibility mode, no split-qkv flags. Hooks are torch forward hooks on the bridge's hook points, which
see the raw ``[batch, pos, head * d_head]`` tensors; TransformerLens's own hooks reshape to views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitfind.config import Precision
from circuitfind.errors import RunError, UnsupportedError
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.attention import read_rotaries
from circuitfind.model.layer import Layer, linear, read_layers
from circuitfind.model.norms import read_norm
from circuitfind.model.parts import Parts
from circuitfind.model.placement import carried
from circuitfind.model.precision import full
from circuitfind.model.shapes import LONGEST
from circuitfind.model.shelves import End

if TYPE_CHECKING:
    from circuitfind.model.checkpoint import Placement
    from circuitfind.task.prompts import Tokenizer

Hook = Callable[[Tensor], "Tensor | None"]
"""Sees the tensor at a site; returns another to put in its place, or None to leave it."""

FAMILIES = (
    "known to work: GPT-2, Pythia/NeoX, Llama, Qwen 2 and 3, Gemma 2, and TransformerLens-format models"
)


class _Embedded(Exception):
    def __init__(self, stream: Tensor) -> None:
        super().__init__()
        self.stream = stream


class Model:
    """A transformer as writers and readers.

    Attributes:
        name: As the user gave it.
        anatomy: Its writers and readers.
        layers: Its blocks as weights.
        tokenizer: None for models that read token ids.
        fingerprint: Hash of the weights.
        passes: Forward and backward passes run so far, and the ``work`` in them: tokens times layers.
        precision: What passes run in; set by ``precision.using``.
        placement: Where the weights lie, where they are not all on one device.
        loaded_as: The name that ``load_model`` gives the same weights for; None where they were changed since.
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
        placement: Placement | None = None,
    ) -> None:
        self.bridge = bridge
        self.placement = placement
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
        self.n_ctx = min(int(config.n_ctx), LONGEST)
        self.n_vocab = int(config.d_vocab)
        self.n_vocab_out = n_vocab_out or self.n_vocab
        self.causal = getattr(config, "attention_dir", "causal") == "causal"
        self.passes = {"forward": 0, "backward": 0, "work": 0}
        self.precision: Precision = "fp32"
        self.loaded_as: str | None = None
        blocks = list(bridge.blocks)
        self._check_blocks(blocks)
        if placement is not None:
            placement.settle(bridge)
        self.has_mlp = hasattr(blocks[0], "mlp")
        rotaries = read_rotaries(
            [m for m in bridge.modules() if type(m).__name__.endswith("RotaryEmbedding")],
            self.home,
            self.n_ctx,
        )
        rotaries = rotaries if placement is None else placement.rotary(rotaries)
        candidates = []
        for i, block in enumerate(blocks):
            with self._present(block):
                found = read_layers(block, config, rotaries, f"{name}, block {i}")
                candidates.append(found if placement is None else placement.placed(i, block, found))
        self.layers = [found[0] for found in candidates]
        self.final_site: nn.Module = bridge.ln_final.hook_in
        self.final_norm = read_norm(bridge.ln_final.original_component, self.d_model, f"{name}, final norm")
        with self._present(bridge.unembed):
            w_u, self.b_u = linear(bridge.unembed)
            self._unembedding: Tensor | End = w_u
            if placement is not None:
                self._unembedding, self.b_u = placement.end(bridge.unembed, w_u, self.b_u)
                self.final_norm = carried(self.final_norm, placement.device)
                placement.finish()
        hf_config = getattr(getattr(bridge, "original_model", None), "config", None)
        caps = (
            getattr(config, "output_logits_soft_cap", None),
            getattr(hf_config, "final_logit_softcapping", None),
        )
        self.logit_cap = next((float(cap) for cap in caps if cap and cap > 0), None)
        n_heads = int(config.n_heads)
        n_kv_heads = int(getattr(config, "n_key_value_heads", None) or n_heads)
        parallel = _Probe(self, candidates).run()
        self.anatomy = Anatomy(len(blocks), n_heads, n_kv_heads, has_mlp=self.has_mlp, parallel=parallel)

    @property
    def device(self) -> torch.device:
        """Where passes run."""
        return self.home if self.placement is None else self.placement.device

    @property
    def home(self) -> torch.device:
        """Where the bridge runs, and prompts are embedded."""
        if self.placement is not None:
            return self.placement.home
        return torch.device(next(iter(self.bridge.parameters())).device)

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = next(iter(self.bridge.parameters())).dtype
        return found

    @property
    def w_u(self) -> Float[Tensor, "d_model vocab"]:
        """The unembedding, brought where passes run if it lies elsewhere."""
        found = self._unembedding
        return found if isinstance(found, Tensor) else found.whole()

    @w_u.setter
    def w_u(self, value: Float[Tensor, "d_model vocab"]) -> None:
        self._unembedding = value

    def learning(self) -> AbstractContextManager[None]:
        """A block of passes whose graph autograd keeps: it then keeps no weights that lie elsewhere."""
        return nullcontext() if self.placement is None else self.placement.pager.learning()

    def _present(self, module: nn.Module) -> AbstractContextManager[None]:
        """A block in which the bridge's module has its weights."""
        return nullcontext() if self.placement is None else self.placement.present(module)

    @property
    def d_mlp(self) -> int:
        """Neurons in each MLP; 0 without MLPs."""
        mlp = self.layers[0].mlp
        return 0 if mlp is None else mlp.d_mlp

    def _check_blocks(self, blocks: Sequence[Any]) -> None:
        for i, block in enumerate(blocks):
            attention = getattr(block, "attn", None)
            if attention is None or any(not hasattr(attention, part) for part in ("q", "k", "v", "o")):
                raise UnsupportedError(
                    f"block {i} of {self.name} has no attention with separate q, k, v and o",
                    hint="circuits are found in transformers with plain attention (GPT-2, Pythia, Llama, Qwen, Gemma)",
                )

    def with_parts(self, parts: Mapping[int, Parts]) -> Model:
        """The same model with some MLPs split; weights and counters are shared."""
        found = copy(self)
        found.layers = [layer.with_parts(parts.get(i)) for i, layer in enumerate(self.layers)]
        names = [
            tuple(str(node) for node in parts[i].nodes) if i in parts else () for i in range(len(self.layers))
        ]
        live = any(one.live for one in parts.values())
        found.anatomy = replace(self.anatomy, parts=tuple(names) if parts else (), live_errors=live)
        return found

    # The two ends of a pass.

    def embed(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """The stream into the first block: what the writer ``input`` writes."""

        def stop(stream: Tensor) -> None:
            raise _Embedded(stream)

        try:
            with torch.no_grad(), self.hooked([(self.layers[0].sites["resid"], stop)]):
                self.bridge(tokens.to(self.home), return_type="logits", use_cache=False)
        except _Embedded as end:
            return end.stream.to(self.device)
        raise AssertionError("the pass never reached the first block")

    def head(
        self, final: Float[Tensor, "*row d_model"], tokens: Int[Tensor, " vocab"] | None = None
    ) -> Float[Tensor, "*row vocab"]:
        """Logits from the stream that the final norm reads; of some tokens only where they are given."""
        return self.unembed(self.final_norm(final), tokens)

    @full
    def unembed(
        self, normed: Float[Tensor, "*row d_model"], tokens: Int[Tensor, " vocab"] | None = None
    ) -> Float[Tensor, "*row vocab"]:
        """Logits from the normalised stream; of some tokens only where they are given."""
        out = normed @ (self.w_u if tokens is None else self.w_u_of(tokens))
        if self.b_u is not None:
            out = out + (self.b_u if tokens is None else self.b_u[tokens])
        return out if self.logit_cap is None else self.logit_cap * torch.tanh(out / self.logit_cap)

    def w_u_of(self, tokens: Int[Tensor, " vocab"]) -> Float[Tensor, "d_model vocab"]:
        """The unembedding of some tokens; only theirs is brought where it lies elsewhere."""
        found = self._unembedding
        return found.T[tokens].T if isinstance(found, Tensor) else found.some(tokens)

    # The bridge's own pass: for the probe, and for tests.

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

    def bridge_logits(
        self,
        tokens: Int[Tensor, "batch pos"],
        answer_positions: Int[Tensor, " batch"],
        mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch vocab"]:
        """The bridge's logits at each row's answer position.

        Args:
            tokens: Right-padded ids.
            answer_positions: Where each row is read.
            mask: False at padding; None when nothing is padded.
        """
        home = self.home
        extra: dict[str, Any] = {} if mask is None else {"attention_mask": mask.long().to(home)}
        running: AbstractContextManager[None] = nullcontext()
        if self.placement is not None:
            running = self.placement.running(list(self.bridge.blocks), self.bridge.unembed)
        with running:
            out = self.bridge(tokens.to(home), return_type="logits", use_cache=False, **extra)
        rows = torch.arange(len(tokens), device=home)
        found: Tensor = out[rows, answer_positions.to(home)].to(self.device)
        return found


class _Probe:
    """One pass of the bridge on random tokens, against what our own parts make of its inputs."""

    def __init__(self, model: Model, candidates: list[list[Layer]]) -> None:
        self._model = model
        self._candidates = candidates

    def run(self) -> bool:
        """Settle each layer's attention and prove every part; returns whether blocks are parallel.

        Raises:
            RunError: The model gives NaN on random tokens.
            UnsupportedError: A part is not what its weights give.
        """
        model = self._model
        seen = self._record()
        stream = seen[0, "resid"]
        parallel = False
        for i in range(len(model.layers)):
            here = {name: seen[i, name] for name in model.layers[i].sites}
            self._same(
                stream, here["resid"], f"the writers below block {i} do not sum to the residual stream"
            )
            self._attention(i, here)
            after = stream + here["attn_out"]
            if model.has_mlp:
                parallel = not _close(here["mlp_in"], after)
                if parallel:
                    self._same(
                        here["mlp_in"],
                        stream,
                        f"the MLP of block {i} reads neither before nor after attention",
                    )
                layer = model.layers[i]
                assert layer.mlp is not None
                out = layer.mlp(layer.mlp_norm(here["mlp_in"]))
                self._same(out, here["mlp_out"], f"the MLP of block {i} is not what its weights give")
                after = after + here["mlp_out"]
            stream = after
        self._same(stream, seen[-1, "final"], "the writers do not sum to the final residual stream")
        logits = model.head(stream[:, -1])
        self._same(
            logits, seen[-1, "logits"], "the logits are not what the final norm and the unembedding give"
        )
        return parallel

    def _record(self) -> dict[tuple[int, str], Tensor]:
        model = self._model
        length = max(1, min(9, model.n_ctx))
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, model.n_vocab, (2, length), generator=generator).to(model.device)
        seen: dict[tuple[int, str], Tensor] = {}

        def keep(key: tuple[int, str]) -> Hook:
            def hook(tensor: Tensor) -> None:
                seen[key] = tensor.to(model.device)

            return hook

        hooks = [
            (site, keep((i, name)))
            for i, layer in enumerate(model.layers)
            for name, site in layer.sites.items()
        ]
        hooks.append((model.final_site, keep((-1, "final"))))
        with torch.no_grad(), model.hooked(hooks):
            last = torch.full((2,), length - 1, device=model.device)
            seen[-1, "logits"] = model.bridge_logits(tokens, last)
        broken = next((key for key, tensor in seen.items() if not bool(torch.isfinite(tensor).all())), None)
        if broken is not None:
            where = f"{broken[1]} of block {broken[0]}" if broken[0] >= 0 else f"the {broken[1]}"
            raise RunError(
                f"{model.name} gives NaN or infinite values on random tokens, first at {where}",
                hint="check the model's weights; a damaged or wrongly converted model does this",
            )
        return seen

    def _attention(self, i: int, here: dict[str, Tensor]) -> None:
        model, layer = self._model, self._model.layers[i]
        raw = layer.project("qkv", layer.norm(here["resid"]))
        for slot, ours in zip("qkv", raw, strict=True):
            self._same(ours.flatten(2), here[slot], f"{slot} of block {i} is not what its weights give")
        positions = torch.arange(here["resid"].shape[1], device=model.device)
        gaps = []
        for candidate in self._candidates[i]:
            core = candidate.attention
            q, k, v = (core.prepare(s, x, positions) for s, x in zip("qkv", raw, strict=True))
            z = core.mix(q, k, v, core.visible(positions, len(positions), None)).flatten(2)
            gaps.append(float((z - here["z"]).abs().max()))
        best = min(range(len(gaps)), key=gaps.__getitem__)
        layer = model.layers[i] = self._candidates[i][best]
        scale = max(1.0, float(here["z"].abs().max()))
        if not gaps[best] <= _tolerance(here["z"]) * scale:
            self._refuse(
                f"the attention of block {i} is none that is known here (scores, rotation or mask differ)"
            )
        z = layer.scaled(here["z"].unflatten(-1, (layer.n_heads, -1)), here["attn_raw"])
        problem = f"the heads of block {i} do not sum to its attention output"
        self._same(layer.heads_out(z), here["attn_out"], problem)

    def _same(self, ours: Tensor, theirs: Tensor, problem: str) -> None:
        if not _close(ours, theirs):
            self._refuse(problem)

    def _refuse(self, problem: str) -> None:
        bridge = self._model.bridge
        family = getattr(bridge.cfg, "architecture", None) or type(bridge).__name__
        raise UnsupportedError(
            f"{self._model.name} ({family}) cannot be taken apart: {problem}", hint=FAMILIES
        )


def _tolerance(like: Tensor) -> float:
    return 1e-4 if like.dtype == torch.float32 else 5e-2


def _close(a: Tensor, b: Tensor) -> bool:
    scale = float(b.abs().max()) if b.numel() else 0.0
    return bool(torch.allclose(a.broadcast_to(b.shape), b, atol=_tolerance(a) * max(scale, 1.0), rtol=0))
