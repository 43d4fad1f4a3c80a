"""A Ray cluster as an engine sees it: one that runs already, or one on this machine that begins and ends with us.

The one on this machine listens on the loopback interface alone, asks for a token, sends no usage statistics, and has its
files in a folder of its own that goes with it. A cluster that somebody else started is never ended.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from circuitfind.errors import UsageError
from circuitfind.machine import cores

ANSWERS = 5.0
"""Seconds in which a cluster answers."""
STORE = 256 << 20
"""Bytes of a cluster of ours that jobs and results on their way may take; it writes what is more to its folder."""
PREFIX = "circuitfind-ray-"
LONGEST_FOLDER = 40
"""Characters of a temporary folder that leave room for the names of Ray's sockets."""
_TOKEN = secrets.token_hex(32)
"""Ray remembers the token of a process, so there is one."""

Resources = Mapping[str, float]


class Cluster:
    """A connection to a cluster; made when first needed, but at once to one that runs already.

    Args:
        address: ``host:port``, ``ray://host:port`` or ``auto``; None for a cluster of our own.
        processors: Of a cluster of our own.

    Raises:
        UsageError: There is no such cluster, or it is of another version.
    """

    def __init__(self, address: str | None, processors: int) -> None:
        self.address, self.processors = address, processors
        self.own = address is None
        self._ray: Any = None
        self._joined = False
        self._folder: Path | None = None
        if not self.own:
            _ = self.ray

    @property
    def ray(self) -> Any:
        """The module, connected."""
        if self._ray is None:
            with _handlers_kept():
                self._ray = self._begun() if self.address is None else self._connected(self.address)
        return self._ray

    @property
    def node(self) -> str:
        """The node that this process is on; "" where it is on none."""
        if self.address is not None and self.address.startswith("ray://"):
            return ""
        return str(self.ray.get_runtime_context().get_node_id())

    def resources(self) -> list[Resources]:
        """What each node has in all."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def free(self) -> Resources:
        """What is free now, of all nodes together."""
        found: Resources = self.ray.available_resources()
        return found

    def leave(self) -> None:
        """Disconnect; what we began ends."""
        ray, self._ray = self._ray, None
        if ray is not None and not self._joined:
            with _handlers_kept(), warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                ray.shutdown()
                gc.collect()  # Ray forgets processes that it has ended without asking for their exit codes
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    # One of our own.

    def _begun(self) -> Any:
        with _environment(
            RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # on any system: its only address is the loopback one
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=_TOKEN,
            RAY_USAGE_STATS_ENABLED="0",
            RAY_DISABLE_IMPORT_WARNING="1",
            RAY_gcs_rpc_server_reconnect_timeout_s="5",  # so that its servers too end soon when we are killed
            RAY_worker_niceness="0",  # Ray's workers else let everything else on the machine go first
            RAY_ADDRESS=None,
        ):
            ray = _imported()
            if ray.is_initialized():
                self._joined = True
                return ray
            _set_loopback(True)
            _read_again()
            self._folder = _own_folder()
            try:
                with _standing_in(self._folder):
                    ray.init(
                        num_cpus=self.processors,
                        include_dashboard=False,
                        object_store_memory=STORE,
                        _temp_dir=str(self._folder),
                        **_QUIETLY,
                    )
            except (Exception, KeyboardInterrupt) as error:
                ray.shutdown()
                self.leave()
                if isinstance(error, KeyboardInterrupt):
                    raise
                raise UsageError(
                    f"no Ray cluster can be started on this machine: {_first_line(error)}",
                    hint="use --engine processes, which needs no cluster, or connect to one by --address",
                ) from error
        _hush()
        return ray

    # One that runs already.

    def _connected(self, address: str) -> Any:
        ray = _imported()
        if ray.is_initialized():
            self._joined = True
            return ray
        _set_loopback(False)
        where = _automatic() if address == "auto" else address
        if where is not None:
            _see(where)
        _read_again()
        try:
            if address.startswith("ray://"):
                ray.init(address=address, logging_level=logging.ERROR)
            else:
                self._folder = _own_folder()
                with _standing_in(self._folder):
                    ray.init(address=address, **_QUIETLY)
        except (Exception, SystemExit) as error:
            with suppress(Exception):
                ray.shutdown()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
            raise _refused(address, error) from error
        _hush()
        return ray


_QUIETLY = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}


def _imported() -> Any:
    """Ray, which is imported by nobody who does not use it.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "the ray engine needs Ray", hint='pip install "circuitfind[ray]", or use --engine processes'
        ) from error
    return ray


def _automatic() -> str | None:
    """The address that ``auto`` stands for; None where Ray is to say."""
    try:
        from ray._private import services

        found: str | None = services.get_ray_address_from_environment("auto", None)
    except Exception:  # noqa: BLE001  it is not known, or this version finds it in another way
        return None
    return found


