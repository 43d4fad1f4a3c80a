"""The journal: what was written comes back to the last bit, and what was damaged does not come back at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.model.pieces import Found, Own, Piece, digest
from circuitfind.model.runs import Runs
from circuitfind.output.journal import Journal, Record, drop
from circuitfind.output.kept import Keeping
from circuitfind.session import Session
from circuitfind.settings import resolve
from circuitfind.task.spec import load_task

KEYS = [digest(number) for number in range(4)]


def record(number: int) -> Record:
    rng = np.random.default_rng(number)
    return Record(
        {"passes": {"forward": number}, "after": {}},
        {
            "values": rng.standard_normal((number + 1, 3)),
            "none": np.zeros((0, 2), np.float32),
            "one": np.array(number, dtype=np.int64),
            "flags": rng.random(5) > 0.5,
        },
    )


def written(path: Path, key: str = "k") -> bytes:
    """A journal with three records."""
    journal = Journal(path, key)
    for number in range(3):
        journal.put(KEYS[number], record(number))
    journal.close()
    assert journal.problem is None
    return path.read_bytes()


def ends_of(path: Path) -> list[int]:
    """Where each of the three ends."""
    journal, found = Journal(path, "k"), []
    for number in range(3):
        journal.put(KEYS[number], record(number))
        found.append(path.stat().st_size)
    journal.close()
    return found


def left(path: Path, key: str = "k") -> list[int]:
    """Which of the three a next run takes; each is what it was."""
    journal, found = Journal(path, key), []
    for number in range(3):
        taken = journal.take(KEYS[number])
        if taken is not None:
            same(taken, record(number))
            found.append(number)
            assert journal.take(KEYS[number]) is None, "each once"
    return found


def same(a: Record, b: Record) -> None:
    assert a.told == b.told
    assert a.arrays.keys() == b.arrays.keys()
    for name, array in a.arrays.items():
        other = b.arrays[name]
        assert (array.dtype, array.shape) == (other.dtype, other.shape)
        assert array.tobytes() == other.tobytes()


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "journal" / "scores.bin"
    written(path)
    assert left(path) == [0, 1, 2]
    again = Journal(path, "k")
    again.put(KEYS[3], record(3))
    assert again.take(KEYS[3]) is None, "what a run puts there itself is for the next one"
    again.close()
    assert left(path) == [0, 1, 2]
    found = Journal(path, "k").take(KEYS[3])
    assert found is not None
    same(found, record(3))


def test_the_same_piece_twice_comes_back_twice(tmp_path: Path) -> None:
    first = Journal(tmp_path / "a.bin", "k")
    for number in (0, 1):
        first.put(KEYS[0], record(number))
    first.close()
    second = Journal(tmp_path / "a.bin", "k")
    for number in (0, 1):
        found = second.take(KEYS[0])
        assert found is not None
        same(found, record(number))


def test_a_journal_of_other_inputs_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal" / "a.bin"
    written(path)
    assert left(path, "other") == []
    assert not path.parent.exists()
    written(path)
    Journal(path, "k", fresh=True)
    assert not path.exists()


def test_nothing_is_made_before_something_is_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal" / "a.bin", "k")
    journal.close()
    assert not list(tmp_path.iterdir())
    written(journal.path)
    finished = Journal(journal.path, "k")
    finished.remove()
    assert not list(tmp_path.iterdir())


def test_a_journal_of_a_finished_stage_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal" / "a.bin"
    written(path)
    drop(path, "other")
    assert path.exists()
    drop(path, "k")
    assert not path.parent.exists()


def test_a_cut_costs_what_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    whole = written(path)
    ends = ends_of(tmp_path / "b.bin")
    assert ends[-1] == len(whole)
    for size in range(0, len(whole), 29):
        path.write_bytes(whole[:size])
        count = sum(end <= size for end in ends)
        assert left(path) == list(range(count))
        if path.exists():  # the next record is appended to what is good
            more = Journal(path, "k")
            more.put(KEYS[3], record(3))
            more.close()
            assert left(path) == list(range(count))
            assert Journal(path, "k").take(KEYS[3]) is not None


def test_a_changed_byte_never_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    whole = written(path)
    lost = set()
    for place in range(0, len(whole), 5):
        path.write_bytes(bytes([*whole[:place], whole[place] ^ 0x40, *whole[place + 1 :]]))
        found = left(path)  # which compares what comes back
        assert found != [0, 1, 2]
        assert left(path) == found
        lost.add(tuple(found))
    # In a body one record is lost; in a length, those behind it too; in the key of the file, all.
    assert lost == {(), (0,), (0, 1), (0, 2), (1, 2)}


@pytest.mark.parametrize("call", ["write", "ftruncate", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_journal_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def failing(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    path = tmp_path / "a.bin"
    written(path)
    journal = Journal(path, "k")
    monkeypatch.setattr(os, call, failing)
    journal.put(KEYS[3], record(3))
    journal.put(KEYS[3], record(3))
    monkeypatch.undo()
    journal.close()
    assert journal.problem == os.strerror(code)
    assert left(path) == [0, 1, 2]


def test_half_a_record_on_a_full_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    whole = written(path)
    real, calls = os.write, []

    def short(handle: int, data: memoryview) -> int:
        calls.append(len(data))
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data[:10])

    journal = Journal(path, "k")
    monkeypatch.setattr(os, "write", short)
    journal.put(KEYS[3], record(3))
    monkeypatch.undo()
    journal.close()
    assert path.read_bytes() == whole


def test_a_journal_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = ends_of(tmp_path / "b.bin")[1] - 1
    monkeypatch.setattr("circuitfind.output.journal.LARGEST", most)
    journal = Journal(tmp_path / "a.bin", "k")
    for number in range(3):
        journal.put(KEYS[number], record(number))
    journal.close()
    assert "may take" in str(journal.problem)
    assert left(journal.path) == [0]
    assert journal.path.stat().st_size <= most


def test_objects_are_never_kept(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="holds objects"):
        Journal(tmp_path / "a.bin", "k").put(KEYS[0], Record({}, {"x": np.array([object()])}))


# The hands around it.


@dataclass(frozen=True)
class Squares:
    """A piece that needs nothing."""

    numbers: tuple[int, ...]

    rows = 1
    portable = True

    def run(self, runs: Runs) -> Mapping[str, np.ndarray]:
        runs.model.passes["forward"] += len(self.numbers)
        return {"squares": np.array(self.numbers) ** 2}


class Backwards:
    """Does all pieces, and gives them in the other order: as several workers may."""

    def do(self, runs: Runs, pieces: Iterable[Piece]) -> Iterator[tuple[int, Found]]:
        yield from reversed(list(Own().do(runs, pieces)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs of a small model."""
    path = tmp_path_factory.mktemp("runs") / "small.yaml"
    path.write_text("{name: small, model: planted/and-gate, prompts: {zoo: {count: 4}}}", encoding="utf-8")
    spec = load_task(str(path))
    session = Session(spec, resolve(spec))
    return session.runs_of(session.all_pairs)


