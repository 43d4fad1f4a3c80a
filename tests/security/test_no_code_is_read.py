"""Nothing that is read can run code: every call in the source that could, and the few that may, with the reason.

A new call of these fails here until it stands in ``MAY``, beside why it is safe.
"""

from __future__ import annotations

import ast
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuitfind.circuit.scores import Scores
from circuitfind.dictionaries.dunefsky import Record, read_dunefsky
from circuitfind.dictionaries.load import load_dictionaries
from circuitfind.errors import CircuitfindError, ModelError
from circuitfind.task.spec import load_task

PACKAGE = Path(__file__).resolve().parents[2] / "circuitfind"
SOURCES = sorted(PACKAGE.rglob("*.py"))

MODULES = {
    "_pickle", "cPickle", "cloudpickle", "code", "codeop", "dill", "joblib", "marshal", "pickle", "pickletools", "runpy",
    "shelve",
}  # fmt: skip
"""Modules that read objects or run source."""
BUILTINS = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
SHELLS = {
    "os.system",
    "os.popen",
    "os.spawnl",
    "os.spawnv",
    "os.startfile",
    "subprocess.getoutput",
    "pty.spawn",
}
PROCESSES = {"run", "Popen", "call", "check_call", "check_output"}
DYNAMIC = {
    "importlib.import_module",
    "import_module",
    "importlib.util.spec_from_file_location",
    "runpy.run_path",
}
LOADERS = {"from_pretrained", "boot_transformers", "from_config"}
ZIPS = {"extractall", "extract", "unpack_archive"}
PARSERS = {
    "ElementTree.parse",
    "ET.parse",
    "ET.fromstring",
    "ElementTree.fromstring",
    "minidom.parse",
    "minidom.parseString",
}

MAY = {
    ("dictionaries/train.py", "import pickle"): "for the name of an error of torch.load alone",
    ("cli/__init__.py", "import_module"): "modules of ours, by the name of a command in a table of ours",
    ("__init__.py", "import_module"): "modules of ours, from a table of ours",
    ("shown.py", "import_module"): "modules of ours, from a table of ours",
    ("doctor.py", "import_module"): "one module, named in the source",
    ("methods/__init__.py", "import_module"): "modules of ours, from the table of methods",
    ("output/figures/make.py", "import_module"): "modules of ours, from the table of figures",
}
"""(file, what it does): why it may."""


def dotted(node: ast.expr) -> str:
    """``torch.load`` of an expression; empty for what is no name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else node.attr
    return ""


def told(call: ast.Call, name: str) -> object:
    """The value of a keyword where it is a constant; the word "some" where it is an expression, None where it is not given."""
    for one in call.keywords:
        if one.arg == name:
            return one.value.value if isinstance(one.value, ast.Constant) else "some"
    return None


def risks(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of everything in a source that could run what it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in MODULES:
                    yield node.lineno, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").partition(".")[0]
            if module in MODULES:
                yield node.lineno, f"import {module}"
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in _of_call(node))


def _of_call(call: ast.Call) -> Iterator[str]:
    name = dotted(call.func)
    last = name.rpartition(".")[2]
    if isinstance(call.func, ast.Name) and name in BUILTINS:
        yield name
    if name in SHELLS or name in PARSERS or last in ZIPS:
        yield name
    if (
        last == "load"
        and name.startswith(("torch.", "torch.serialization"))
        and told(call, "weights_only") is not True
    ):
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and told(call, "allow_pickle") is not False:
        yield "np.load without allow_pickle=False"
    if name in ("yaml.load", "yaml.load_all"):
        yield "yaml.load"
    if name.startswith(("yaml.unsafe", "yaml.full", "yaml.Unsafe", "yaml.Full")) or name in (
        "yaml.Loader",
        "yaml.CLoader",
    ):
        yield name
    if told(call, "shell") is not None:
        yield "shell="
    if (
        name.startswith("subprocess.")
        and last in PROCESSES
        and call.args
        and isinstance(call.args[0], (ast.Constant, ast.JoinedStr))
    ):
        yield "a process from one text"
    if name in DYNAMIC and not (call.args and isinstance(call.args[0], ast.Constant)):
        yield "import_module" if last == "import_module" else name
    if last in LOADERS and told(call, "trust_remote_code") not in (False, "some"):
        yield f"{last} without trust_remote_code"


@cache
def all_risks() -> list[tuple[str, int, str]]:
    found = []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [(path.relative_to(PACKAGE).as_posix(), line, what) for line, what in risks(tree)]
    return found


def test_no_source_of_ours_runs_what_it_reads() -> None:
    assert len(SOURCES) > 200
    wrong = [
        f"circuitfind/{file}:{line}: {what}" for file, line, what in all_risks() if (file, what) not in MAY
    ]
    assert wrong == []


def test_nothing_is_excused_that_is_not_there() -> None:
    there = {(file, what) for file, _, what in all_risks()}
    assert MAY.keys() - there == set()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from marshal import loads",
        "import joblib.numpy_pickle",
        "eval(text)",
        "exec(text)",
        "input('trust it?')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.unsafe_load(text)",
        "subprocess.run(words, shell=True)",
        "subprocess.run('rm x')",
        "subprocess.run(f'rm {x}')",
        "os.system(text)",
        "importlib.import_module(name)",
        "archive.extractall(folder)",
        "ElementTree.parse(path)",
        "AutoModel.from_pretrained(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_search_finds_it(source: str) -> None:
    assert list(risks(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "importlib.import_module('json')",
        "re.compile(text)",
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "yaml.safe_load(text)",
        "subprocess.run(['dot', '-V'])",
        "AutoModel.from_pretrained(name, trust_remote_code=trusted)",
    ],
)
def test_the_search_lets_it_be(source: str) -> None:
    assert list(risks(ast.parse(source))) == []


# --- files that would run something, if they were read as their endings ask for ------------------------------


class Trap:
    """What a pickle can do while it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("trapped",))


