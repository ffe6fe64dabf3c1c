"""The connection of this process to a Ray cluster: one that is there, or one of this machine for the time of a command."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory, gettempdir

from retrodb.encode.threads import available_cpus
from retrodb.engine.ray_resources import NodeResources
from retrodb.errors import MissingDependency, RetroDBError, UsageError
from retrodb.memory import size_text

_CONNECT_S, _ANSWER_S = 5.0, 30.0
_HEAD_WITHIN_S = 30.0  # Ray ends a process whose head does not answer for a minute
_OBJECT_STORE_BYTES = 80 << 20  # the least that Ray takes: outcomes of tasks are all that goes through it
_LONGEST_FOLDER = 30  # characters of the temporary folder: names of sockets are below 108, and Ray adds 70
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # otherwise some versions warn; a `TaskActor` hides GPUs itself
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what nodes say of processes that died, which Ray prints on standard output
}
# Connects as a command does. A library in C++ tries for a minute, writes on stderr, and ends the process.
_PROBE = """
import sys
import ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
except Exception as error:
    print(str(error).strip().partition("\\n")[0])
    sys.exit(1)
"""


def require_ray() -> None:
    """Raises MissingDependency where Ray is not installed."""
    if find_spec("ray") is None:
        remedy = "Install it: pip install 'retrodb[ray]'."
        raise MissingDependency("the engine 'ray' needs the extra 'ray'", remedy=remedy)


def check_address(address: str, where: str | None = None) -> None:
    """Raises UsageError for what is no address of a Ray cluster that a command can use.

    Args:
        where: what gave the address; None is the address itself, as the user gave it.
    """
    if address in ("auto", "local"):
        return
    if "://" in address:
        what = "Ray Client runs no tasks of retrodb" if address.startswith("ray://") else "this is a URL"
        remedy = "Give HOST:PORT on a node of the cluster, or submit the command with 'ray job submit'."
        raise UsageError(f"{what}, and no address of a Ray cluster", where=where or address, remedy=remedy)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        remedy = "Give HOST:PORT, such as 10.0.0.5:6379, or 'auto' or 'local'."
        raise UsageError("this is no address of a Ray cluster", where=where or address, remedy=remedy)


@dataclass
class RayCluster:
    """A Ray cluster that this process is connected to."""

    is_own: bool  # no other process uses it, and no node joins it
    head: str  # HOST:PORT of the service of Ray that knows all nodes
    _answered_s: float = field(default_factory=time.monotonic)

    def has_head(self) -> bool:
        """Whether the head answers. Without it, tasks go on, but nothing can be asked of the cluster.

        Raises:
            RetroDBError: it has not answered for some time. Ray would end this process a little later.
        """
        try:
            _connect(self.head)
        except OSError as error:
            if time.monotonic() - self._answered_s > _HEAD_WITHIN_S:
                what = f"the head of the Ray cluster has not answered for {_HEAD_WITHIN_S:.0f} s"
                remedy = "Run the same command again when the cluster is back."
                raise RetroDBError(what, where=self.head, remedy=remedy) from error
            return False
        self._answered_s = time.monotonic()
        return True

    def nodes(self) -> list[NodeResources]:
        """The nodes that are alive."""
        import ray

        alive = (node["Resources"] for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]
        return [
            NodeResources(int(has.get("CPU", 0)), int(has.get("GPU", 0)), int(has.get("memory", 0))) for has in alive
        ]


@contextmanager
def connected(address: str | None, memory_bytes: int, note: Callable[[str], None]) -> Iterator[RayCluster]:
    """A cluster until the block ends; blocks in other threads share the connection of the process.

    Args:
        address: HOST:PORT, "auto" or "local"; None is that of the environment, of this machine, or a cluster of its own.
        memory_bytes: memory of the tasks on a cluster of its own.
        note: is told when one was started.

    Raises:
        RetroDBError: there is no cluster at this address, or none can be started.
        UsageError: the address is invalid, or this process is connected to another cluster.
    """
    cluster = _CONNECTION.enter(address, memory_bytes, note)
    try:
        yield cluster
    finally:
        _CONNECTION.leave()


class _Connection:
    """Ray has one connection for each process."""

    def __init__(self) -> None:
        self._lock, self._users, self._open = threading.Lock(), 0, ExitStack()
        self._address: str | None = None
        self._cluster: RayCluster | None = None

    def enter(self, address: str | None, memory_bytes: int, note: Callable[[str], None]) -> RayCluster:
        with self._lock:
            if self._users == 0:
                self._open = ExitStack()
                self._cluster = self._open.enter_context(_connected(address, memory_bytes, note))
                self._address = address
            elif address != self._address:
                _refuse_second(address)
            self._users += 1
            assert self._cluster is not None, "the first one has connected"
            return self._cluster

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._open.close()


_CONNECTION = _Connection()


@contextmanager
def _connected(address: str | None, memory_bytes: int, note: Callable[[str], None]) -> Iterator[RayCluster]:
    for name, value in _QUIET.items():  # before the first import
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():  # by the program that calls this library
        if address is not None and address != ray.get_runtime_context().gcs_address:
            _refuse_second(address)
        yield RayCluster(is_own=False, head=ray.get_runtime_context().gcs_address)
        return
    found = _find(address)
    with ExitStack() as stack:
        if found is None:
            folder = stack.enter_context(_short_folder())
            stack.callback(ray.shutdown)
            _start(folder, memory_bytes, note)
        else:
            stack.callback(ray.shutdown)
            _join(found)
        yield RayCluster(is_own=found is None, head=ray.get_runtime_context().gcs_address)


def _refuse_second(address: str | None) -> None:
    what = "this process is connected to another Ray cluster"
    raise UsageError(what, where=address, remedy="Use another process, or the address of that cluster.")


def _find(address: str | None) -> str | None:
    """What to connect to: an address where a cluster answers, or "auto"; None is a new cluster."""
    where = None
    if address in (None, "auto") and (variable := os.environ.get("RAY_ADDRESS", "").strip()):
        address, where = variable, f"RAY_ADDRESS={variable}"
    if address == "local":
        return None
    if address is not None and address != "auto":
        check_address(address, where)
        _check_reachable(address, address, where)
        return address
    started = _started_here()
    if started is None and address is None:
        return None
    if started is None:
        remedy = "Start one with 'ray start', or give its address with --ray-address."
        raise RetroDBError("no Ray cluster was found on this machine", remedy=remedy)
    _check_reachable(started, "auto")  # with which Ray also finds the token that a cluster of this machine may ask for
    return "auto"


def _started_here() -> str | None:
    """The address of the cluster that 'ray start' has started on this machine; None where it has ended."""
    file = Path(os.environ.get("RAY_TMPDIR") or "/tmp", "ray", "ray_current_cluster")
    with suppress(OSError, ValueError):
        address = file.read_text().strip()
        _connect(address)
        return address
    return None


def _connect(address: str) -> None:
    """Raises OSError where nothing answers."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()