@pytest.mark.parametrize("inner", [Own(), Backwards()], ids=["in order", "backwards"])
def test_only_what_is_new_is_done(tmp_path: Path, runs: Runs, inner: Own | Backwards) -> None:
    pieces = [Squares((number, number + 1)) for number in range(6)]
    hands, passes = Keeping(inner), runs.model.passes

    def do(some: list[Squares]) -> tuple[list[int], int, int]:
        """Values, how many were kept, and passes that this run counts."""
        before = passes["forward"]
        with hands.stage(Journal(tmp_path / "a.bin", "k"), [passes]):
            found = dict(hands.do(runs, iter(some)))
        values = [int(x) for number in range(len(some)) for x in found[number].arrays["squares"]]
        return values, hands.resumed, passes["forward"] - before

    want = [x for number in range(6) for x in (number**2, (number + 1) ** 2)]
    assert do(pieces[2:4]) == (want[4:8], 0, 4)
    # Passes count whether they were done here or before.
    assert do(pieces) == (want, 2, 12)
    assert do(pieces) == (want, 6, 12)


def test_other_runs_share_nothing(tmp_path: Path, runs: Runs) -> None:
    hands = Keeping()

    def kept(of: Runs) -> int:
        with hands.stage(Journal(tmp_path / "a.bin", "k")):
            list(hands.do(of, [Squares((1,))]))
            return hands.resumed

    assert kept(runs) == 0
    assert kept(runs) == 1
    fewer = Runs(runs.model, runs.pairs.subset([0, 1]), runs.metric)
    other = Runs(runs.model, runs.pairs, runs.metric, mean_over="clean")
    assert [kept(fewer), kept(other)] == [0, 0]
    learned = Runs(runs.model, runs.pairs, runs.metric)
    learned.constants = runs.trace(0, "clean").writes
    assert [kept(learned), kept(learned), kept(fewer)] == [0, 1, 1]
    # Other sizes of batches are the same runs.
    assert kept(runs.smaller(1)) == 1


def test_kept_values_are_those_of_a_run_without_a_journal(tmp_path: Path, runs: Runs) -> None:
    mask = runs.model.anatomy.edge_mask
    masks = [mask & (np.arange(mask.size).reshape(mask.shape) % 3 != one) for one in range(3)]
    plain = Evaluator(Runs(runs.model, runs.pairs, runs.metric), "resample").values(masks)
    hands = Keeping()
    for resumed in (False, True):
        with hands.stage(Journal(tmp_path / "a.bin", "k")):
            own = Runs(runs.model, runs.pairs, runs.metric, hands=hands)
            found = Evaluator(own, "resample").values(masks)
        assert (hands.resumed > 0) == resumed
        assert found.tobytes() == plain.tobytes()
