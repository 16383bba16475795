"""A folder of VBVR-Bench as a sequence of samples, read one at a time."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dit_lens.errors import TaskError
from dit_lens.tasks.files import BrokenFileError
from dit_lens.tasks.vbvr import layout
from dit_lens.tasks.vbvr.evaluate import score
from dit_lens.tasks.vbvr.join import join
from dit_lens.tasks.vbvr.layout import SampleEntry
from dit_lens.tasks.vbvr.manifest import Known, read_manifest
from dit_lens.tasks.vbvr.metadata import read_metadata, unread
from dit_lens.tasks.vbvr.sample import VbvrSample, read_sample
from dit_lens.tasks.vbvr.scores import read_scores


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be read.

    Attributes:
        entry: which one.
        kind: what is wrong, the same text for all samples so broken: `git-LFS pointer`, `truncated image`, ...
        file: the file that is broken.
        reason: the whole message, with file, reason and remedy.
    """

    entry: SampleEntry
    kind: str
    file: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.entry.label}: {self.reason}"


@dataclass(frozen=True)
class Summary:
    """What became of the samples of a benchmark so far; `print` it at the end.

    Attributes:
        listed: samples found by their folders.
        read: of these, how many were read.
        skipped: of these, how many were broken, each with its reason.
        missing: samples that the manifest names and that have no folder.
        notes: what else is worth knowing, such as a manifest that could not be used.
    """

    listed: int
    read: int
    skipped: tuple[Skipped, ...]
    missing: tuple[Known, ...]
    notes: tuple[str, ...]

    @property
    def kinds(self) -> dict[str, int]:
        """How many samples were skipped for which reason, most first."""
        return dict(Counter(s.kind for s in self.skipped).most_common())

    def __str__(self) -> str:
        left = self.listed - self.read - len(self.skipped)
        lines = [f"{self.listed} samples: {self.read} read, {len(self.skipped)} skipped, {left} not read yet"]
        lines += [f"  {n} x {kind}" for kind, n in self.kinds.items()]
        lines += [f"  {s}" for s in self.skipped]
        for split, n in Counter(split for split, _, _ in self.missing).items():
            some = [f"{task}/{sample}" for s, task, sample in self.missing if s == split][:3]
            lines.append(
                f"{n} samples of {split} are in the manifest and not here: {', '.join(some)}, ..."[:200]
            )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


