"""What --device-map, --max-memory and the others say, and what they may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from circuitfind.errors import UsageError
from circuitfind.offload import current, offloaded, read_max_memory, resolve
from circuitfind.sizes import parse_size, size_text


def test_budgets_by_device() -> None:
    wanted = {0: 20 * 10**9, 1: 10**6, "cpu": 64 * 10**9}
    assert read_max_memory("0=20GB, cuda:1=1MB,cpu=64GB") == wanted
    assert read_max_memory({0: "20GB", 1: 10**6, "CPU": "64GB"}) == wanted
    assert resolve(max_memory="cpu=1GB").device_map == "auto"
    assert resolve().device_map is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("20GB", "does not say how much"),
        ("0=", "does not say how much"),
        (",", "does not say how much"),
        ("0=20XB", "no amount of memory"),
        ("disk=20GB", "no amount for the disk"),
        ("gpu=20GB", "'gpu' is no device"),
        ("-1=20GB", "'-1' is no device"),
        ("0=1GB,0=2GB", "names '0' twice"),
        ("cpu=-1GB", "no amount of memory"),
    ],
)
def test_budgets_that_say_nothing(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_max_memory(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "is no mapping"),
        ("{}", "is no mapping"),
        ('{"a": "gpu"}', "'gpu' is no device"),
        ('{"a": true}', "'True' is no device"),
        ('{"a": null}', "'None' is no device"),
    ],
)
def test_device_maps_that_cannot_be_read(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=says) as caught:
        resolve(str(path))
    assert str(path) in str(caught.value.where)


def test_a_device_map_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text('{"model.embed_tokens": 0, "model.layers.0": "cuda:1", "": "DISK"}', encoding="utf-8")
    assert resolve(str(path)).device_map == {"model.embed_tokens": 0, "model.layers.0": 1, "": "disk"}
    with pytest.raises(UsageError, match="cannot be read"):
        resolve(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"device_map": "dsk"}, "no device map is named 'dsk'"),
        ({"activations": "gpu"}, "not kept in 'gpu'"),
        ({"folder": "/tmp"}, "says nothing where nothing is offloaded"),
    ],
)
def test_words_that_are_not_known(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        resolve(**given)


def test_it_holds_for_the_block_alone() -> None:
    before = current()
    with offloaded("disk", offload_activations="none") as inside:
        assert current() is inside
        with offloaded(max_memory="cpu=1GB"):
            assert current().device_map == "auto"
        assert current() is inside
        with pytest.raises(UsageError), offloaded("nowhere"):
            pass
        assert current() is inside
    assert current() is before


@pytest.mark.parametrize("size", [0, 12, 1000, 123_000, 4_560_000, 7_890_000_000])
def test_sizes_can_be_given_back(size: int) -> None:
    assert parse_size(size_text(size)) == size
