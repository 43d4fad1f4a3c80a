"""Plans from configurations: the same counts and bytes as plans of the loaded models, and honest where nothing is there."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitfind.engine.chosen import working_with
from circuitfind.errors import ModelError, PromptError, UnsupportedError, UsageError
from circuitfind.model import hub
from circuitfind.model.configurations import from_table
from circuitfind.plan import Asked, Plan, make_plan
from circuitfind.plan.room import room_of
from circuitfind.plan.speed import MOST_WEIGHTS, timed
from circuitfind.plan.unloaded import find
from circuitfind.plan.words import WordTokenizer
from circuitfind.session import Session
from circuitfind.settings import resolve
from circuitfind.task.spec import find_tasks, load_task
from tests import families

FAST = Asked(always=True, tflops=1.0)


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    """A task of token ids of several lengths, which any model can read."""
    pairs = [
        {"clean": list(pair.clean), "corrupted": list(pair.corrupted), "answer": [1], "wrong": [2]}
        for pair in families.random_pairs(count=12, lengths=(4, 6, 9))
    ]
    path = tmp_path / "ids.yaml"
    text = {"name": "ids", "model": "mini", "prompts": {"pairs": pairs}}
    path.write_text(json.dumps(text), encoding="utf-8")
    return path


def session(task: Path | str, model: Path | str, *, memory: int | None = 10**6, **flags: Any) -> Session:
    spec = load_task(str(task))
    return Session(spec, resolve(spec, model=str(model), **flags), "cpu", memory=memory)


def planned(made: Session, tmp_path: Path, asked: Asked | None = None) -> Plan:
    return make_plan(made, tmp_path / "outputs", force=False, asked=asked)


def counts(plan: Plan) -> Any:
    """All of a plan but seconds, and what an estimate adds."""
    stages = [replace(stage, seconds=0.0) for stage in plan.stages]
    return stages, plan.prompts, plan.tokens, plan.memory, plan.memory_bytes


@pytest.mark.parametrize(
    ("family", "flags"),
    [
        ("gpt2", {}),
        ("neox", {"method": "eap-ig-activations"}),
        families.costly("llama", {"edges": 5}),
        pytest.param("qwen3", {"method": "acdc"}, marks=pytest.mark.slow),
        families.costly("rms-gated", {"method": "activation-patching"}),
        ("bidirectional", {"ablation": "mean"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize(
    "memory", [20_000, pytest.param(10**7, marks=pytest.mark.slow)], ids=["little", "much"]
)
def test_the_plan_from_a_configuration_is_that_of_the_loaded_model(
    family: str, flags: dict[str, Any], memory: int, ids: Path, tmp_path: Path
) -> None:
    """Passes of each stage, batches, rows and bytes, exactly."""
    folder = families.folder(family)
    loaded = planned(session(ids, folder, memory=memory, **flags), tmp_path)
    bare = tmp_path / folder.name
    bare.mkdir()
    shutil.copy(folder / "config.json", bare)
    found = planned(session(ids, bare, memory=memory, **flags), tmp_path, Asked(tflops=1.0))
    assert counts(found) == counts(loaded)
    assert loaded.memory is not None
    assert (loaded.memory.batches > 1) == (memory == 20_000)
    assert loaded.estimate is None
    assert found.estimate is not None
    assert found.estimate.why == "its weights are not there"


def test_a_model_with_a_tokenizer_is_planned_with_it(tmp_path: Path) -> None:
    made = session("gendered-pronoun", "mini", memory=10**8, count=8)
    found = planned(made, tmp_path, FAST)
    assert counts(found) == counts(planned(made, tmp_path))
    assert found.estimate is not None
    assert found.estimate.assumed == ()


def test_a_planted_model_is_planned_with_its_own_prompts(tmp_path: Path) -> None:
    made = session("and-gate", "planted/and-gate", count=8)
    assert counts(planned(made, tmp_path, FAST)) == counts(planned(made, tmp_path))


def test_seconds_are_operations_over_speed(ids: Path, tmp_path: Path) -> None:
    made = session(ids, families.folder("gpt2"))
    found, faster = (planned(made, tmp_path, Asked(always=True, tflops=n)) for n in (1e-6, 2e-6))
    assert found.estimate is not None
    shape, tokens = found.estimate.shape, 12 * 9
    assert found.tokens == tokens, "padding is computed too"
    flops = tokens * shape.flops(9) + 12 * shape.unembed_flops
    seconds = {stage.name: stage.seconds for stage in found.stages}
    assert seconds["prompts"] == pytest.approx(flops / 1e6)
    assert found.seconds - 1 == pytest.approx(2 * (faster.seconds - 1)), "but for the pictures"
    with working_with("processes", 4):
        several = planned(made, tmp_path, Asked(always=True, tflops=1e-6))
    assert (several.workers, found.workers) == (4, 1)
    assert several.as_dict()["shared_seconds"] == pytest.approx(several.seconds / 4)
    assert several.seconds == pytest.approx(found.seconds)


def test_a_shape_is_timed_on_blocks_of_it() -> None:
    """Large blocks are cut down at their full width; what is timed is a positive number of operations."""
    small, large = from_table("EleutherAI/pythia-14m"), from_table("llama-3-70b")
    assert small is not None
    assert large is not None
    found = timed(small.shape, 2, 5, torch.device("cpu"))
    assert found.timed
    assert 1e6 < found.flops < 1e16
    assert "a block of this shape, 2 x 5 tokens on cpu" in found.told
    from circuitfind.plan.speed import _part

    part = _part(large.shape)
    assert part.block_parameters <= MOST_WEIGHTS
    assert (part.d_model, part.n_heads // part.n_kv_heads) == (8192, 8)


# --- prompts --------------------------------------------------------------------------------------------------


def in_words(name: str) -> bool:
    """Whether the prompts of a task are text, and whole words of it are what lines up."""
    spec = load_task(name)
    own = spec.prompts.zoo is not None or spec.prompts.dataset is not None or spec.vocab is not None
    return not own and name != "acronyms"


@pytest.mark.parametrize("names", [["greater-than", "docstring"], pytest.param([], marks=pytest.mark.slow)])
def test_every_task_of_text_can_be_counted_in_words(names: list[str], tmp_path: Path) -> None:
    every = [name for name in find_tasks() if in_words(name)]
    assert len(every) > 15
    for name in names or every:
        found = planned(session(name, "gpt2", count=3), tmp_path, FAST)
        assert 0 < (found.prompts or 0) <= 3, name
        assert (found.tokens or 0) >= 3 * 2, name


def test_prompts_of_parts_of_words_cannot_be_counted(tmp_path: Path) -> None:
    """The names are of one token each for a tokenizer that splits words, and of two words here."""
    pair = {"clean": "Call me Mary", "corrupted": "Call me Mary-Ann", "answer": " a", "wrong": " b"}
    path = tmp_path / "parts.yaml"
    path.write_text(json.dumps({"name": "parts", "model": "gpt2", "prompts": {"pairs": [pair]}}))
    for asked in (FAST, replace(FAST, prompt_tokens=9)):
        with pytest.raises(PromptError, match="without the model's tokenizer") as caught:
            planned(session(path, "gpt2"), tmp_path, asked)
        assert "--count N --prompt-tokens N" in caught.value.hint
    found = planned(session(path, "gpt2", count=3), tmp_path, replace(FAST, prompt_tokens=9))
    assert (found.prompts, found.tokens) == (3, 27)


def test_words_are_near_to_tokens(tmp_path: Path) -> None:
    """Mini's own tokenizer against words, on prompts of text."""
    real = planned(session("ioi", "mini", count=8), tmp_path, FAST)
    words = planned(session("ioi", "gpt2", count=8), tmp_path, FAST)
    assert words.tokens == pytest.approx(real.tokens, rel=0.25)
    assert words.estimate is not None
    assert any("counts as one token" in text for text in words.estimate.assumed)


