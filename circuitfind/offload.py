"""Where the weights of a model may lie when they do not fit one device: as the user says it. No torch here.

What is chosen changes where numbers are kept and never what they are, so it is no part of what a run depends on; runs
record it as a fact.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from circuitfind.errors import UsageError, did_you_mean
from circuitfind.reading import expanded, read_json
from circuitfind.sizes import parse_size

Activations = Literal["auto", "none", "cpu", "disk"]
"""Where finished runs go that there is no more room for: nowhere (they are computed again), to CPU memory, to disk."""

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential", "cpu", "disk")
"""Device maps that are computed, named as accelerate and transformers name them."""

Device = int | str
"""A GPU's number, ``cpu`` or ``disk``."""


@dataclass(frozen=True)
class Offload:
    """Where weights and finished runs may lie.

    Attributes:
        device_map: One of ``STRATEGIES``, or module names to devices; None for the whole model on one device.
        max_memory: Bytes that the weights may take on each device; what is free on those that are not named.
        folder: Where what is on disk is written, in a folder of its own that is removed; the system's temporary
            folder if None.
        activations: Where finished runs go; ``auto`` keeps those of an offloaded model.
    """

    device_map: str | Mapping[str, Device] | None = None
    max_memory: Mapping[Device, int] = field(default_factory=dict)
    folder: Path | None = None
    activations: Activations = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.device_map, str) and self.device_map not in STRATEGIES:
            raise UsageError(
                f"no device map is named '{self.device_map}'",
                hint=f"{did_you_mean(self.device_map, STRATEGIES)} A .json file of module names and devices is one too",
            )
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"--offload-folder {self.folder} is a file", hint="name a folder on a fast disk")

    @property
    def placed(self) -> bool:
        """Whether weights are placed at all."""
        return self.device_map is not None


_current: ContextVar[Offload] = ContextVar("offload", default=Offload())  # noqa: B039  it is frozen


def current() -> Offload:
    """What models that are loaded now go by."""
    return _current.get()


@contextmanager
def offloaded(
    device_map: str | Path | Mapping[str, Device] | None = None,
    max_memory: str | Mapping[Device, int | str] | None = None,
    offload_folder: str | Path | None = None,
    offload_activations: str = "auto",
) -> Iterator[Offload]:
    """Load models in parts for the time of the block, on several devices, in CPU memory or on disk.

    Args:
        device_map: ``auto``, ``balanced``, ``balanced_low_0``, ``sequential``, ``cpu``, ``disk``, a JSON file, or module
            names to devices; ``auto`` where only ``max_memory`` is given.
        max_memory: What weights may take on each device, as ``"0=20GB,cpu=64GB"`` or a mapping.
        offload_folder: Where what is on disk is written.
        offload_activations: ``auto``, ``none``, ``cpu`` or ``disk``.

    Raises:
        UsageError: One of them is not as it should be.
    """
    found = resolve(device_map, max_memory, offload_folder, offload_activations)
    with restoring(found):
        yield found


@contextmanager
def restoring(offload: Offload) -> Iterator[None]:
    """The same with what was resolved before, here or in another process."""
    token = _current.set(offload)
    try:
        yield
    finally:
        _current.reset(token)


def resolve(
    device_map: str | Path | Mapping[str, Device] | None = None,
    max_memory: str | Mapping[Device, int | str] | None = None,
    folder: str | Path | None = None,
    activations: str = "auto",
) -> Offload:
    """Flags as what they stand for; see ``offloaded``.

    Raises:
        UsageError: One of them is not as it should be.
    """
    if activations not in get_args(Activations):
        raise UsageError(
            f"activations are not kept in '{activations}'",
            hint=did_you_mean(activations, get_args(Activations)),
        )
    budgets = read_max_memory(max_memory) if max_memory else {}
    if device_map is None and budgets:
        device_map = "auto"
    if isinstance(device_map, Path) or (isinstance(device_map, str) and device_map.endswith(".json")):
        device_map = read_device_map(expanded(device_map))
    elif isinstance(device_map, Mapping):
        device_map = {name: _device(where, "device_map") for name, where in device_map.items()}
    where = None if folder is None else expanded(folder)
    if where is not None and device_map is None and activations not in ("cpu", "disk"):
        raise UsageError(
            "--offload-folder says nothing where nothing is offloaded",
            hint="add --device-map disk, --max-memory or --offload-activations disk, or leave it out",
        )
    found = Offload(device_map, budgets, where)
    return replace(found, activations=activations)  # type: ignore[arg-type]  # checked above


