"""One copy of weights for several workers: found, checked, mapped, never written through, and freed."""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from circuitfind.engine import weights
from circuitfind.engine.weights import SEALS, load_shared, share
from circuitfind.model.bridge import Model
from circuitfind.model.load import load_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="weights are shared on Linux alone")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with weights in half precision, which are made single ones when they are loaded."""
    return _save(tmp_path_factory.mktemp("half") / "model", 2, 128, 2000)


def _save(folder: Path, layers: int, width: int, words: int) -> str:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_head=4, n_embd=width, vocab_size=words, n_positions=64)
    GPT2LMHeadModel(config).half().save_pretrained(folder)
    return str(folder)


def logits(model: Model) -> np.ndarray:
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        return model.bridge_logits(tokens, torch.tensor([11, 5])).numpy()


def copies(key: str) -> int:
    """Open files of this process that hold the memory of a key."""
    names = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return names.count(f"/memfd:circuitfind-{key} (deleted)")


def test_the_second_takes_what_the_first_made(half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, first, second = (load_model(half, device="cpu") for _ in range(3))
    made: list[str] = []
    make = weights._make
    monkeypatch.setattr(weights, "_make", lambda name, size: made.append(name) or make(name, size))
    total = share(first, "test-both")
    assert total >= 4 * 2000 * 128, "the embedding alone"
    assert share(second, "test-both") == total
    assert made == ["circuitfind-test-both"]
    assert weights._private(alone)
    assert not weights._private(first)
    assert not weights._private(second)
    assert np.array_equal(logits(alone), logits(first))
    assert np.array_equal(logits(alone), logits(second))
    for mine, other in zip(first.bridge.parameters(), alone.bridge.parameters(), strict=True):
        assert torch.equal(mine, other)
        assert mine.stride() == other.stride()
    assert share(first, "test-both") == 0, "there is nothing left to share"
    assert copies("test-both") == 2
    del first
    gc.collect()
    assert copies("test-both") == 1
    del second, mine
    gc.collect()
    assert copies("test-both") == 0


@pytest.mark.slow
def test_it_is_freed_as_soon_as_nobody_has_it(half: str) -> None:
    model = load_model(half, device="cpu")
    share(model, "test-freed")
    assert "circuitfind-test-freed" in Path("/proc/self/maps").read_text()
    del model
    gc.collect()
    assert "circuitfind-test-freed" not in Path("/proc/self/maps").read_text()


@pytest.mark.slow
def test_other_weights_of_the_same_name_are_kept(half: str) -> None:
    first, second = load_model(half, device="cpu"), load_model(half, device="cpu")
    share(first, "test-other")
    with torch.no_grad():
        next(iter(second.bridge.parameters()))[3, 5] += 1
    changed, plain = logits(second), logits(first)
    assert not np.array_equal(changed, plain)
    assert share(second, "test-other") > 0
    assert np.array_equal(logits(second), changed)
    assert np.array_equal(logits(first), plain)


@pytest.mark.slow
def test_writing_reaches_nobody_else(half: str) -> None:
    first, second = load_model(half, device="cpu"), load_model(half, device="cpu")
    share(first, "test-write")
    share(second, "test-write")
    before = logits(second)
    with torch.no_grad():
        first.layers[0].w_o.zero_()
    assert not np.array_equal(logits(first), before)
    assert np.array_equal(logits(second), before)


def test_only_what_is_sealed_is_believed(half: str) -> None:
    first, second = load_model(half, device="cpu"), load_model(half, device="cpu")
    total = share(first, "test-sealed")
    planted = os.memfd_create("circuitfind-test-planted", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(planted, total)
        assert weights._find("circuitfind-test-planted", total) is None, "its owner could still write to it"
        fcntl.fcntl(planted, fcntl.F_ADD_SEALS, SEALS)
        found = weights._find("circuitfind-test-planted", total)
        assert found is not None
        os.close(found)
        assert weights._find("circuitfind-test-planted", total + 1) is None
        before = logits(second)
        share(second, "test-planted")  # all zeros: not what was loaded
        assert np.array_equal(logits(second), before)
    finally:
        os.close(planted)
    assert SEALS == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@pytest.mark.slow
def test_no_room_leaves_weights_as_they_are(half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(half, device="cpu")
    before = logits(model)
    write, calls = weights._write, []

    def some(*args: object) -> None:
        calls.append(args)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(weights, "_write", some)
    assert share(model, "test-room") == 0
    assert np.array_equal(logits(model), before)
    assert weights._find("circuitfind-test-room", 1) is None
    monkeypatch.setattr(weights, "_make", lambda name, size: None)
    assert share(model, "test-room") == 0


@pytest.mark.slow
def test_models_of_the_zoo() -> None:
    first, second = load_shared("mini", device="cpu"), load_shared("mini", device="cpu")
    alone = load_model("mini", device="cpu")
    assert not weights._private(second)
    assert np.array_equal(logits(first), logits(alone))
    assert np.array_equal(logits(second), logits(alone))
    assert second.fingerprint == alone.fingerprint
    assert second.loaded_as == alone.loaded_as


WORKER = """
    import sys
    import torch
    torch.set_num_threads(1)
    import transformer_lens.model_bridge, transformers.models.gpt2.modeling_gpt2
    from circuitfind.engine.weights import load_shared
    from circuitfind.model.load import load_model

    def pss():
        lines = open("/proc/self/smaps_rollup").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024

    print("before", flush=True); sys.stdin.readline()
    before = pss()
    model = (load_shared if sys.argv[2] == "shared" else load_model)(sys.argv[1], device="cpu")
    for tensor in [*model.bridge.parameters(), *(x for layer in model.layers for x in (layer.w_qkv, layer.w_o))]:
        tensor.sum()
    print("loaded", flush=True); sys.stdin.readline()
    print(pss() - before, flush=True); sys.stdin.readline()
"""


def taken(model: str, count: int, how: str) -> list[int]:
    """Bytes that a model takes of each of some processes; pages that several map count for each in part."""
    command = [sys.executable, "-c", textwrap.dedent(WORKER), model, how]
    around = {**os.environ, "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen(command, env=around, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]

    def ask() -> list[str]:
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        return [worker.stdout.readline().strip() for worker in workers if worker.stdout is not None]

    try:
        assert [w.stdout.readline().strip() for w in workers if w.stdout is not None] == ["before"] * count
        assert ask() == ["loaded"] * count
        return [int(told) for told in ask()]
    finally:
        for worker in workers:
            worker.communicate("\n", timeout=60)


@pytest.mark.slow
def test_memory_of_workers(tmp_path: Path) -> None:
    model = _save(tmp_path / "model", 6, 768, 20000)
    size = 4 * (20000 * 768 + 6 * (12 + 3) * 768**2)  # W_QKV is there twice: as it came, and side by side
    alone = taken(model, 2, "alone")
    assert sum(alone) > 1.9 * size, "each has all of it"
    for count in (1, 2, 3):
        found = taken(model, count, "shared")
        assert sum(found) < size + count * 0.25 * size, f"{count} workers take {sum(found) / size:.2f} models"