def _see(address: str) -> None:
    """See that a cluster answers where Ray will look for it: at this machine's own address in place of the loopback one,
    unless the cluster listens on that alone.

    Raises:
        UsageError: None does.
    """
    host, colon, port = address.rpartition(":")
    if not colon or address.startswith("ray://") or host not in ("localhost", "127.0.0.1", "[::1]"):
        _check_answers(address)
        return
    own = None
    with suppress(ImportError, AttributeError):
        from ray._private import services

        own = f"{services.get_node_ip_address()}:{port}"
    try:
        _check_answers(own or address)
    except UsageError:
        _check_answers(address)
        _set_loopback(True)


def _check_answers(address: str) -> None:
    """See that a server of Ray's protocol is there: Ray itself would try again for minutes.

    Raises:
        UsageError: There is none.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon and address.startswith("ray://"):
        host, port = port, "10001"
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(
            f"'{address}' is no address of a Ray cluster",
            hint="give host:port (ray start --head says which), ray://host:10001, or auto",
        )
    hint = "start one by `ray start --head`, or leave --address out for one that begins and ends with the command"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWERS) as there:
            # HTTP/2, as gRPC speaks it: what both sides say first, of which the other's is read.
            there.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            said = there.recv(9)
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise UsageError(f"there is no Ray cluster at {address}: {why}", hint=hint) from error
    if len(said) < 4 or said[3] != 4:
        raise UsageError(f"what answers at {address} is no Ray cluster", hint=hint)


def _refused(address: str, error: BaseException) -> UsageError:
    """Why a cluster cannot be joined, in our words."""
    text = str(error)
    if "ray[client]" in text:
        return UsageError(
            "an address that begins with ray:// needs Ray's client",
            hint='pip install "ray[client]", or run this on a machine of the cluster with --address auto',
        )
    if "Could not find any running Ray instance" in text:
        return UsageError(
            "no Ray cluster runs on this machine",
            hint="start one by `ray start --head`, give --address host:port, or leave --address out for one of its own",
        )
    if "ersion mismatch" in text:
        told = [line.strip() for line in text.splitlines() if ":" in line or "Ray" in line]
        return UsageError(
            f"the Ray cluster at {address} is of another version",
            details=told[:8],
            hint="use the Python and Ray of the cluster here",
        )
    if "uthenticat" in text or "token" in text:
        return UsageError(
            f"the Ray cluster at {address} does not know this user: {_first_line(error)}",
            hint="set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) as on the cluster",
        )
    return UsageError(
        f"the Ray cluster at {address} cannot be joined: {_first_line(error)}",
        hint="see whether `ray status` works there, and whether this machine is a node of it",
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[
        :300
    ]


# What Ray does to a process, and what it leaves behind.


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray puts a handler of its own for SIGTERM; ours comes back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    try:
        for name, value in values.items():
            _put(name, value)
        yield
    finally:
        for name, value in before.items():
            _put(name, value)


def _put(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _set_loopback(alone: bool) -> None:
    """Whether Ray takes the loopback address for this machine's; it reads the variable once, when it is imported."""
    with suppress(ImportError):
        from ray._private import ray_constants

        ray_constants.ENABLE_RAY_CLUSTER = not alone


def _read_again() -> None:
    """Ray reads its variables (whether there is a token, and which) when it is imported, which may be long ago."""
    with suppress(ImportError, AttributeError):
        inner: Any = import_module("ray._raylet")
        inner.Config.initialize("")
        inner.AuthenticationTokenLoader.instance().reset_cache()


def _hush() -> None:
    """Ray prints what happens to workers, on standard output too; who gave them work says so instead."""
    with suppress(ImportError):
        from ray._private import worker

        worker.print_to_stdstream = lambda *args, **kwargs: None


def _own_folder() -> Path:
    """A new folder for Ray's files. Those of processes of this machine that have died are removed."""
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > LONGEST_FOLDER:
        parent = Path("/tmp")  # noqa: S108  the folder in it is new, and of this user alone
    if sys.platform == "linux":
        for old in parent.glob(f"{PREFIX}*"):
            process = old.name.removeprefix(PREFIX).partition("-")[0]
            if process.isdecimal() and not old.is_symlink() and not Path("/proc", process).exists():
                shutil.rmtree(old, ignore_errors=True)
    try:
        return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))
    except OSError as error:
        raise UsageError(
            f"Ray has no folder for its files: {error.strerror or error}",
            where=str(parent),
            hint="set TMPDIR to a folder that can be written to",
        ) from error


@contextmanager
def _standing_in(folder: Path) -> Iterator[None]:
    """Work in a folder of our own meanwhile: Ray lets its workers import from the one that it is started in before all others,
    and what lies in the user's may be anybody's.
    """
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def threads_each(workers: int, own: bool) -> int:
    """Threads that a worker computes with, which are processors that it takes of the cluster."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    return max(1, cores() // workers) if own else 1
