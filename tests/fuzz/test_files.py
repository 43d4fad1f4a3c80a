"""Damaged files: whatever stands in them, the program reads it or says in plain words what is wrong, in time and in memory.

Cases are drawn by hypothesis from the seed ``FUZZ_SEED`` (0 if it is not set), so that a failure can be had again. ``make test``
runs a few hundred, ``make test-all`` more than twenty thousand; ``FUZZ_CASES`` says how many.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.finished import plainly
from tests.fuzz import damage
from tests.fuzz.oracle import judge
from tests.fuzz.targets import NAMES, Target

SEED = int(os.environ.get("FUZZ_SEED", "0"))
SHORT, LONG = 300, 21_000


def contents(target: Target) -> st.SearchStrategy[bytes]:
    """Damaged contents of a target's file."""
    whole = st.sampled_from(target.good)
    torn = st.builds(
        lambda data, steps, code: damage.recoded(damage.torn(data, steps), code),
        whole,
        damage.cuts,
        damage.encodings,
    )
    free = st.binary(max_size=200)
    if target.form in ("json", "jsonl"):
        return st.one_of(st.builds(_json(target.form), whole, damage.operations), torn, free)
    if target.form == "npz":
        return st.one_of(_archives(target), torn)
    if target.form == "tensors":
        return st.one_of(st.builds(_tensors, whole, damage.operations, st.sampled_from(LENGTHS)), torn)
    if target.form == "binary":
        return st.one_of(_archives(target), torn)
    text = st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
    return st.one_of(torn, torn, torn, text, free)


LENGTHS = (None, None, None, 0, 1, 2**31, 2**63, 2**64 - 1)


def _json(form: str) -> Callable[[bytes, list[Any]], bytes]:
    import json

    def one(data: bytes, steps: list[Any]) -> bytes:
        return damage.as_json(damage.changed(json.loads(data), steps))

    def lines(data: bytes, steps: list[Any]) -> bytes:
        every = data.splitlines()
        at = steps[0][1] % len(every)
        return b"\n".join([*every[:at], one(every[at], steps), *every[at + 1 :]]) + b"\n"

    return one if form == "json" else lines


def _tensors(data: bytes, steps: list[Any], length: int | None) -> bytes:
    header, body = damage.tensors_header(data)
    return damage.as_tensors(damage.changed(header, steps), body, length)


def _archives(target: Target) -> st.SearchStrategy[bytes]:
    (data, *_) = target.good
    members = damage.npz_members(data)
    name = st.sampled_from([*members, "../../x.npy", "x", "/x.npy"])
    content = st.one_of(
        st.builds(damage.npy, *(damage.headers.map(lambda h, i=i: h[i]) for i in range(4))),
        damage.loose_arrays().map(damage.array_bytes),
        st.builds(damage.torn, st.sampled_from(list(members.values())), damage.cuts),
        st.just(bytes(3_000_000)),
        *([_headers(members)] if "header.npy" in members or "facts.npy" in members else []),
    )

    def made(place: str, inside: bytes, how: str, packed: bool) -> bytes:
        listed = dict(members)
        if how == "gone":
            listed.pop(place, None)
        else:
            listed[place] = inside
        every = list(listed.items())
        return damage.as_npz(every, packed=packed)

    return st.builds(made, name, content, st.sampled_from(("set", "set", "set", "gone")), st.booleans())


def _headers(members: dict[str, bytes]) -> st.SearchStrategy[bytes]:
    """What the arrays' own JSON says, damaged."""
    import io
    import json

    import numpy as np

    if "header.npy" in members:
        header = json.loads(str(np.load(io.BytesIO(members["header.npy"]))))

        def text(steps: list[Any]) -> bytes:
            said = damage.as_json(damage.changed(header, steps)).decode("utf-8", "replace")
            return damage.array_bytes(np.array(said.rstrip("\0") or " "))

        return damage.operations.map(text)
    facts = json.loads(bytes(np.load(io.BytesIO(members["facts.npy"]))))

    def plain(steps: list[Any]) -> bytes:
        return damage.array_bytes(np.frombuffer(damage.as_json(damage.changed(facts, steps)), dtype=np.uint8))

    return damage.operations.map(plain)


def fuzz(target: Target, folder: Path, cases: int) -> Counter[str]:
    """Run so many cases of a target; how they ended."""
    work = folder / "work" / target.folder.name
    shutil.copytree(target.folder, work)
    path = work / target.file
    ended: Counter[str] = Counter()

    @seed(SEED)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(contents(target))
    def case(content: bytes) -> None:
        path.write_bytes(content)
        found = judge(lambda: target.read(path), target.says)
        ended["read" if found is None else type(found).__name__] += 1

    case()
    return ended


@pytest.mark.parametrize("name", NAMES)
def test_a_few(name: str, good: dict[str, Target], tmp_path: Path) -> None:
    target = good[name]
    with plainly(tmp_path):
        ended = fuzz(target, tmp_path, max(4, SHORT * target.share // 1600))
    assert ended


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NAMES)
def test_many(name: str, good: dict[str, Target], tmp_path: Path, record_property: Any) -> None:
    target = good[name]
    cases = int(os.environ.get("FUZZ_CASES", str(LONG))) * target.share // _shares(good)
    with plainly(tmp_path):
        ended = fuzz(target, tmp_path, cases)
    sys.stdout.write(f"\n{name}: {sum(ended.values())} cases from the seed {SEED}: {dict(ended)}\n")
    record_property("cases", sum(ended.values()))
    assert sum(ended.values()) >= cases * 0.9
    assert cases < 200 or len(ended) > 1, "nothing was refused, or nothing read"


def _shares(good: dict[str, Target]) -> int:
    return sum(one.share for one in good.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_good_file_is_read(name: str, good: dict[str, Target], tmp_path: Path) -> None:
    target = good[name]
    work = Path(shutil.copytree(target.folder, tmp_path / target.folder.name))
    with plainly(tmp_path):
        for content in target.good:
            (work / target.file).write_bytes(content)
            assert judge(lambda: target.read(work / target.file)) is None