def test_words() -> None:
    tokenizer = WordTokenizer(bos=True)
    text = "When Mary's in 1742, _x"
    found = tokenizer.encode(text)
    assert [text[start:stop] for _, start, stop in found] == [
        "When", " Mary", "'", "s", " in", " 17", "42", ",", " _", "x",
    ]  # fmt: skip
    assert [tokenizer.piece(token) for token, _, _ in found][:2] == ["When", " Mary"]
    assert tokenizer.encode("When")[0][0] == found[0][0]
    assert (tokenizer.bos, WordTokenizer(bos=False).bos, tokenizer.bos_id) == (0, None, 0)


def test_prompt_tokens_stand_for_a_tokenizer(tmp_path: Path) -> None:
    asked = replace(FAST, prompt_tokens=100)
    found = planned(session("ioi", "llama-2-7b", count=6), tmp_path, asked)
    assert (found.prompts, found.tokens) == (6, 600)
    assert found.estimate is not None
    assert "every prompt has 100 tokens" in found.estimate.assumed
    with pytest.raises(PromptError, match="5000 tokens, but llama-2-7b reads at most 4096"):
        planned(session("ioi", "llama-2-7b", count=6), tmp_path, replace(FAST, prompt_tokens=5000))


# --- which models are not loaded ------------------------------------------------------------------------------


