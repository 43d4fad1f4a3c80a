"""Sizes of models from their configurations alone: equal to those of the loaded models, and to what was published."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from circuitfind.errors import CircuitfindError, ModelError, UnsupportedError, UsageError
from circuitfind.model.configurations import from_table, read_configuration, shape_of, with_sizes
from circuitfind.model.load import load_model
from circuitfind.model.memory import copied_bytes, token_bytes
from circuitfind.model.published import PUBLISHED, plain, published
from circuitfind.model.shapes import LONGEST, Shape
from circuitfind.zoo import trained_folder
from tests import families

PARAMETERS = {
    "distilgpt2": 81_912_576,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "EleutherAI/pythia-14m": 14_067_712,
    "EleutherAI/pythia-70m": 70_426_624,
    "EleutherAI/pythia-160m": 162_322_944,
    "EleutherAI/pythia-410m": 405_334_016,
    "EleutherAI/pythia-1b": 1_011_781_632,
    "EleutherAI/pythia-1.4b": 1_414_647_808,
    "EleutherAI/pythia-2.8b": 2_775_208_960,
    "EleutherAI/pythia-6.9b": 6_857_302_016,
    "EleutherAI/pythia-12b": 11_846_072_320,
    "TinyLlama/TinyLlama-1.1B": 1_100_048_384,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "Qwen/Qwen2-0.5B": 494_032_768,
    "Qwen/Qwen2-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "google/gemma-2b": 2_506_172_416,
    "google/gemma-7b": 8_537_680_896,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
}
"""As their model cards say."""


def _same(folder: Path, model: Any) -> None:
    shape = read_configuration(folder).shape
    assert shape.anatomy == model.anatomy
    assert shape.n_edges == model.anatomy.n_edges
    assert shape.widths.writers == len(model.anatomy.writers)
    for edges in (True, False):
        assert shape.widths.token_bytes(4, edges=edges) == token_bytes(model, edges=edges)
    assert 4 * shape.weights == sum(p.numel() * p.element_size() for p in model.bridge.parameters())
    assert 4 * shape.copies == copied_bytes(model)
    own = ("d_model", "d_head", "d_mlp", "n_ctx", "causal")
    assert {name: getattr(shape, name) for name in own} == {name: getattr(model, name) for name in own}
    assert (shape.d_vocab, shape.d_vocab_out) == (model.n_vocab, model.n_vocab_out)


@pytest.mark.parametrize("family", [*families.COSTLY, pytest.param("solu-ln", marks=pytest.mark.slow)])
def test_a_shape_is_that_of_the_loaded_model(family: str) -> None:
    """Exactly: writers, edges, bytes of weights, of copies and of a token."""
    _same(families.folder(family), families.model(family))


@pytest.mark.slow
def test_the_shape_of_mini() -> None:
    _same(trained_folder("mini"), load_model("mini", device="cpu"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "gemma", "head_dim": 6, "hidden_act": "gelu_pytorch_tanh"},
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        {"model_type": "llama", "head_dim": 6, "num_key_value_heads": 4},
        {"model_type": "qwen3", "attention_bias": True},
        {"model_type": "gpt_neox", "tie_word_embeddings": True},
        {"model_type": "gpt2", "n_inner": 24, "max_position_embeddings": 17},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_what_configurations_say_besides(changes: dict[str, Any], tmp_path: Path) -> None:
    """Types and keys that ``FAMILIES`` have none of, against models of random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 24,
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    given = {**sizes, **changes}
    if given["model_type"] in ("gpt2", "gpt_neox"):
        del given["num_key_value_heads"]
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**given))
    for parameter in made.parameters():
        families.perturb(parameter.data)
    made.save_pretrained(tmp_path)
    _same(tmp_path, load_model(str(tmp_path), device="cpu"))


def test_the_table_has_the_parameters_that_were_published() -> None:
    for name, parameters in PARAMETERS.items():
        found = from_table(name)
        assert found is not None
        assert found.shape.parameters == parameters, name
        assert f"({name})" in found.origin
    for name, content in PUBLISHED.items():
        shape = shape_of(content, name)
        assert shape.n_edges > shape.widths.writers, name


