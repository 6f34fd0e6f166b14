"""Who serves a state folder: one process at a time, held by a lock that ends with it, and told to whoever asks.

The lock is on the folder ``owners`` of the state folder itself, not on a file with a process id in it: it is free when
its holder is dead, whoever has its process id then; a copy of the folder has a lock of its own; nothing can be tidied
away beneath it; and children that are forked do not keep it. What is said about the holder is beside it, in
``server.json``, and is worth something only while the lock is held.

A successor takes over by being given the descriptor of the lock.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import attrs

from sandboxrt.errors import SandboxClientError
from sandboxrt.store.database import naming
from sandboxrt.store.owners import OwnerLock

__all__ = ["Incumbent", "ServingLock", "incumbent"]

_FILE: Final = "server.json"
_MAX_BYTES: Final = 4096
_TRIES: Final = 20
_PAUSE_S: Final = 0.005


@attrs.frozen(kw_only=True)
class Incumbent:
    """The process that serves a state folder.

    Attributes:
        pid: Its id, as it knows itself.
        since: When it began, ISO-8601, UTC.
        url: Where it answers; ``None`` while it starts.
    """

    pid: int
    since: str
    url: str | None = None

    def __str__(self) -> str:
        return f"process {self.pid}, since {self.since}, {f'at {self.url}' if self.url else 'which is starting'}"


@attrs.frozen
class ServingLock:
    """The right to serve a state folder, held. Made by :meth:`held`."""

    state_dir: Path
    lock: OwnerLock
    _since: str

    @classmethod
    @contextmanager
    def held(cls, state_dir: Path) -> Iterator[ServingLock]:
        """Hold it for the length of the block. Blocking, and quick.

        Args:
            state_dir: A state folder that is open.

        Raises:
            SandboxClientError: Another process serves the folder; the message has its id, its address and what to do.
        """
        with naming(state_dir):
            lock = _take(state_dir)
        try:
            held = cls(state_dir, lock, datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"))
            held.announce(None)
            yield held
        finally:
            (state_dir / _FILE).unlink(missing_ok=True)
            lock.release(forget=False)

    def announce(self, url: str | None) -> None:
        """Tell where it answers. Blocking, and quick."""
        draft = self.state_dir / f".{_FILE}.{os.getpid()}"
        with naming(self.state_dir):
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
                json.dump(attrs.asdict(Incumbent(pid=os.getpid(), since=self._since, url=url)), file)
            draft.replace(self.state_dir / _FILE)


def incumbent(state_dir: Path) -> Incumbent | None:
    """Who serves a state folder now, or ``None``. Blocking, and quick.

    A server whose words cannot be read has the process id 0.
    """
    if OwnerLock.is_free(state_dir / "owners"):
        return None
    try:
        with open(state_dir / _FILE, "rb") as file:
            return Incumbent(**json.loads(file.read(_MAX_BYTES)))
    except (OSError, ValueError, TypeError):
        return Incumbent(pid=0, since="")


def _take(state_dir: Path) -> OwnerLock:
    for _ in range(_TRIES):
        lock = OwnerLock.take(state_dir / "owners")
        if lock is not None:
            return lock
        holder = incumbent(state_dir)
        if holder is not None:
            raise SandboxClientError(_refusal(state_dir, holder))
        time.sleep(_PAUSE_S)  # Somebody asked whether it is free, which holds it for some microseconds.
    raise SandboxClientError(f"Cannot use the state folder {state_dir}: its lock is asked for all the time; try again")


def _refusal(state_dir: Path, holder: Incumbent) -> str:
    who, how = (str(holder), f"stop it (kill {holder.pid})") if holder.pid else ("another process", "end it")
    return (
        f"The state folder {state_dir} is served already, by {who}. Use that server, or {how} and start again: the "
        "sandboxes stay. A second server needs a state folder of its own (--state-dir)"
    )
