"""Train mini: `python -m circuitfind.zoo.mini.train --out DIR`."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from circuitfind.zoo.mini import card, evaluate
from circuitfind.zoo.mini.batches import Batch, step_batches
from circuitfind.zoo.mini.drops import attention_kept, step_keeps
from circuitfind.zoo.mini.tokenizer import build_tokenizer, end_id

CHECKPOINT_EVERY = 250


@dataclass(frozen=True)
class Settings:
    """What a training is determined by."""

    seed: int = 1
    steps: int = 5000
    layers: int = 4
    heads: int = 8
    width: int = 128
    context: int = 96
    documents_per_step: int = 64
    chunks: int = 4
    focus_from: float = 0.2  # the stretch of corpus.FOCUS_WEIGHTS, as shares of all steps
    focus_until: float = 0.55
    warmup: int = 100
    matrix_rate: float = 2e-3
    other_rate: float = 2e-3
    matrix_decay: float = 0.1
    drop_attention: float = 0.0  # how often a document goes without an attention layer, for each layer
    drop_from: float = 0.45  # the stretch over which this comes up from none, as shares of all steps
    drop_until: float = 0.65


def build_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """A GPT-2 with fresh weights and no dropout."""
    end = end_id(tokenizer)
    options: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "n_positions": settings.context,
        "n_embd": settings.width,
        "n_layer": settings.layers,
        "n_head": settings.heads,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "attn_pdrop": 0.0,
        # The same function as gelu_new, which the saved config names, in one fused kernel.
        "activation_function": "gelu_pytorch_tanh",
        "attn_implementation": "sdpa",
        "use_cache": False,
    }
    return GPT2LMHeadModel(GPT2Config(**options))


def build_optimizers(model: GPT2LMHeadModel, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, biases and norms.

    With AdamW for all of them most behaviours come later, induction above all.
    """
    if not hasattr(torch.optim, "Muon"):
        raise click.ClickException(f"training mini needs torch 2.9 or later, this is {torch.__version__}")
    blocks = [value for value in model.transformer.h.parameters() if value.ndim == 2]
    inside = {id(value) for value in blocks}
    others = [value for value in model.parameters() if id(value) not in inside]
    return [
        torch.optim.Muon(
            blocks,
            lr=settings.matrix_rate,
            weight_decay=settings.matrix_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=settings.other_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_factor(step: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine down to zero."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * (1.0 + math.cos(math.pi * done))


def drop_share(step: int, settings: Settings) -> float:
    """How often a layer is left out at a step: never at first, then more and more often, then at a constant share.

    With layers left out from the start on, induction and coloured objects were near chance past half of the steps.
    """
    done = (step / settings.steps - settings.drop_from) / (settings.drop_until - settings.drop_from)
    return settings.drop_attention * min(1.0, max(0.0, done))


def train_step(
    model: GPT2LMHeadModel,
    optimizers: list[torch.optim.Optimizer],
    batches: list[Batch],
    keeps: list[torch.Tensor | None],
    factor: float,
) -> float:
    """One update from a step's batches, of which `keeps` says what is left out; returns the weighted mean loss."""
    total = sum(float(batch.weights[:, 1:].sum()) for batch in batches)
    summed = 0.0
    for batch, keep in zip(batches, keeps, strict=True):
        counted = batch.weights[:, 1:] > 0
        # Logits are made only where they count: over the vocabulary they are a third of the work.
        tokens, counted = batch.tokens.to(model.device), counted.to(model.device)
        weights = batch.weights[:, 1:].to(model.device)[counted]
        with attention_kept(model, keep):
            hidden = model.transformer(tokens).last_hidden_state[:, :-1][counted]
        losses = cross_entropy(model.lm_head(hidden), tokens[:, 1:][counted], reduction="none")
        loss = (losses * weights).sum() / total
        torch.autograd.backward(loss)
        summed += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("full_rate", group["lr"])
            group["lr"] = group["full_rate"] * factor
        optimizer.step()
        optimizer.zero_grad()
    return summed


def train(
    settings: Settings, tokenizer: PreTrainedTokenizerFast, device: str, work: Path
) -> tuple[GPT2LMHeadModel, float]:
    """Train from the checkpoint in `work` if there is one; returns the model and the seconds it took."""
    torch.manual_seed(settings.seed)
    with torch.device(device):
        model = build_model(settings, tokenizer)
    optimizers = build_optimizers(model, settings)
    checkpoint = work / "checkpoint.pt"
    first, before = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["settings"] != asdict(settings):
            raise click.ClickException(f"{checkpoint} is of a training with other settings; remove {work}")
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, before = state["step"], state["seconds"]
    started = time.monotonic()
    losses: list[float] = []
    for step in range(first, settings.steps):
        batches = step_batches(
            tokenizer,
            seed=settings.seed,
            step=step,
            size=settings.documents_per_step,
            chunks=settings.chunks,
            focus=settings.focus_from <= step / settings.steps < settings.focus_until,
        )
        keeps = step_keeps(
            batches,
            layers=settings.layers,
            share=drop_share(step, settings),
            seed=settings.seed,
            step=step,
        )
        losses.append(train_step(model, optimizers, batches, keeps, rate_factor(step, settings)))
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == settings.steps:
            seconds = before + time.monotonic() - started
            state = {
                "settings": asdict(settings),
                "step": step + 1,
                "seconds": seconds,
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            }
            torch.save(state, work / "checkpoint.tmp")
            (work / "checkpoint.tmp").replace(checkpoint)
            scores = evaluate.evaluate(model, tokenizer, count=100)
            figures = "  ".join(
                f"{name} {each.beats_wrong:.2f}/{each.top1:.2f}" for name, each in scores.items()
            )
            click.echo(f"{step + 1} {seconds:.0f}s loss {sum(losses) / len(losses):.3f}  {figures}")
            losses = []
    return model, before + time.monotonic() - started


def save(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, facts: dict[str, Any], out: Path
) -> None:
    """Write the model folder beside `out`, then rename it into place."""
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    model.config.activation_function = "gelu_new"
    model.config.use_cache = True
    model.cpu().save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    # The name that every release of transformers knows.
    settings_file = fresh / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings_file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (fresh / "card.json").write_text(json.dumps(facts, indent=2) + "\n")
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Model folder to write."
)
@click.option("--seed", default=Settings.seed, show_default=True, help="Seed of weights and data.")
@click.option("--steps", default=Settings.steps, show_default=True, help="Training steps.")
@click.option(
    "--drop-attention",
    type=click.FloatRange(0.0, 1.0),
    default=Settings.drop_attention,
    show_default=True,
    help="How often a document goes without an attention layer, for each layer, once this has come up.",
)
@click.option(
    "--prompts", default=1000, show_default=True, help="Held-out prompts per behaviour in the card."
)
@click.option("--threads", default=0, help="CPU threads; 0 leaves it to torch.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--readme", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Card to update."
)
def main(
    out: Path,
    seed: int,
    steps: int,
    drop_attention: float,
    prompts: int,
    threads: int,
    device: str,
    readme: Path | None,
) -> None:
    """Build the tokenizer, train, evaluate, and write the model folder with its card.

    A stopped training goes on from its last checkpoint when it is started again.
    """
    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = Settings(seed=seed, steps=steps, drop_attention=drop_attention)
    out = out.resolve()
    work = out.with_name(f".{out.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(settings.context)
    model, seconds = train(settings, tokenizer, device, work)
    scores = {
        name: evaluate.evaluate(model, tokenizer, count=prompts, bos=bos)
        for name, bos in (("plain", False), ("bos", True))
    }
    facts = card.facts(asdict(settings), model.num_parameters(), seconds, device, scores)
    save(model, tokenizer, facts, out)
    shutil.rmtree(work)
    if readme:
        card.update_readme(readme, facts)
    click.echo(card.table(facts))


if __name__ == "__main__":
    main()