def test_edges_are_counted_without_a_table_of_them() -> None:
    for shape in (shape_of(PUBLISHED[name], name) for name in ("gpt2", "EleutherAI/pythia-70m")):
        assert shape.n_edges == shape.anatomy.n_edges
    gpt2 = shape_of(PUBLISHED["gpt2"], "gpt2")
    alone = replace(gpt2, d_mlp=0)
    assert (gpt2.n_edges, alone.n_edges) == (32_491, alone.anatomy.n_edges)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("gpt2", "gpt2"),
        ("openai-community/gpt2-xl", "gpt2-xl"),
        ("llama-2-7b", "meta-llama/Llama-2-7b-hf"),
        ("meta-llama/Llama-2-70b-chat-hf", "meta-llama/Llama-2-70b-hf"),
        ("llama-3-8b", "meta-llama/Meta-Llama-3-8B"),
        ("meta-llama/Meta-Llama-3-70B-Instruct", "meta-llama/Meta-Llama-3-70B"),
        ("EleutherAI/pythia-1.4b-deduped", "EleutherAI/pythia-1.4b"),
        ("google/gemma-2-9b-it", "google/gemma-2-9b"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B"),
        ("gpt", None),
        ("some-lab/some-model", None),
    ],
)
def test_names_of_the_table(name: str, entry: str | None) -> None:
    assert published(name) == entry


def test_no_two_entries_have_one_short_name() -> None:
    assert len({plain(name) for name in PUBLISHED}) == len(PUBLISHED)


def test_flops_are_two_for_each_weight_of_a_matrix_and_four_for_each_pair_of_positions() -> None:
    shape = shape_of(PUBLISHED["meta-llama/Llama-2-7b-hf"], "llama")
    d, m = 4096, 11008
    matrices = 32 * (4 * d * d + 3 * d * m)
    assert shape.flops(100) == 2 * matrices + 32 * 4 * 100 * d
    assert shape.unembed_flops == 2 * d * 32000
    assert shape.parameters == matrices + 32 * 2 * d + d + 2 * 32000 * d


# --- what is given by hand ------------------------------------------------------------------------------------


def test_sizes_alone_make_a_shape() -> None:
    found = with_sizes(None, ["n_layers=2,n_heads=4", "d_model=16", "d_vocab=1_000, gated=yes"], "mine")
    shape = found.shape
    assert (shape.n_layers, shape.n_heads, shape.n_kv_heads, shape.d_head) == (2, 4, 4, 4)
    assert (shape.d_mlp, shape.d_vocab, shape.d_vocab_out, shape.n_ctx) == (64, 1000, 1000, LONGEST)
    assert shape.gated
    assert found.origin == "sizes given"
    assert with_sizes(None, ["n_layers=1,n_heads=1,d_model=2,d_vocab=3,d_mlp=0"], "mine").shape.d_mlp == 0


