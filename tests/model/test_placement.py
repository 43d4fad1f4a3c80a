"""Models whose weights lie on disk, in CPU memory or on other devices: the same results as whole ones, and never whole here."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitfind.backups.search import find_backups
from circuitfind.errors import ModelError, RunError, UnsupportedError, UsageError
from circuitfind.methods import get_method
from circuitfind.model import checkpoint, device_map, placement, shelves
from circuitfind.model.bridge import Model
from circuitfind.model.load import load_model
from circuitfind.model.node_pass import Patch
from circuitfind.model.optimal import learn_constants
from circuitfind.model.shuffle import shuffled
from circuitfind.offload import LOCK, PREFIX, Offload, current, make_folder, offloaded, remove_folder
from tests import families
from tests.families import HF_FAMILIES, pairs_for, runs_of

LAYERS = 4
SAME = 1e-6
"""Layouts of weights are kept, so results are the same to the last bit on one machine; the tests ask for this much."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


@cache
def deep(family: str) -> Path:
    """A folder with a model of more blocks than are ever held at once."""
    import transformers as hf

    shape: dict[str, Any] = {"vocab_size": families.VOCAB, "bos_token_id": 0, "eos_token_id": 0}
    wide: dict[str, Any] = {
        **shape,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": families.CONTEXT,
        "pad_token_id": None,
    }
    path = families.root() / f"deep-{family}"
    torch.manual_seed(3)
    built: Any = (
        hf.GPT2LMHeadModel(
            hf.GPT2Config(**shape, n_embd=16, n_layer=LAYERS, n_head=4, n_positions=families.CONTEXT)
        )
        if family == "gpt2"
        else hf.LlamaForCausalLM(hf.LlamaConfig(**wide))
    )
    for parameter in built.parameters():
        families.perturb(parameter.data)
    built.save_pretrained(path)
    return path


@cache
def whole(family: str) -> Model:
    return load_model(str(deep(family)), device="cpu")


@cache
def on_disk(family: str) -> Model:
    """Shared by tests that leave its counters alone."""
    with offloaded("disk"):
        return load_model(str(deep(family)), device="cpu")


def fresh(family: str, *where: Any, **options: Any) -> Model:
    with offloaded(*where, **options):
        return load_model(str(deep(family)), device="cpu")


def pager_of(model: Model) -> placement.Pager:
    assert model.placement is not None
    return model.placement.pager


def scores(model: Model, method: str, ablation: str = "resample") -> Any:
    runs = runs_of(model, pairs_for(model, count=4, lengths=(6, 8)))
    return get_method(method).run(runs, ablation=ablation, direction="noising")  # type: ignore[arg-type]  # one of them


def assert_same(one: Model, other: Model, method: str, ablation: str = "resample") -> None:
    a, b = scores(one, method, ablation), scores(other, method, ablation)
    np.testing.assert_allclose(a.values, b.values, atol=SAME, rtol=0)


# --- the same results ----------------------------------------------------------------------------------------------


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("gpt2", "eap-ig"),
        ("llama", "activation-patching"),
        pytest.param("gpt2", "activation-patching", marks=slow),
        pytest.param("llama", "eap-ig", marks=slow),
    ],
)
def test_scores_from_disk_are_those_of_the_whole_model(family: str, method: str) -> None:
    assert_same(whole(family), on_disk(family), method)


@slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "method", ["eap", "edge-patching", "relp", "atp-star", "acdc", "ifr", "edge-pruning", "path-patching"]
)
def test_every_method_gives_the_same_from_disk(family: str, method: str) -> None:
    assert_same(whole(family), on_disk(family), method)


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[] if f in ("neox", "gemma2") else [slow]) for f in HF_FAMILIES]
)
def test_every_family_is_read_block_by_block(family: str) -> None:
    """Fused projections, norms behind attention, grouped heads, parallel blocks: the logits are those of the whole model."""
    with offloaded("disk"):
        placed = load_model(str(families.folder(family)), device="cpu")
    plain = families.model(family)
    pairs = pairs_for(plain, count=3)
    np.testing.assert_allclose(runs_of(placed, pairs).clean, runs_of(plain, pairs).clean, atol=SAME, rtol=0)
    assert placed.fingerprint == plain.fingerprint