class Sneaky:
    """The same through the class of settings that those files name."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (getattr, (Record, "__init__"))


def _plain(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap()))


def _torch(path: Path) -> None:
    torch.save({"cfg": Trap(), "state_dict": {}}, path)


def _old_torch(path: Path) -> None:
    torch.save({"cfg": Trap(), "state_dict": {}}, path, _use_new_zipfile_serialization=False)


def _sneaky(path: Path) -> None:
    torch.save({"cfg": Sneaky(), "state_dict": {}}, path)


def _packed(path: Path) -> None:
    """A trap in a part that is compressed, where a search for names would not see it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap()))
        archive.writestr("archive/version", "3\n")


def _second(path: Path) -> None:
    """An honest part, and behind it another of the same name."""
    torch.save({"cfg": {}, "state_dict": {}}, path)
    with zipfile.ZipFile(path) as archive:
        name = next(one for one in archive.namelist() if one.endswith("data.pkl"))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(name, pickle.dumps(Trap()))


@pytest.mark.parametrize("make", [_plain, _torch, _old_torch, _sneaky, _packed, _second])
def test_a_hostile_file_of_torch_does_nothing(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "transcoder.pt"
    make(path)
    for read in (read_dunefsky, load_dictionaries):
        with pytest.raises(CircuitfindError):
            read(path if read is read_dunefsky else str(path))
    assert not (tmp_path / "trapped").exists()


def test_the_traps_work(tmp_path: Path) -> None:
    """Read carelessly, they do what they are made for."""
    for number, make in enumerate((_plain, _torch, _old_torch)):
        path = tmp_path / f"{number}.pt"
        make(path)
        if make is _plain:
            pickle.loads(path.read_bytes())
        else:
            torch.load(path, weights_only=False)
        assert (tmp_path / "trapped").is_dir()
        (tmp_path / "trapped").rmdir()


def test_objects_in_arrays_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    np.savez(path, edges=np.array([Trap()], dtype=object))
    with pytest.raises(CircuitfindError):
        Scores.load(path)
    with pytest.raises(ModelError):
        load_dictionaries(str(path))
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [trapped]",
        "!!python/name:os.system",
        "!!python/module:antigravity",
        "!!python/object/new:os.mkdir [trapped]",
    ],
)
def test_yaml_builds_plain_data_only(tmp_path: Path, value: str) -> None:
    (tmp_path / "task.yaml").write_text(f"name: {value}\nprompts: {{zoo: {{}}}}\n", encoding="utf-8")
    with pytest.raises(CircuitfindError, match="could not determine a constructor"):
        load_task(tmp_path / "task.yaml")
    assert not (tmp_path / "trapped").exists()


def test_a_header_of_safetensors_is_data(tmp_path: Path, own_model: Path) -> None:
    """Its header is JSON; one that claims to be longer than the file is no header."""
    from circuitfind.model.load import load_model

    (own_model / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + pickle.dumps(Trap()))
    with pytest.raises(ModelError, match="the weights are damaged"):
        load_model(str(own_model), device="cpu")
    assert not (tmp_path / "trapped").exists()


def test_what_workers_send_each_other_goes_through_pipes_without_a_name() -> None:
    """Processes of ours hand each other pickles; no other program can open the pipe between them."""
    if sys.platform == "win32":
        pytest.skip("pipes have names there")
    import multiprocessing
    import stat

    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    try:
        for end in (ours, theirs):
            mode = os.fstat(end.fileno()).st_mode
            assert stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode)
            import socket

            with socket.socket(fileno=os.dup(end.fileno())) as one:
                assert one.family == socket.AF_UNIX
                assert one.getsockname() in ("", b"")
    finally:
        ours.close()
        theirs.close()
