"""Runs of one model in which replaced parts carry what another model of the same shape writes for the same prompts.

The clean prompts run in model A and in model B; a replaced part of A carries B's value for the same prompt. So the full
circuit is A, and with everything replaced the stream is B's, read by A's final norm and unembedding. What is found under
this ablation is where the two models differ for a task: activations patched across models as in Prakash et al. 2024,
arXiv 2402.14811 (their CMAP).

What a part *writes* is replaced, not what it computed on the way: a head of which only W_O was trained differs too. A head
is kept as its values before W_O, and B's values need B's W_O. Each head of A is therefore made wider: W_O has A's rows,
then B's, then one for the difference of the two output biases (shared out evenly among the heads of the layer). Queries,
keys and values are filled up with zeros, so that A computes what it did; B's heads are zero in A's part of the values.
Everything that is done with weights - patched passes, gradients, contraction - then works as it is.

Apart from what a part writes because its inputs differ, there is what it writes because *it* differs: B's part on A's
stream. ``own=True`` replaces by that, which is A with the weights of the replaced part taken from B.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from circuitfind.errors import RunError, UnsupportedError
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.batch_runs import Carried
from circuitfind.model.batches import Side
from circuitfind.model.bridge import Model
from circuitfind.model.contrast import Contrast
from circuitfind.model.forward import BlockRun, Trace, attend, run_trace
from circuitfind.model.layer import Layer
from circuitfind.model.norms import Norm
from circuitfind.model.runs import Runs
from circuitfind.model.writes import Writes
from circuitfind.task.pairs import PromptPairs

SWAP = "exchange --model and --model-b to see it from the other side"


def check_shape(a: Model, b: Model) -> None:
    """Refuse models between which activations mean nothing, or between which there is nothing to find.

    Raises:
        UnsupportedError: They have the same weights, differ in shape or in their norms, or are offloaded.
    """
    if a.fingerprint == b.fingerprint:
        raise UnsupportedError(
            f"{a.name} and {b.name} are one model: they have the same weights",
            hint="give another model as --model-b, such as a fine-tuned one or another checkpoint",
        )
    if a.placement is not None or b.placement is not None:
        raise UnsupportedError(
            "two models are not compared with their weights offloaded",
            hint="leave out --device-map and --max-memory",
        )
    facts: dict[str, tuple[Any, Any]] = {
        "writers and readers": (_shape(a.anatomy), _shape(b.anatomy)),
        "width of the stream": (a.d_model, b.d_model),
        "size of a head": (a.d_head, b.d_head),
        "number of tokens in the vocabulary": (a.n_vocab, b.n_vocab),
        "kinds of norms": (_norms(a), _norms(b)),
        "direction of attention": (a.causal, b.causal),
    }
    for what, (mine, other) in facts.items():
        if mine != other:
            raise UnsupportedError(
                f"{a.name} and {b.name} are of different shape: {what}: {mine} against {other}",
                hint="activations are patched between models of one shape; `circuitfind diff` compares runs of any two",
            )


def check_prompts(a: Model, b: Model, pairs: PromptPairs) -> None:
    """Refuse prompts that the two do not read alike.

    Raises:
        UnsupportedError: A prompt is too long for B, or other tokens to it.
    """
    longest = max(len(pair.clean) for pair in pairs)
    if longest > b.n_ctx:
        raise UnsupportedError(
            f"a prompt has {longest} tokens, but {b.name} reads at most {b.n_ctx}", hint="shorten the prompts"
        )
    if a.tokenizer is None or b.tokenizer is None:
        return
    for pair in pairs:
        if pair.clean_text:
            ids = [
                [token for token, _, _ in model.tokenizer.encode(pair.clean_text)]
                for model in (a, b)
                if model.tokenizer
            ]
            if ids[0] != ids[1]:
                raise UnsupportedError(
                    f"{a.name} and {b.name} cut '{pair.clean_text}' into different tokens: {ids[0]} against {ids[1]}",
                    where=pair.where,
                    hint="activations are patched between models with one tokenizer",
                )


def _shape(anatomy: Anatomy) -> str:
    kv = f", {anatomy.n_kv_heads} key/value heads" if anatomy.grouped else ""
    rest = ("" if anatomy.has_mlp else ", no MLPs") + (", parallel blocks" if anatomy.parallel else "")
    return f"{anatomy.n_layers} layers of {anatomy.n_heads} heads{kv}{rest}"


def _norms(model: Model) -> str:
    found = []
    for layer in model.layers:
        behind = [layer.post_norm, layer.attention.q_norm, layer.attention.k_norm]
        kinds = ["-" if norm is None else norm.kind for norm in (layer.norm, layer.mlp_norm, *behind)]
        found.append(" ".join(kinds))
    return f"{', '.join(dict.fromkeys(found))}; final {model.final_norm.kind}"


# Wider heads.


def widened(a: Model, b: Model) -> Model:
    """Model A with room in its heads for what those of B write; it computes what A computes, and shares its counters.

    Raises:
        UnsupportedError: See ``check_shape``; or a norm over queries or keys cannot be widened.
    """
    check_shape(a, b)
    found = copy(a)
    found.layers = [_wider(mine, other) for mine, other in zip(a.layers, b.layers, strict=True)]
    found.d_head = found.layers[0].d_head
    return found


def _wider(a: Layer, b: Layer) -> Layer:
    extra = b.d_head + 1
    qkv = pad(a.w_qkv.unflatten(1, (-1, a.d_head)), (0, extra)).flatten(1)
    bias = None if a.b_qkv is None else pad(a.b_qkv.unflatten(0, (-1, a.d_head)), (0, extra)).flatten()
    zero = a.w_o.new_zeros(a.w_o.shape[-1])
    move = (zero if b.b_o is None else b.b_o) - (zero if a.b_o is None else a.b_o)
    last = (move / a.n_heads).expand(a.n_heads, 1, -1)
    w_o = torch.cat((a.w_o, b.w_o, last), 1)
    return replace(
        a,
        w_qkv=qkv,
        b_qkv=bias,
        w_o=w_o,
        w_o_raw=w_o if a.post_norm is None else torch.cat((a.w_o_raw, b.w_o_raw, last), 1),
        attention=replace(
            a.attention,
            q_norm=_wider_norm(a.attention.q_norm, a.d_head, extra, zero),
            k_norm=_wider_norm(a.attention.k_norm, a.d_head, extra, zero),
        ),
    )


def _wider_norm(norm: Norm | None, width: int, extra: int, like: Tensor) -> Norm | None:
    """A norm over a head that gives the same on values that are filled up with zeros."""
    if norm is None or norm.kind == "none":
        return norm
    if norm.kind == "ln":
        raise UnsupportedError(
            "queries and keys behind a LayerNorm over each head are not patched across models",
            hint="compare a run of each model with `circuitfind diff`",
        )
    share = width / (width + extra)  # the mean square is so much smaller over more numbers
    weight = None if norm.weight is None else pad(norm.weight * share**0.5, (0, extra))
    if weight is None:
        weight = like.new_full((width + extra,), share**0.5)
    return Norm("rms", weight, None, norm.eps * share)


def in_wide_heads(z: Float[Tensor, "*row head d_head"], own: int) -> Float[Tensor, "*row head wide"]:
    """B's head values where the wider heads of A, whose own are so many, have room for them."""
    return pad(pad(z, (own, 0)), (0, 1), value=1.0)