def test_patches_by_hand() -> None:
    plain, placed = whole("llama"), on_disk("llama")
    rng = np.random.default_rng(0)
    masks = [families.random_mask(plain.anatomy.edge_mask, 0.5, seed) for seed in range(3)]
    nodes = [rng.random(len(plain.anatomy.writers)) < 0.3 for _ in range(3)]
    patches = [*(Patch(edges=mask) for mask in masks), *(Patch(nodes=row) for row in nodes)]
    pairs = pairs_for(plain, count=3)
    for ablation in ("resample", "mean", "zero"):
        a, b = (runs_of(m, pairs).patched(patches, ablation=ablation) for m in (plain, placed))  # type: ignore[arg-type]
        np.testing.assert_allclose(a, b, atol=SAME, rtol=0)


@slow
def test_backups_are_the_same() -> None:
    reports = []
    for model in (whole("gpt2"), on_disk("gpt2")):
        runs = runs_of(model, pairs_for(model, count=6))
        report = find_backups(runs, ("resample", "mean"), primaries=(model.anatomy.writers[5],))
        reports.append(report.as_dict())
    assert reports[0]["findings"] == reports[1]["findings"]
    assert reports[0]["sets"] == reports[1]["sets"]


@slow
def test_split_mlps_work() -> None:
    """Neurons as nodes: their rows of the MLP's matrices are taken out of a block that is brought for it."""
    from circuitfind.model.split import split_neurons

    found = []
    for model in (whole("llama"), on_disk("llama")):
        split = split_neurons(model, {1: [[0], [3]], 3: [[2]]})
        found.append(scores(split, "eap").values)
    np.testing.assert_allclose(*found, atol=SAME, rtol=0)


# --- never whole ---------------------------------------------------------------------------------------------------


def owned_bytes(model: Model) -> int:
    """Bytes of the matrices that the pager holds or has on their way."""
    return sum(t.numel() * 4 for w in pager_of(model)._window.values() for t in shelves.distinct(w).values())


def test_at_most_two_blocks_are_held() -> None:
    model = fresh("llama", "disk")
    pager = pager_of(model)
    scores(model, "eap")
    assert pager.brought > 4 * LAYERS
    assert 0 < pager.peak <= 2 * pager.largest
    assert owned_bytes(model) <= pager.largest
    assert all(p.is_meta for p in model.bridge.blocks.parameters()), "the bridge holds no block"


def test_a_block_is_let_go_when_the_next_ones_are_brought() -> None:
    """No pass, no trace and no gradient holds on to a matrix."""
    model = fresh("llama", "disk", "cpu=14kB")  # room for one at a time
    assert model.placement is not None
    assert not model.placement.pager.ahead
    refs: list[tuple[int, weakref.ref[Tensor]]] = []
    real, held = placement.Pager._bring, 0

    def watched(self: placement.Pager, index: int) -> Any:
        nonlocal held
        held = max(held, len({i for i, ref in refs if ref() is not None}))
        found = real(self, index)
        refs.extend((index, weakref.ref(t)) for t in found[0].values())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement.Pager, "_bring", watched)
        scores(model, "eap")
    assert len(refs) > 4 * LAYERS
    assert held <= 1, "besides the one that is being brought no more than the one before is alive"


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_weights_have_memory_of_their_own(
    monkeypatch: pytest.MonkeyPatch, turned: bool, dtype: torch.dtype
) -> None:
    """What is stored, in 32 bits, laid out as it is stored; in memory that is used again when nothing holds it."""
    monkeypatch.setattr(shelves, "MAPPED", 1)
    monkeypatch.setattr(shelves, "_free", {})
    stored = torch.randn(6, 5).to(dtype)
    stored = stored.T if turned else stored
    found = shelves.moved_to(stored, torch.device("cpu"))
    assert found.dtype == torch.float32
    assert torch.equal(found, stored.float())
    assert found.stride() == stored.stride()
    kept, wanted = found[1:], stored[1:].float()
    address = found.untyped_storage().data_ptr()
    del found
    assert shelves.moved_to(stored + 1, torch.device("cpu")).untyped_storage().data_ptr() != address
    assert torch.equal(kept, wanted), "what a view still holds is not taken up again"
    del kept
    assert shelves.moved_to(stored + 1, torch.device("cpu")).untyped_storage().data_ptr() == address