def _check_reachable(address: str, given: str, where: str | None = None) -> None:
    """Raises RetroDBError where no Ray cluster answers that this process can use, when it gives Ray an address."""
    where = where or address
    remedy = "Start a cluster there with 'ray start', or give another address with --ray-address."
    try:
        _connect(address)
    except OSError as error:
        reason = error.strerror or str(error) or "no answer"
        raise RetroDBError(f"the Ray cluster cannot be reached ({reason})", where=where, remedy=remedy) from error
    program = [sys.executable, "-c", _PROBE, given]
    try:
        done = subprocess.run(program, capture_output=True, timeout=_ANSWER_S, check=False, text=True, errors="replace")
    except subprocess.TimeoutExpired:
        what = f"no Ray cluster answers here within {_ANSWER_S:.0f} s"
        raise RetroDBError(what, where=where, remedy=remedy) from None
    if done.returncode != 0:
        reason = done.stdout.strip() or "Ray gives no reason"
        remedy = (
            "Run the command on a node of the cluster, with the cluster's versions of Ray and Python. If the cluster asks for a "
            "token, set RAY_AUTH_MODE=token."
        )
        raise RetroDBError(f"the Ray cluster cannot be used ({reason})", where=where, remedy=remedy)


def _join(address: str) -> None:
    """Connect to a cluster that has just answered. Raises RetroDBError."""
    import ray

    try:
        with _signals_kept():
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:
        what = f"the Ray cluster cannot be used ({_first_line(error)})"
        raise RetroDBError(what, where=address, remedy="Run the same command again.") from error


def _start(folder: str, memory_bytes: int, note: Callable[[str], None]) -> None:
    """Start a cluster of this machine alone, which ends with the connection. Raises RetroDBError."""
    import ray

    _have_token()
    cpus = available_cpus()
    try:
        with _signals_kept():
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                object_store_memory=_OBJECT_STORE_BYTES,
                _memory=memory_bytes,
                _temp_dir=folder,
            )
    except Exception as error:
        what = f"a Ray cluster cannot be started here ({_first_line(error)})"
        raise RetroDBError(what, remedy="Start one with 'ray start', or leave out --engine ray.") from error
    size = f"{cpus} CPUs and {size_text(memory_bytes)} of memory"
    note(f"a Ray cluster of this machine was started: it has {size}, and ends with the command")


def _have_token() -> None:
    """Have a token for a cluster of its own. Where there is none, Ray writes one into the home folder, for everybody to read."""
    names = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if not any(name in os.environ for name in names) and not Path.home().joinpath(".ray", "auth_token").exists():
        os.environ["RAY_AUTH_TOKEN"] = token_hex(32)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def _short_folder() -> Iterator[str]:
    """A temporary folder for sockets and logs of a cluster."""
    root = gettempdir() if len(gettempdir()) <= _LONGEST_FOLDER else "/tmp"
    with TemporaryDirectory(prefix="retrodb-ray-", dir=root, ignore_cleanup_errors=True) as folder:
        yield folder


@contextmanager
def _signals_kept() -> Iterator[None]:
    """SIGTERM ends the process as it does without Ray, whose own handler gives other exit codes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