def read_max_memory(given: str | Mapping[Device, int | str]) -> dict[Device, int]:
    """Bytes for each device, of ``0=20GB,cpu=64GB`` or a mapping.

    Raises:
        UsageError: It is none.
    """
    if isinstance(given, str):
        parts = [part.partition("=") for part in given.split(",") if part.strip()]
        wrong = next((name for name, sign, size in parts if not sign or not size.strip()), None)
        if wrong is not None or not parts:
            raise UsageError(
                f"--max-memory '{given}' does not say how much for each device",
                hint="write it as 0=20GB,cpu=64GB: GPUs by number, and cpu",
            )
        names = [name.strip() for name, _, _ in parts]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"--max-memory names '{twice}' twice", hint="give each device one amount")
        given = {name: size for name, (_, _, size) in zip(names, parts, strict=True)}
    found: dict[Device, int] = {}
    for name, size in given.items():
        device = _device(name, "--max-memory")
        if device == "disk":
            raise UsageError(
                "--max-memory has no amount for the disk",
                hint="leave it out: what fits nowhere else goes there",
            )
        found[device] = parse_size(size) if isinstance(size, str) else int(size)
        if found[device] < 0:
            raise UsageError(
                f"{found[device]} bytes on '{name}' are none", hint="give an amount such as 20GB"
            )
    return found


def read_device_map(path: Path) -> dict[str, Device]:
    """Module names to devices, of a JSON file.

    Raises:
        UsageError: There is no such file, or it holds something else.
    """
    try:
        found = read_json(path, words=True)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the device map cannot be read: {error}",
            where=str(path),
            hint='it holds module names and devices: {"model.embed_tokens": 0, "model.layers.0": "cpu"}',
        ) from error
    if not isinstance(found, dict) or not found:
        raise UsageError(
            "the device map is no mapping of module names to devices",
            where=str(path),
            hint='such as {"model.embed_tokens": 0, "model.layers.0": "cpu", "": "disk"}',
        )
    return {name: _device(where, f"{path}, '{name}'") for name, where in found.items()}


def _device(given: object, where: str) -> Device:
    """A GPU's number, ``cpu`` or ``disk``."""
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    text = str(given).strip().lower()
    number = text.removeprefix("cuda:") if text != "cuda" else "0"
    if number.isdecimal() and len(number) < 4:
        return int(number)
    if text in ("cpu", "disk"):
        return text
    raise UsageError(
        f"'{given}' is no device that weights lie on",
        where=where,
        hint="GPUs are named by their number (0 or cuda:0); besides there are cpu and disk",
    )


PREFIX = "circuitfind-offload-"
LOCK = "lock"
"""A file that a process holds locked as long as it needs the folder."""


def make_folder(offload: Offload) -> Path:
    """A new folder for what is on disk, to be removed by ``remove_folder``; what killed processes left is removed.

    Raises:
        UsageError: It cannot be made.
    """
    import tempfile

    parent = offload.folder or Path(tempfile.gettempdir())
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for old in parent.glob(f"{PREFIX}*"):
            if _left_over(old):
                shutil.rmtree(old, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        _locks[made] = os.open(made / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        _lock(_locks[made])
    except OSError as error:
        raise UsageError(
            f"nothing can be written to the offload folder: {error.strerror or error}",
            where=str(parent),
            hint="give another by --offload-folder",
        ) from error
    return made


def remove_folder(path: Path) -> None:
    """Remove a folder that ``make_folder`` made, with all that is in it."""
    handle = _locks.pop(path, None)
    shutil.rmtree(path, ignore_errors=True)
    if handle is not None:
        os.close(handle)


_locks: dict[Path, int] = {}


def _left_over(path: Path) -> bool:
    """Whether a process made this folder that is no more."""
    if path.is_symlink() or not (path / LOCK).is_file():
        return False
    try:
        handle = os.open(path / LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False  # somebody else's
    try:
        return _lock(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Take a lock if nobody has it; where files cannot be locked it counts as taken."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True