def origin(model: str | Path, asked: Asked = FAST) -> str | None:
    found = find(session("ioi", model, count=3), asked)
    return None if found is None else found.known.origin


def test_a_model_that_is_here_and_fits_is_loaded(tmp_path: Path) -> None:
    plain = Asked()
    assert origin("mini", plain) is None
    assert origin(families.folder("gpt2"), plain) is None
    for name in (tmp_path / "none", "$NOTHING/model", "~/no/where", "a/b/c"):
        assert origin(name, plain) is None, "the loader says what is wrong"
    (tmp_path / "pickled").mkdir()
    shutil.copy(families.folder("gpt2") / "config.json", tmp_path / "pickled")
    (tmp_path / "pickled" / "pytorch_model.bin").touch()
    assert origin(tmp_path / "pickled", plain) is None, "the loader refuses a pickle"


def test_what_does_not_fit_is_not_loaded(ids: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = families.folder("gpt2")
    monkeypatch.setattr("circuitfind.model.memory.free_bytes", lambda device: 4 * 9248)
    found = planned(session(ids, folder, memory=None), tmp_path, Asked())
    assert found.estimate is not None
    assert found.estimate.why == "its weights do not fit"
    assert not found.estimate.room.fits
    assert any("8 GB are planned for" in text for text in found.estimate.assumed)
    assert found.memory is not None
    assert found.memory.budget == 8 * 10**9
    from circuitfind.offload import offloaded

    with offloaded(device_map="disk"):
        assert find(session(ids, folder), Asked()) is None, "weights that are placed elsewhere need not fit"


def test_hub_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = Asked()
    assert origin("gpt2", plain) == "the built-in table (gpt2)"
    for asked in (plain, FAST):
        with pytest.raises(ModelError, match="cannot find the model 'some-lab/some-model', nor sizes of it"):
            origin("some-lab/some-model", asked)
    with pytest.raises(ModelError) as caught:
        origin("gpt2-medum", plain)
    assert "did you mean 'gpt2-medium'" in caught.value.hint
    # A configuration in the cache comes before the table, and weights in the cache are loaded.
    shutil.copy(families.folder("llama") / "config.json", tmp_path)
    files = {"config.json": tmp_path / "config.json"}
    monkeypatch.setattr(hub, "cached", lambda name, file="config.json": files.get(file))
    assert origin("gpt2", plain) == "config.json in the hub's cache"
    files["model.safetensors"] = tmp_path / "model.safetensors"
    assert origin("gpt2", plain) is None
    assert origin("gpt2") == "config.json in the hub's cache"


def test_with_a_network_the_configuration_alone_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked_for = []

    def download(name: str, file: str) -> str:
        asked_for.append((name, file))
        shutil.copy(families.folder("llama") / "config.json", tmp_path)
        return str(tmp_path / "config.json")

    monkeypatch.setattr("circuitfind.plan.where.offline", lambda: False)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert origin("some-lab/some-model", Asked()) == "config.json of the hub"
    assert asked_for == [("some-lab/some-model", "config.json")]

    def fail(name: str, file: str) -> str:
        raise OSError("401: gated")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    assert origin("llama-2-7b", Asked()) == "the built-in table (meta-llama/Llama-2-7b-hf)"
    with pytest.raises(ModelError, match="the hub gave no config"):
        origin("some-lab/some-model", Asked())


def test_configurations_that_are_given() -> None:
    folder = families.folder("llama")
    own = read = str(folder / "config.json")
    assert origin(own) == f"config.json of {read}"
    assert origin("llama-2-7b", replace(FAST, model=(own,))) == f"config.json of {read}"
    changed = replace(FAST, model=(own, "n_layers=7"))
    found = find(session("ioi", "mine", count=3), changed)
    assert found is not None
    assert (found.shape.n_layers, found.shape.d_model, found.known.name) == (7, 16, "mine")
    assert origin("llama-2-7b", replace(FAST, model=("n_layers=7",))).endswith("with sizes given")  # type: ignore[union-attr]
    sizes = ("n_layers=2,n_heads=4", "d_model=16,d_vocab=99")
    assert origin("mini", replace(FAST, model=sizes)) == "sizes given"
    with pytest.raises(UsageError, match="names two files"):
        origin("mine", replace(FAST, model=(own, own)))
    with pytest.raises(ModelError, match="there is no file"):
        origin("mine", replace(FAST, model=("nothing.json",)))


def test_what_cannot_be_planned(ids: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs both models loaded"):
        find(session(ids, "gpt2", model_b="gpt2-medium"), FAST)
    with pytest.raises(UsageError, match="this one would be"):
        find(session(ids, "mini"), Asked(tflops=1.0))
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}', encoding="utf-8")
    with pytest.raises(UnsupportedError, match="'mixtral'"):
        find(session(ids, tmp_path), Asked())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompt_tokens": 0}, "is no length"),
        ({"tflops": 0.0}, "is no speed"),
        ({"tflops": -1.0}, "is no speed"),
        ({"tflops": float("nan")}, "is no speed"),
        ({"tflops": float("inf")}, "is no speed"),
    ],
)
def test_what_is_asked_for_makes_sense(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Asked(**options)


# --- room -----------------------------------------------------------------------------------------------------


def test_room() -> None:
    seven, seventy = (from_table(name) for name in ("llama-2-7b", "llama-2-70b"))
    assert seven is not None
    assert seventy is not None
    held = 4 * (seven.shape.weights + seven.shape.copies)
    assert held == 4 * (6_738_415_616 + 32 * 4 * 4096**2)
    there = room_of(seven.shape, 4, 10**9, "cuda", held + 10**9, 10**11)
    assert (there.fits, there.maps) == (True, ())
    tight = room_of(seven.shape, 4, 10**9, "cuda", held + 10**9 - 1, 10**11)
    assert (tight.fits, tight.maps) == (False, ("cpu", "disk"))
    assert room_of(seven.shape, 4, 10**9, "cuda", 24 * 10**9, 10**10).maps == ("disk",)
    assert room_of(seven.shape, 4, 10**9, "cpu", 2 * 10**9, 10**10).maps == ()
    assert tight.gpus == {24: 2, 48: 1, 80: 1, 141: 1}
    many = room_of(seventy.shape, 4, 10**9, "cuda", 80 * 10**9, 10**11)
    assert many.gpus[24] is None or many.gpus[24] > many.gpus[80]  # type: ignore[operator]
    # 276 GB of weights: half of the GPU that computes, and 0.9 of each other one.
    assert many.gpus[80] == 1 + -(-(4 * seventy.shape.parameters - 0.5 * 73.6e9) // (0.9 * 73.6e9))
    assert many.as_dict()["gpus"]["80"] == many.gpus[80]