class CrossRuns(Runs):
    """Runs of model A whose other side is model B on the same clean prompts.

    Args:
        model: Model A.
        model_b: Model B.
        pairs: Whose clean prompts run; corrupted ones are never looked at.
        own: Replaced parts carry what B's part makes of A's stream, in place of what it writes in B's run.

    The other arguments are those of ``Runs``.

    Raises:
        UnsupportedError: See ``widened`` and ``check_prompts``.
    """

    def __init__(
        self, model: Model, model_b: Model, pairs: PromptPairs, *args: Any, own: bool = False, **kwargs: Any
    ) -> None:
        wide = widened(model, model_b)
        check_prompts(model, model_b, pairs)
        self.model_a, self.model_b, self.own = model, model_b, own
        model_b.passes = model.passes
        super().__init__(wide, pairs, *args, **kwargs)

    def _start(self) -> None:
        super()._start()
        self.batches = [replace(batch, start=0) for batch in self.batches]

    def smaller(self, prompts: int) -> CrossRuns:
        tokens = prompts * max(len(pair.clean) for pair in self.pairs)
        plan = replace(self.plan, batch_tokens=min(self.plan.batch_tokens, tokens))
        a, b = self.model_a, self.model_b
        return CrossRuns(a, b, self.pairs, self.metric, plan=plan, note=self._note, own=self.own)

    def transplanting(self) -> CrossRuns:
        """The same with ``own=True``."""
        a, b = self.model_a, self.model_b
        return CrossRuns(
            a, b, self.pairs, self.metric, plan=self.plan, progress=self._progress, note=self._note, own=True
        )

    def trace(self, number: int, side: Side, *, keep: bool = False, whole: bool = False) -> Trace:
        """A finished run of a batch: of A's, or what B wrote in its place in A's wider heads.

        Raises:
            UnsupportedError: A gradient was to be taken in B's run.
        """
        if side == "clean":
            return super().trace(number, side, keep=keep, whole=whole)
        if keep:
            raise UnsupportedError(
                "gradients are taken in the run of --model alone, not in that of --model-b",
                hint="use another --method, such as eap, eap-ig-activations or edge-patching",
            )
        key = (number, str(side))
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key][0]
        with torch.no_grad():
            found = self._transplanted(number) if self.own else self._of_b(number)
        trace = replace(found, blocks=[self._in_a(i, block) for i, block in enumerate(found.blocks)])
        self._remember(key, trace, False)
        return trace

    def ablated(self, number: int, ablation: Carried) -> Writes:
        """What replaced parts carry for a batch: what B writes.

        Raises:
            UnsupportedError: Something else was asked for.
        """
        if ablation != "resample":
            raise UnsupportedError(
                f"across models a replaced part carries what the other one writes, not that of {ablation} ablation",
                hint="use --ablation resample",
            )
        return super().ablated(number, ablation)

    def contrast(
        self, number: int, ablation: Carried, base: Side = "clean", *, keep: bool = False
    ) -> Contrast:
        """What patched passes over a batch start from: A's run, in which B's values are not those of any run of A.

        Raises:
            UnsupportedError: B's run was to be patched.
        """
        if base != "clean":
            raise UnsupportedError(f"the run of {self.model_b.name} is not patched", hint=SWAP)
        found = super().contrast(number, ablation, base, keep=keep)
        if found.cut_is_run:
            found = replace(found, cut_is_run=False)
            self._contrasts[number, ablation, base, id(self.constants)] = found
        return found

    def _in_a(self, index: int, block: BlockRun) -> BlockRun:
        own, wide = self.model_a.layers[index].d_head, self.model.layers[index].d_head
        q, k, v = (pad(x, (0, wide - x.shape[-1])) for x in (block.q, block.k, block.v))
        return replace(block, q=q, k=k, v=v, z=in_wide_heads(block.z, own), saved=None, projected=None)

    def _of_b(self, number: int) -> Trace:
        """B's run of a batch."""
        batch, b = self.batches[number], self.model_b
        return run_trace(b, b.embed(batch.clean), batch.place(0))

    def _transplanted(self, number: int) -> Trace:
        """What each part of B makes of the stream that the part of A reads in A's run."""
        batch, b, base = self.batches[number], self.model_b, self.trace(number, "clean")
        place, blocks = batch.place(0), []
        b.passes["forward"] += 1
        for index, (layer, run) in enumerate(zip(b.layers, base.blocks, strict=True)):
            last = index == len(b.layers) - 1
            q, k, v, z, raw, _ = attend(layer, run.resid, place, None, last=last)
            out = None
            if layer.mlp is not None:
                here = place.at_answer(run.resid) if last else run.resid
                out = layer.mlp(layer.mlp_norm(here if b.anatomy.parallel else run.mid))
            blocks.append(BlockRun(run.resid, q, k, v, z, raw, run.mid, out, None, None))
        return Trace(place, b.embed(batch.clean), blocks, base.final)

    # What B is on this task.

    def in_b(self) -> Float[Tensor, " prompt"]:
        """The metric of each prompt in B, read by B's own final norm and unembedding."""
        values = torch.empty(len(self), dtype=torch.float64)
        for number, batch in enumerate(self.batches):
            with torch.no_grad():
                logits = self.model_b.head(self._of_b(number).final)
            values[torch.from_numpy(batch.index)] = self.metric_of(number, logits).double().cpu()
        return values

    @property
    def heads_differ(self) -> bool:
        """Whether the two read the final stream in different ways: their final norm or unembedding differs."""
        a, b = self.model_a, self.model_b
        pairs = [(a.w_u, b.w_u), (a.b_u, b.b_u), (a.final_norm.weight, b.final_norm.weight)]
        pairs.append((a.final_norm.bias, b.final_norm.bias))
        return any(x is not y and (x is None or y is None or not torch.equal(x, y)) for x, y in pairs)

    def check_gap(self) -> None:
        """Refuse two models that do the task alike, or of which B does it better.

        Raises:
            RunError: They do.
        """
        full, empty = float(self.clean.mean()), float(self.corrupted.mean())
        scale = 1e-4 * max(float(abs(self.clean).mean() + abs(self.corrupted).mean()), 1e-6)
        a, b = self.model_a.name, self.model_b.name
        told = f"the {self.metric.name} is {full:.4g} in {a} and {empty:.4g} with everything from {b}"
        if abs(full - empty) <= scale:
            read = ", as its final norm and unembedding are not patched" if self.heads_differ else ""
            raise RunError(
                f"{told}: the two do not differ on this task{read}",
                hint="choose another task, or models that differ in it",
            )
        if full < empty:
            raise RunError(
                f"{told}: {self.model_b.name} does the task better, so there is nothing that it lost",
                hint=SWAP,
            )