class Bench:
    """A folder of VBVR-Bench, or of the video setting of VBVR-Pro-Bench: iterate to get its samples, `dl.tasks.vbvr(root)`.

    `dl.tasks.vbvr` is this class. Like `range` or `zip` it is used as a function, and what it returns is lazy;
    as it is a class, what else belongs to the benchmark is found on it: `vbvr.read_scores`, `vbvr.join` and
    `vbvr.score`, which need no folder to have been opened.

    Listing and `len` look at folders only. A sample's files are read when its turn comes, one sample at a
    time; no sample stays in memory. A broken sample is left out: a warning names file and reason, `summary()` counts
    all of them, and the other samples come as if the broken one did not exist. So `len` may be more than what iterating yields.

    Example:
        >>> samples = dl.tasks.vbvr("VBVR-Bench", split="In-Domain_50", frames_multiple=4)  # doctest: +SKIP
        >>> for sample in samples:  # doctest: +SKIP
        ...     lens.run(sample, seed=0, record=[dl.energy], store=f"runs/{sample.task}.zarr")
        >>> print(samples.summary())  # doctest: +SKIP
        250 samples: 249 read, 1 skipped, 0 not read yet
          1 x git-LFS pointer
          In-Domain_50/G-3_stable_sort_data-generator/00002: .../ground_truth.mp4: git-LFS pointer (...)
    """

    score = staticmethod(score)
    read_scores = staticmethod(read_scores)
    join = staticmethod(join)

    def __init__(
        self,
        root: str | Path,
        split: str | Sequence[str] | None = None,
        tasks: str | Sequence[str] | None = None,
        max_samples: int | None = None,
        strict: bool = False,
        frames_multiple: int = 1,
        size_multiple: int = 1,
        num_frames: int | None = None,
    ) -> None:
        """List the samples of a benchmark folder.

        Args:
            root: the folder that holds `In-Domain_50` and `Out-of-Domain_50`.
            split: one of these folders, or several. Default: all.
            tasks: whole names, or up to an underscore: `"O-39"`, `["G-2", "O-39_maze"]`, `"G-2,O-39"`.
                Default: all.
            max_samples: how many of the chosen samples, from the first on (not of each task);
                broken samples count, so that a repaired file does not shift the choice.
            strict: a broken or missing sample is an error.
            frames_multiple: the number of frames is rounded up to one more than a multiple of this: 4 for Wan
                (4k + 1), 8 for LTX (8k + 1). 1 leaves it as the ground truth has it.
            size_multiple: height and width are rounded up to a multiple of this: 16 for Wan, 32 for LTX. 1
                leaves them as the first frame has them. The picture itself is not touched: a pipeline scales
                it to the sample's size.
            num_frames: frames of every sample. With it, a sample without a ground-truth video can be read. Default: the
                frames of that video.

        Raises:
            TaskError: no such folder, no samples in it, no such split or task (with a hint), samples of pictures in
                place of videos, or a number below 1.
        """
        for name, n in (
            ("max_samples", max_samples),
            ("frames_multiple", frames_multiple),
            ("size_multiple", size_multiple),
            ("num_frames", num_frames),
        ):
            if n is not None and n < 1:
                raise TaskError(f"vbvr({str(root)!r}, {name}={n}): give at least 1.")
        self.root, self.strict = Path(root).expanduser(), strict
        self._asked = (layout.names(split), layout.names(tasks))
        self.frames_multiple, self.size_multiple, self.num_frames = frames_multiple, size_multiple, num_frames
        self.entries = layout.find(self.root, split, tasks)[:max_samples]
        self._hints = [*layout.hints(self.root), *layout.hints_of_metadata(self.entries)]
        for hint in self._hints:
            warnings.warn(f"vbvr({str(root)!r}): {hint}", stacklevel=2)
        self._odd: dict[str, str] = {}
        self._unread: set[str] = set()
        self._read: set[str] = set()
        self._skipped: dict[str, Skipped] = {}

    def __repr__(self) -> str:
        tasks = len({(e.split, e.task) for e in self.entries})
        return f"<vbvr {str(self.root)!r}: {len(self)} samples of {tasks} tasks>"

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> VbvrSample:
        """Read one sample.

        Raises:
            TaskError: it is broken.
        """
        return self.read(self.entries[index])

    def __iter__(self) -> Iterator[VbvrSample]:
        """Yield the samples in order, without those that are broken.

        Raises:
            TaskError: with `strict`, one is broken, or the manifest names one that is not here.
        """
        if self.strict and self.missing:
            first = "/".join(self.missing[0])
            raise TaskError(
                f"vbvr({str(self.root)!r}, strict=True): {len(self.missing)} samples of the manifest have no "
                f"folder here, such as {first}. Get them, or go on without: strict=False."
            )
        for entry in self.entries:
            try:
                sample = self.read(entry)
            except BrokenFileError as error:
                if self.strict:
                    raise
                warnings.warn(f"skipped {entry.label}: {error}", stacklevel=2)
                continue
            yield sample

    def read(self, entry: SampleEntry) -> VbvrSample:
        """Read one sample, and note for the summary how it went.

        Raises:
            TaskError: it is broken.
        """
        try:
            sample = read_sample(entry, self.frames_multiple, self.size_multiple, self.num_frames)
        except BrokenFileError as error:
            self._read.discard(entry.label)
            self._skipped[entry.label] = Skipped(entry, error.kind, error.path, str(error))
            raise
        self._skipped.pop(entry.label, None)
        self._read.add(entry.label)
        self._report(entry)
        return sample

    def _report(self, entry: SampleEntry) -> None:
        """Warn of what no model is shown, and the evaluator will refuse."""
        self._odd.pop(entry.label, None)
        try:
            self._unread |= unread(read_metadata(entry.folder))
        except BrokenFileError as error:
            self._odd[entry.label] = f"{entry.label}: {error}"
            warnings.warn(self._odd[entry.label], stacklevel=4)

    @property
    def missing(self) -> tuple[Known, ...]:
        """Samples that the manifest names, of the chosen splits and tasks, and that have no folder."""
        return self._manifest[0]

    @cached_property
    def _manifest(self) -> tuple[tuple[Known, ...], str]:
        """Missing samples and a note; read at its first use, as the file is large."""
        known, note = read_manifest(self.root)
        splits, tasks = self._asked
        missing = [
            (split, task, sample)
            for split, task, sample in known
            if (splits is None or split in splits)
            and (tasks is None or any(layout.is_task(task, t) for t in tasks))
            and not layout.is_sample(self.root / split / task / sample)
        ]
        return tuple(sorted(missing, key=lambda k: layout.by_number("/".join(k)))), note

    def summary(self) -> Summary:
        """Return what became of the samples so far."""
        note = self._manifest[1]
        keys = ", ".join(sorted(self._unread))
        left = f"metadata.json also has {keys}, which the evaluator alone may read" if keys else ""
        notes = (*self._hints, *self._odd.values(), *(said for said in (note, left) if said))
        skipped = tuple(self._skipped[e.label] for e in self.entries if e.label in self._skipped)
        return Summary(len(self), len(self._read), skipped, self.missing, notes)