def test_sizes_over_a_configuration() -> None:
    base = from_table("gpt2")
    assert base is not None
    found = with_sizes(base, ["n_layers=24", "n_heads=16", "d_model=1024", "d_mlp=4096"], "gpt2")
    medium = from_table("gpt2-medium")
    assert medium is not None
    assert found.shape == medium.shape
    assert found.origin == "the built-in table (gpt2), with sizes given"
    longer = with_sizes(base, ["n_ctx=2048"], "gpt2").shape
    assert longer.parameters - base.shape.parameters == 1024 * 768
    groups = with_sizes(from_table("llama-3-8b"), ["n_heads=64"], "llama").shape
    assert (groups.n_kv_heads, groups.d_head) == (8, 64)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["n_layers=2"], "lacks n_heads, d_model, d_vocab"),
        (["n_layer=2"], "knows no 'n_layer'"),
        (["32"], "neither a file nor KEY=VALUE"),
        ([""], "neither a file nor KEY=VALUE"),
        (["n_layers=many"], "n_layers=many is no number"),
        (["n_layers=0"], "n_layers=0 is no number"),
        (["n_layers=-3"], "n_layers=-3 is no number"),
        (["n_layers=1e9"], "n_layers=1e9 is no number"),
        (["n_layers=" + "9" * 5000], "is no number"),
        (["gated=maybe"], "gated=maybe is not yes or no"),
        (["n_layers=2,n_heads=3,d_model=16,d_vocab=9"], "3 heads do not divide a stream of width 16"),
        (["n_layers=999999,n_heads=4,d_model=16,d_vocab=9"], "more than 10000"),
        (["n_layers=9999,n_heads=9999,d_model=9999,d_vocab=9"], "9999 layers of 9999 heads"),
        (["n_layers=2,n_heads=4,n_kv_heads=3,d_model=16,d_vocab=9"], "3 key/value heads cannot serve 4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sizes_that_make_no_model(given: list[str], says: str) -> None:
    with pytest.raises((UsageError, ModelError)) as caught:
        with_sizes(None, given, "mine")
    assert says in str(caught.value)
    assert len(str(caught.value)) < 6000


# --- config.json ----------------------------------------------------------------------------------------------

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 40,
}


def _read(content: str, folder: Path) -> Shape:
    (folder / "config.json").write_text(content, encoding="utf-8")
    return read_configuration(folder).shape


def test_keys_that_old_files_leave_out(tmp_path: Path) -> None:
    shape = _read(json.dumps(LLAMA), tmp_path)
    assert (shape.n_kv_heads, shape.d_head, shape.n_ctx, shape.tied) == (4, 4, 2048, False)
    assert read_configuration(tmp_path / "config.json").shape == shape, "the file or its folder"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "cannot be read"),
        ('{"model_type": "llama",', "cannot be read"),
        ("[1, 2]", "it is no mapping"),
        ("{}", "the key 'model_type' is missing"),
        ('{"model_type": 7}', "models of type '7'"),
        ('{"model_type": ["llama"]}', "models of type"),
        ('{"model_type": "lama"}', "did you mean 'llama'"),
        ('{"model_type": "mixtral"}', "are not planned for"),
        ('{"model_type": "gpt2", "add_cross_attention": true}', "cross-attention"),
        ('{"format": "transformer-lens"}', "the key 'config' is missing"),
        ('{"format": "transformer-lens", "config": {"d_model": 4}}', "the size 'n_heads' is missing"),
        (json.dumps({**LLAMA, "hidden_size": None}), "the size 'hidden_size' is missing"),
        (json.dumps({**LLAMA, "hidden_size": "16"}), "hidden_size is"),
        (json.dumps({**LLAMA, "hidden_size": True}), "hidden_size is"),
        (json.dumps({**LLAMA, "hidden_size": -16}), "hidden_size is"),
        (json.dumps({**LLAMA, "hidden_size": 16.5}), "hidden_size is"),
        (json.dumps({**LLAMA, "hidden_size": 15}), "4 heads do not divide"),
        (json.dumps({**LLAMA, "hidden_size": 10**12}), "which no model has"),
        ('{"model_type": "llama", "hidden_size": 1' + "0" * 9000 + "}", "cannot be read"),
        (json.dumps({**LLAMA, "num_hidden_layers": 10**9}), "which no model has"),
        (json.dumps({**LLAMA, "head_dim": 10**9}), "is none"),
        (json.dumps({**LLAMA, "num_key_value_heads": 3}), "3 key/value heads cannot serve"),
        (json.dumps({**LLAMA, "tie_word_embeddings": "no"}), "not true or false"),
        (json.dumps({**LLAMA, "model_type": "gemma2"}), "the size 'num_key_value_heads' is missing"),
    ],
    ids=range(24),
)
def test_files_that_are_no_configuration(content: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(CircuitfindError) as caught:
        _read(content, tmp_path)
    assert isinstance(caught.value, (ModelError, UnsupportedError))
    assert says in str(caught.value)
    assert "config.json" in (caught.value.where or "")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no file .*config\.json"):
        read_configuration(tmp_path)
