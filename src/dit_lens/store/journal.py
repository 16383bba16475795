"""The journal: what stands in it exists. One JSON object a line, only ever appended to, locked by its writer.

Lines are of three kinds: `{"session": ...}` when a writer opens the run, `{"unit": ...}` for one unit, and
`{"step": k, ...}`, which commits the step's units that stand before it. Units of no step need no such line.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dit_lens.errors import StoreError
from dit_lens.store.layout import STATE_DIMS

NAME = "journal.jsonl"
UnitKey = tuple[str, tuple[int, ...]]
"""Variable and positions on those of (step, branch, layer) that it is cut along."""


@dataclass(frozen=True)
class Entry:
    """What the journal says of one unit: size of its file, crc32c of its values, counts of NaN and Inf."""

    bytes: int
    crc32c: int
    nan: int
    inf: int


@dataclass
class Ledger:
    """A journal as read: the committed units, the committed steps, and where its last commit ends."""

    units: dict[UnitKey, Entry] = field(default_factory=dict)
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    session: dict[str, Any] = field(default_factory=dict)
    end: int = 0

    def totals(self, what: str) -> dict[str, int]:
        """Return the sum of one count (`nan`, `inf` or `bytes`) over the units of each variable."""
        sums: dict[str, int] = {}
        for (name, _), entry in self.units.items():
            sums[name] = sums.get(name, 0) + getattr(entry, what)
        return sums


def unit_line(name: str, at: dict[str, int], entry: Entry) -> dict[str, Any]:
    """Return the line of one unit."""
    counts = {"bytes": entry.bytes, "crc32c": f"{entry.crc32c:08x}", "nan": entry.nan, "inf": entry.inf}
    return {"unit": name, "at": at, **counts}


def parse(data: bytes, label: str) -> Ledger:
    """Read a journal's bytes. A last line that is torn, and units whose step never came, do not count.

    Raises:
        StoreError: If a line before the last is not a journal line.
    """
    ledger = Ledger()
    waiting: dict[UnitKey, Entry] = {}
    lines = data.split(b"\n")[:-1]  # what follows the last newline is nothing, or torn
    offset = 0
    for number, line in enumerate(lines, start=1):
        offset += len(line) + 1
        try:
            _take(json.loads(line), ledger, waiting)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                break
            raise StoreError(
                f"{label} line {number} is not a journal line ({line[:60]!r}): it was edited or damaged; "
                "what stands before that line can be kept by cutting the file there"
            ) from error
        if not waiting:
            ledger.end = offset
    return ledger


def _take(line: dict[str, Any], ledger: Ledger, waiting: dict[UnitKey, Entry]) -> None:
    if "unit" in line:
        at = line["at"]
        key = (str(line["unit"]), tuple(int(at[dim]) for dim in STATE_DIMS if dim in at))
        entry = Entry(line["bytes"], int(line["crc32c"], 16), line["nan"], line["inf"])
        (waiting if "step" in at else ledger.units)[key] = entry
        return
    if "step" in line:
        step = int(line["step"])
        ledger.units.update({key: entry for key, entry in waiting.items() if key[1][0] == step})
        ledger.steps[step] = {key: value for key, value in line.items() if key != "step"}
    else:
        ledger.session = dict(line["session"])
    waiting.clear()


def read(folder: str | os.PathLike[str]) -> Ledger:
    """Read the journal of the run in `folder`; one that does not exist yet is empty."""
    path = os.path.join(folder, NAME)
    try:
        with open(path, "rb") as file:
            return parse(file.read(), path)
    except FileNotFoundError:
        return Ledger()


class Journal:
    """A run's journal, held by one writer: locked while open, changed only from `begin` on.

    The lock is the kernel's (`flock` on the journal itself), so that of a dead process is gone with it.
    """

    def __init__(self, folder: str, durable: bool) -> None:
        self.path = os.path.join(folder, NAME)
        self._durable = durable
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self._lock()
            with open(self.path, "rb") as file:
                self.ledger = parse(file.read(), self.path)
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        import fcntl  # POSIX only: runs are written there, and read anywhere

        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with open(self.path, "rb") as file:
                holder = parse(file.read(), self.path).session
            raise StoreError(
                f"{self.path} is locked: this run is being written by pid {holder.get('pid')} on "
                f"{holder.get('host')} since {holder.get('time')}; "
                "wait for it, end it, or give this run another seed or plan"
            ) from error

    def begin(self) -> None:
        """Cut the journal back to its last commit, and say who writes from here on."""
        os.ftruncate(self._fd, self.ledger.end)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        session = {"pid": os.getpid(), "host": socket.gethostname(), "time": time}
        self._write([{"session": session}])  # durable with the first commit

    def append(self, lines: Iterable[dict[str, Any]]) -> None:
        """Append lines in one write, and return when they are on disk."""
        self._write(lines)
        if self._durable:
            os.fsync(self._fd)

    def _write(self, lines: Iterable[dict[str, Any]]) -> None:
        text = "".join(
            json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n" for line in lines
        ).encode()
        while text:
            text = text[os.write(self._fd, text) :]

    def close(self) -> None:
        """Let go of the lock. Calling it again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
