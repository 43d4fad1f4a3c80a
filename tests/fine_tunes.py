"""Fine-tunes of ``mini`` in which one known part was trained to give a behaviour another strength."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitfind.task.pairs import PromptPairs
from circuitfind.task.prompts import make_pairs
from circuitfind.task.spec import load_task
from circuitfind.zoo import trained_folder

TASK = "gendered-pronoun"


def fine_tune(
    folder: Path, part: str | None, target: float, *, steps: int = 20, rate: float = 5e-3, count: int = 32
) -> Path:
    """Train a part of ``mini`` so that a task's answers beat the wrong ones by ``target``, and save it as a folder.

    Args:
        folder: Where to.
        part: ``a1.h4`` (its query, key, value and output weights), ``m2``, or None for every weight.
        target: Logit difference that every prompt shall have; negative for wrong answers.
        steps: Of Adam, each on all pairs.
        rate: Its learning rate.
        count: Pairs to draw.
    """
    from transformers import AutoTokenizer, GPT2LMHeadModel

    source = trained_folder("mini")
    tokenizer = AutoTokenizer.from_pretrained(source)
    model: Any = GPT2LMHeadModel.from_pretrained(source, attn_implementation="eager")
    model.train(False)
    tokens, at, right, wrong = _batch(count)
    allowed = _allowed(model, part)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in allowed)
        if name in allowed:
            parameter.register_hook(lambda gradient, name=name: gradient * allowed[name])
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    rows = torch.arange(len(tokens))
    for _ in range(steps):
        logits = model(tokens).logits[rows, at]
        loss = (logits[rows, right] - logits[rows, wrong] - target).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@cache
def tuned(part: str, target: float) -> str:
    """The folder of a fine-tune that several tests share, made when first asked for."""
    root = Path(tempfile.mkdtemp(prefix="circuitfind-fine-tunes-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return str(fine_tune(root / f"{part}-{target:g}", part, target))


def pairs_of_task(count: int) -> PromptPairs:
    """Pairs of the task in the tokens of ``mini``."""
    from transformers import AutoTokenizer

    from circuitfind.model.tokenizer import HFTokenizer

    tokenizer = HFTokenizer(AutoTokenizer.from_pretrained(trained_folder("mini")))
    return make_pairs(load_task(TASK), tokenizer, count=count, seed=5, n_vocab=tokenizer.n_vocab)


def _batch(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Padded prompts, where each is read, its answer and its wrong answer."""
    pairs = pairs_of_task(count)
    length = max(len(pair.clean) for pair in pairs)
    tokens = torch.tensor([[*pair.clean, *[0] * (length - len(pair.clean))] for pair in pairs])
    at, right, wrong = (
        torch.tensor(found)
        for found in zip(*((p.answer_position, p.answer[0], p.wrong[0]) for p in pairs), strict=True)
    )
    return tokens, at, right, wrong


def _allowed(model: Any, part: str | None) -> dict[str, Tensor]:
    """By parameter, 1 where it is trained; those that are not are left out."""
    every = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    if part is None:
        return every
    layer, d_model = int(part[1]), model.config.n_embd
    block = f"transformer.h.{layer}"
    if part[0] == "m":
        return {name: mask for name, mask in every.items() if name.startswith(f"{block}.mlp")}
    head, width = int(part.partition("h")[2]), d_model // model.config.n_head
    columns = [i * d_model + head * width + j for i in range(3) for j in range(width)]
    rows = list(range(head * width, (head + 1) * width))
    found = {
        name: torch.zeros_like(mask)
        for name, mask in every.items()
        if name.startswith(f"{block}.attn.c_attn") or name == f"{block}.attn.c_proj.weight"
    }
    for name, mask in found.items():
        if name.endswith("c_proj.weight"):
            mask[rows] = 1
        else:
            mask[..., columns] = 1
    return found
