"""Speed and memory beside the floor: the passes of the bare Hugging Face model that a job cannot do without.

    make bench                         all jobs
    make bench ARGS="eap --repeats 9"  one job

Both sides run in one process, in turns, and the figure is the ratio of their fastest CPU times: a busy machine disturbs
both alike. Memory is the peak of a fresh process for each side, beyond the loaded model. To add a peer, add a function
to ``SIDES``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

os.environ.setdefault("HF_HUB_OFFLINE", "1")

PAIRS, TOKENS = 16, 16
SHAPES = {"gpt2-small": {}, "tiny": {"n_layer": 2, "n_head": 4, "n_embd": 64, "vocab_size": 1000}}


def make_model(folder: Path, shape: str) -> None:
    """A model of this shape with random weights, in Hugging Face format."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**SHAPES[shape])).save_pretrained(folder)


def tokens(n_vocab: int) -> tuple[list[list[int]], list[list[int]]]:
    """Random clean prompts, and corrupted ones that differ from the second token on."""
    import random

    draw = random.Random(0)
    clean = [[draw.randrange(n_vocab) for _ in range(TOKENS)] for _ in range(PAIRS)]
    return clean, [[row[0], *(draw.randrange(n_vocab) for _ in row[1:])] for row in clean]


def floor(folder: Path) -> Callable[[], None]:
    """Two forward passes and one backward pass of the bare model: no weight gradients, logits where they are read."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.sum()  # read from the file now: it must count as the model, not as the job
    clean, corrupted = (torch.tensor(rows) for rows in tokens(model.config.vocab_size))

    def run() -> None:
        with torch.no_grad():
            model(corrupted, use_cache=False, logits_to_keep=1)
        embedded = model.get_input_embeddings()(clean).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, use_cache=False, logits_to_keep=1).logits[:, -1]
        torch.autograd.grad((logits[:, 1] - logits[:, 2]).sum(), embedded)

    return run


def eap(folder: Path) -> Callable[[], None]:
    """Edge attribution of every edge, from prompts to scores."""
    from circuitfind.methods import get_method
    from circuitfind.model.load import load_model
    from circuitfind.model.runs import Runs
    from circuitfind.task.metrics import get_metric
    from circuitfind.task.pairs import PromptPair, PromptPairs

    model = load_model(str(folder), device="cpu")
    rows = zip(*tokens(model.n_vocab), strict=True)
    pairs = PromptPairs(
        tuple(PromptPair(tuple(a), tuple(b), (1,), (2,), TOKENS - 1, {}, "", "", "", "") for a, b in rows),
        "random",
    )

    def run() -> None:
        runs = Runs(model, pairs, get_metric("logit-diff"))
        get_method("eap").run(runs, ablation="resample", direction="noising")

    return run


SIDES: dict[str, Callable[[Path], Callable[[], None]]] = {"floor": floor, "eap": eap}


def measure(folder: Path, names: list[str], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each side, in turns."""
    import torch

    torch.set_num_threads(1)
    sides = {name: SIDES[name](folder) for name in names}
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            start = time.process_time()
            run()
            if turn:  # the first turn warms up
                found[name].append(time.process_time() - start)
    return found


def peak(folder: Path, name: str) -> float:
    """Memory in MB that one side takes beyond the loaded model, at its peak, in a fresh process."""
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import run; run.report_peak({str(folder)!r}, {name!r})"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return float(told.splitlines()[-1])


def report_peak(folder: str, name: str) -> None:
    """Print the figure for ``peak``."""
    import torch

    torch.set_num_threads(1)
    run = SIDES[name](Path(folder))
    loaded = _resident("VmRSS")
    # Loading peaks higher than running; Linux forgets the peak when asked to.
    Path("/proc/self/clear_refs").write_text("5")
    run()
    run()
    print((_resident("VmHWM") - loaded) / 1000)


def _resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(key))


@click.command()
@click.argument("jobs", nargs=-1, type=click.Choice([name for name in SIDES if name != "floor"]))
@click.option("--repeats", default=7, show_default=True)
@click.option("--shape", default="gpt2-small", show_default=True, type=click.Choice(list(SHAPES)))
def main(jobs: tuple[str, ...], repeats: int, shape: str) -> None:
    """Measure JOBS (default: all) beside the floor."""
    names = list(jobs) or [name for name in SIDES if name != "floor"]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_model(folder, shape)
        times = measure(folder, ["floor", *names], repeats)
        memory = {name: peak(folder, name) if sys.platform == "linux" else float("nan") for name in times}
    best = min(times["floor"])
    print(
        f"{shape}, {PAIRS} pairs of {TOKENS} tokens, fp32, one thread, {repeats} turns; floor = 2 forward + 1 backward"
    )
    print(f"{'job':<8}{'CPU s':>8}{'ratio':>8}{'median':>8}{'extra MB':>10}{'over floor':>12}")
    for name, seconds in times.items():
        middle = sorted(seconds)[len(seconds) // 2] / sorted(times["floor"])[len(seconds) // 2]
        extra, over = memory[name], memory[name] - memory["floor"]
        print(
            f"{name:<8}{min(seconds):>8.2f}{min(seconds) / best:>8.2f}{middle:>8.2f}{extra:>10.0f}{over:>12.0f}"
        )


if __name__ == "__main__":
    main()
