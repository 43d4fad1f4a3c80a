"""A stand-in for indirect objects in GPT-2 small, where its weights are not there: the task's prompts, and a model that can.

The prompts are those of tasks/ioi.yaml with every word and comma a token of its own, which gives them about the lengths that
they have in GPT-2's tokens. The weights are random but for three heads, which look at all tokens alike and write against the
names that they see: a name that was mentioned twice loses to one that was mentioned once. So the pairs are answered rightly,
and a circuit is there to be found; how large it is says nothing of GPT-2.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuitfind.task.spec import TaskSpec

REAL = "gpt2"
HEADS = {(9, 6): (0, 0.5), (10, 0): (0, 0.5), (9, 9): (1, 1.0)}
"""Layer and head of those that do the task: which part of the space of names they read, and their share of the work."""
GAIN = 1.0
"""What they write together, in what they read of a name."""
LOUD = 8.0
"""How much longer the embeddings of names are than those of other words, so that names are read above the noise."""


def there(name: str = REAL) -> bool:
    """Whether the weights of a model of the hub are in the cache or can be downloaded."""
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(name)
    except OSError:
        return False
    return True


def task() -> TaskSpec:
    """The task, for models of the hub."""
    from circuitfind.task.spec import load_task

    return load_task("ioi")


def task_in_words() -> TaskSpec:
    """The same with a vocabulary of its own."""
    spec = task()
    data: dict[str, Any] = spec.model_dump(
        mode="json", by_alias=True, exclude_none=True, exclude_defaults=True
    )
    data["name"] = "ioi-words"
    for key in ("known", "expect", "path"):
        data.pop(key, None)
    for template in data["prompts"]["templates"]:
        template["clean"] = _apart(template["clean"])
        template["corrupted"] = {name: _apart(text) for name, text in template["corrupted"].items()}
    data["vocab"] = words(spec)
    return type(spec).model_validate(data)


def slot_values(spec: TaskSpec, slot: str) -> tuple[str, ...]:
    """What a slot of the prompts may hold."""
    found = (spec.prompts.slots or {})[slot]
    assert isinstance(found, tuple)
    return found


def words(spec: TaskSpec) -> list[str]:
    """Every word of the prompts, the names first."""
    names, slots = list(slot_values(spec, "A")), spec.prompts.slots or {}
    rest = {word for slot in slots for word in slot_values(spec, slot)}
    for template in spec.prompts.templates or ():
        rest |= set(re.sub(r"\{\w+\}", " ", _apart(template.clean)).split())
    return names + sorted(rest - set(names))


def _apart(text: str) -> str:
    return re.sub(r"([,.])", r" \1", text)


def make_model(path: Path, n_names: int) -> None:
    """Write a model of GPT-2 small's shape that does the task.

    Args:
        path: Where to.
        n_names: Tokens 0 to this one are names.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    size = model.config.n_embd // model.config.n_head
    with torch.no_grad():
        names = model.transformer.wte.weight[:n_names]
        names *= LOUD
        space = torch.linalg.svd(names, full_matrices=False).Vh  # [name, d_model]
        for (layer, head), (part, share) in HEADS.items():
            read = torch.zeros(size, model.config.n_embd)
            mine = space[part * size : (part + 1) * size]
            read[: len(mine)] = mine
            attention = model.transformer.h[layer].attn
            query, key, value = (
                slice(
                    slot * model.config.n_embd + head * size, slot * model.config.n_embd + (head + 1) * size
                )
                for slot in range(3)
            )
            attention.c_attn.weight[:, query] = 0.0
            attention.c_attn.weight[:, key] = 0.0
            attention.c_attn.weight[:, value] = read.T
            attention.c_proj.weight[head * size : (head + 1) * size] = -GAIN * share * read
    model.save_pretrained(path)