@slow
def test_one_block_at_a_time_gives_the_same() -> None:
    size = pager_of(on_disk("llama")).largest
    model = fresh("llama", "disk", {"cpu": size * 3 // 2})
    assert not pager_of(model).ahead
    assert_same(whole("llama"), model, "eap")
    assert pager_of(model).peak == size


def test_a_budget_keeps_what_fits_and_leaves_room_for_what_is_brought() -> None:
    block = pager_of(on_disk("gpt2")).largest
    budget = 9 * block // 2
    model = fresh("gpt2", None, {"cpu": budget})
    assert model.placement is not None
    facts = model.placement.facts()
    assert set(facts["weights"]) == {"cpu", "disk"}
    assert facts["weights"]["cpu"] > 0
    assert facts["weights"]["cpu"] + facts["brought_at_once"] <= budget
    assert_same(whole("gpt2"), model, "eap")
    assert model.placement.here + pager_of(model).peak <= budget


@slow
def test_learned_constants_hold_no_weights_in_their_graph() -> None:
    model = fresh("gpt2", "disk")
    refs: list[weakref.ref[Tensor]] = []
    most = 0
    real = placement.Pager._bring

    def watched(self: placement.Pager, index: int) -> Any:
        nonlocal most
        alive = [t for ref in refs if (t := ref()) is not None]
        most = max(most, sum(t.numel() * 4 for t in alive))
        found = real(self, index)
        refs.extend(weakref.ref(t) for t in shelves.distinct(found[0]).values())
        return found

    pairs = pairs_for(model, count=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement.Pager, "_bring", watched)
        learned = learn_constants(runs_of(model, pairs), steps=2)
    assert len(refs) > 2 * LAYERS
    assert most <= 2 * pager_of(model).largest
    wanted = learn_constants(runs_of(whole("gpt2"), pairs), steps=2)
    for a, b in zip(learned.z, wanted.z, strict=True):
        torch.testing.assert_close(a, b, atol=SAME, rtol=0)


@slow
def test_checkpoints_in_16_bits_stay_so_where_they_lie(tmp_path: Path) -> None:
    import transformers as hf

    built = hf.AutoModelForCausalLM.from_pretrained(deep("llama"), dtype=torch.bfloat16)
    built.save_pretrained(tmp_path)
    plain = load_model(str(tmp_path), device="cpu")
    with offloaded("disk"):
        placed = load_model(str(tmp_path), device="cpu")
    assert placed.placement is not None
    assert on_disk("llama").placement is not None
    full, half = (m.placement.facts()["weights"]["disk"] for m in (on_disk("llama"), placed))  # type: ignore[union-attr]
    ends = 2 * families.VOCAB * 16 * 4  # the two ends are read as they are used
    assert half - ends == (full - ends) / 2
    pairs = pairs_for(plain, count=3)
    np.testing.assert_array_equal(runs_of(placed, pairs).clean, runs_of(plain, pairs).clean)


# --- several devices -----------------------------------------------------------------------------------------------


class Elsewhere(Tensor):
    """A tensor on another device, as far as CPU tensors can be: what meets a number of another device raises.

    Only ``placement.moved_to`` takes it over, which the tests below replace by one that knows this class.
    """

    tag: str

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        tags = {
            getattr(t, "tag", "here")
            for t in _tensors((args, kwargs or {}))
            if isinstance(t, Elsewhere) or t.is_floating_point()
        }
        if len(tags) > 1:
            raise RuntimeError(f"{func} meets numbers of {sorted(tags)}")
        found = super().__torch_function__(func, types, args, kwargs or {})
        return _tagged(found, tags.pop())


def _tensors(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, (list, tuple)):
        for part in thing:
            yield from _tensors(part)
    elif isinstance(thing, dict):
        yield from _tensors(list(thing.values()))


def _tagged(found: Any, tag: str) -> Any:
    if isinstance(found, Elsewhere):
        found.tag = tag
    return found


def test_what_lies_elsewhere_does_raise() -> None:
    a = _tagged(torch.ones(2, 2).as_subclass(Elsewhere), "cuda:1")
    assert (a @ a).tag == "cuda:1"
    for wrong in (
        lambda: a @ torch.ones(2),
        lambda: torch.ones(2) + a,
        lambda: torch.cat((a, torch.ones(2, 2))),
    ):
        with pytest.raises(RuntimeError, match="meets numbers of"):
            wrong()


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two devices besides this one; the list says from where weights were moved."""
    moves: list[str] = []
    real = shelves.moved_to

    def moved(stored: Tensor, device: torch.device) -> Tensor:
        moves.append(getattr(stored, "tag", "here"))
        return real(stored.as_subclass(Tensor), device)

    for module in (placement, shelves):
        monkeypatch.setattr(module, "moved_to", moved)
    monkeypatch.setattr(device_map, "_check_devices", lambda *args: None)
    monkeypatch.setattr(
        checkpoint.Placement,
        "_stored",
        lambda self, tensor, where: _tagged(tensor.clone().as_subclass(Elsewhere), where),
    )
    return moves


SHARDS = {
    "gpt2": {"": "cpu", "transformer.h.1": 1, "transformer.h.2": 1, "transformer.h.3": 2, "lm_head": 2},
    "llama": {"": 1, "model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.3": 2},
}


@pytest.mark.parametrize("family", ["gpt2", pytest.param("llama", marks=slow)])
def test_sharded_over_devices(family: str, devices: list[str]) -> None:
    """Weights of other devices reach no pass but by the pager's move, and results are those of the whole model."""
    model = fresh(family, SHARDS[family])
    assert model.placement is not None
    assert set(model.placement.bytes_on) == {"cpu", "cuda:1", "cuda:2"}
    devices.clear()
    for method in ("eap", "activation-patching"):
        assert_same(whole(family), model, method)
    assert set(devices) == {"cuda:1", "cuda:2"}


def test_a_weight_that_is_not_moved_is_caught(devices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail: a pager that hands out what it stores does not get away with it."""
    model = fresh("gpt2", SHARDS["gpt2"])
    monkeypatch.setattr(placement.Pager, "_moved", lambda self, stored: stored)
    with pytest.raises(RuntimeError, match="meets numbers of"):
        scores(model, "eap")


# --- what is refused -----------------------------------------------------------------------------------------------


def test_a_block_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match=r"one block of the model takes .*kB") as caught:
        fresh("gpt2", None, "cpu=5kB")
    assert "--max-memory cpu=" in caught.value.hint


@pytest.mark.parametrize(
    ("modules", "says"),
    [
        ({"": "cpu", "transformer.h.9": "disk"}, "'transformer.h.9' that the model does not have"),
        ({"": "cpu", "transformer.h.1.mlp": "disk"}, "splits a block"),
        ({"transformer.h": "disk"}, "has no device for"),
        ({"": 3}, "there is no GPU 3"),
    ],
)
def test_device_maps_that_fit_no_model(modules: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        fresh("gpt2", modules)


def test_what_needs_the_whole_model_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="offloaded has no second copy"):
        shuffled(on_disk("gpt2"), 0)
    with pytest.raises(UnsupportedError, match="TransformerLens format"), offloaded("disk"):
        load_model(str(families.folder("ln")), device="cpu")


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    model = fresh("gpt2", "disk", None, tmp_path)
    (folder,) = tmp_path.iterdir()
    for path in folder.glob("block-*"):
        path.unlink()
    with pytest.raises(RunError, match="cannot be read again"):
        scores(model, "eap")
    del model
    gc.collect()
    assert not list(tmp_path.iterdir()), "the folder goes with the model"


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(RunError, match="cannot be written to the offload folder"):
        fresh("gpt2", "disk", None, tmp_path)


def test_plain_loading_is_as_it_was() -> None:
    assert not current().placed
    assert whole("gpt2").placement is None
    assert replace(current()).activations == "auto"


# --- on a GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("where", ["disk", "cpu"])
def test_a_gpu_with_little_room(where: str) -> None:
    with offloaded(where):
        model = load_model(str(deep("llama")), device="cuda")
    for method in ("eap-ig", "activation-patching"):
        a, b = scores(whole("llama"), method), scores(model, method)
        np.testing.assert_allclose(a.values, b.values, atol=1e-4, rtol=1e-3)
    assert pager_of(model).peak <= 2 * pager_of(model).largest


@pytest.mark.gpu
def test_two_gpus() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    with offloaded({"": 1, "model.embed_tokens": 0, "model.layers.0": 0}):
        model = load_model(str(deep("llama")), device="cuda:0")
    a, b = scores(whole("llama"), "eap-ig"), scores(model, "eap-ig")
    np.testing.assert_allclose(a.values, b.values, atol=1e-4, rtol=1e-3)


# --- folders -------------------------------------------------------------------------------------------------------


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """And neither the folder of a process that lives, nor what merely has such a name."""
    offload = Offload("disk", folder=tmp_path)
    mine = make_folder(offload)
    left = tmp_path / f"{PREFIX}left"
    left.mkdir()
    (left / LOCK).touch()
    (left / "block-0.safetensors").touch()
    theirs = tmp_path / f"{PREFIX}other"
    theirs.mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(left)
    other = make_folder(offload)
    assert mine.is_dir()
    assert theirs.is_dir()
    assert not left.exists()
    for path in (mine, other):
        remove_folder(path)
        assert not path.exists()


def test_an_offload_folder_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(UsageError, match="is a file"):
        Offload("disk", folder=path)
    with pytest.raises(UsageError, match="nothing can be written to the offload folder"):
        make_folder(Offload("disk", folder=path / "below"))
