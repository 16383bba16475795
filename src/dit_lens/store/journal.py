"""The journal: what stands in it exists. One JSON object a line, only ever appended to, locked by its writer.

Lines are of three kinds: `{"session": ...}` when a writer opens the run, `{"unit": ...}` for one unit, and
`{"step": k, ...}`, which commits the step's units that stand before it. Units of no step need no such line.
"""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dit_lens.errors import DamageError, StoreError
from dit_lens.store import checksums, files
from dit_lens.store.layout import STATE_DIMS
from dit_lens.store.lock import FileLock, LockedError
from dit_lens.store.tenure import Tenure, free_leftovers, tenures

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
        DamageError: If a line before the last is not a journal line.
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
            raise DamageError(
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
    return parse(read_bytes(folder) or b"", os.path.join(folder, NAME))


def read_bytes(folder: str | os.PathLike[str]) -> bytes | None:
    """Return the bytes of the journal of the run in `folder`; None where there is no journal."""
    return files.read_if_there(os.path.join(folder, NAME))


def stamp(folder: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """Return what changes whenever the journal of the run in `folder` does; None where there is no journal."""
    try:
        found = os.stat(os.path.join(folder, NAME))
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def seal(data: bytes) -> dict[str, Any]:
    """Return what a complete run says of its journal, so that one that was cut or lost is known."""
    return {"bytes": len(data), "crc32c": checksums.crc32c(data)}


class Journal:
    """A run's journal, held by one writer: locked while open, changed only from `begin` on.

    Args:
        folder: The run's folder.
        durable: Whether `append` waits for the disk.
        tenure: Of the writer; what an interrupted writer of this process left locked is freed for it. Default:
            a new one.
        exclusive: Whether it is locked. A folder that nobody else can know of needs no lock.

    Raises:
        StoreError: If another writer has the run, or a line is damaged.
        OSError: If the file cannot be opened, locked or read.
    """

    def __init__(
        self, folder: str, durable: bool, tenure: Tenure | None = None, exclusive: bool = True
    ) -> None:
        self.path = os.path.join(folder, NAME)
        self._durable, self._tenure = durable, tenure or Tenure(folder, changing=False)
        # A file object, not a descriptor: where an interrupt comes before it has a name, it closes itself.
        self._file: io.FileIO | None = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        self.lock = FileLock(self.path, self._file.fileno())
        self._tenure.journal = self
        try:
            if exclusive:
                self._take_lock(folder)
            self.ledger = parse(files.read_file(self.path), self.path)
        except BaseException:
            self.close()
            raise
        self._size = self.ledger.end

    def _take_lock(self, folder: str) -> None:
        try:
            self.lock.acquire(_lock_files())
        except LockedError as error:
            if free_leftovers(folder, self._tenure):
                return self._take_lock(folder)
            holder = error.holder or parse(files.read_file(self.path), self.path).session
            raise StoreError(
                f"{self.path} is locked: this run is being written by pid {holder.get('pid')} on "
                f"{holder.get('host')} since {holder.get('time')}; "
                "wait for it, end it, or give this run another seed or plan"
                + (f". If that process is gone, remove {holder['file']}" if "file" in holder else "")
            ) from error
        self._check_place()
        return None

    def _check_place(self) -> None:
        """Refuse to go on with a file that is no longer the run's journal: its folder was removed."""
        opened = os.fstat(self._descriptor)
        try:
            current = os.stat(self.path)
        except FileNotFoundError:
            current = None
        if current is None or (opened.st_dev, opened.st_ino) != (current.st_dev, current.st_ino):
            raise StoreError(f"{self.path} was removed or replaced while the run was written")

    @property
    def _descriptor(self) -> int:
        if self._file is None:
            raise StoreError(f"{self.path} is closed")
        return self._file.fileno()

    def forget(self) -> None:
        """Empty the journal: nothing of the run is committed any more."""
        os.ftruncate(self._descriptor, 0)
        self.ledger, self._size = Ledger(), 0

    def begin(self) -> None:
        """Cut the journal back to its last commit, and say who writes from here on."""
        os.ftruncate(self._descriptor, self.ledger.end)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        session = {"pid": os.getpid(), "host": socket.gethostname(), "time": time}
        self._write([{"session": session}])  # durable with the first commit

    def append(self, lines: Iterable[dict[str, Any]]) -> None:
        """Append lines in one write, and return when they are on disk; where that fails, none of them stands.

        Raises:
            StoreError: If the run's folder was removed.
            OSError: If the disk refuses.
        """
        self._check_place()
        before = self._size
        try:
            self._write(lines)
            if self._durable:
                os.fsync(self._descriptor)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._descriptor, before)
            raise

    def _write(self, lines: Iterable[dict[str, Any]]) -> None:
        text = "".join(
            json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n" for line in lines
        ).encode()
        size = self._size + len(text)
        while text:
            text = text[os.write(self._descriptor, text) :]
        self._size = size

    def seal(self) -> dict[str, Any]:
        """Return what a complete run says of this journal."""
        self._check_place()
        return seal(files.read_file(self.path))

    def close(self) -> None:
        """Let go of the lock. Calling it again does nothing."""
        if self._file is not None:
            self.lock.release()
            self._file.close()
            self._file = None


def _lock_files() -> set[str]:
    """Return the lock files of the journals that this process holds."""
    return {t.journal.lock.file for t in tenures() if t.journal is not None and not t.over}
