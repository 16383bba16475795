"""Finding the samples of a benchmark folder by the names of its folders; no file is opened.

Samples stand in `ROOT/In-Domain_50/<task>/<00000>/` and `ROOT/Out-of-Domain_50/<task>/<00000>/`. Tasks are named
`[GO]-<number>_<name>_data-generator` (https://github.com/Video-Reason/VBVR-EvalKit, README, "Download Ground
Truth Data"). The data generators themselves write another layout,
`questions/<task>/<name>_task/<name>_00000000/` (https://github.com/Video-Reason/VBVR-DataFactory, README,
"Output Structure"), which is named as such where it is found. Whatever else lies around is left alone.

The video setting of VBVR-Pro-Bench has the same folders, and a `metadata.json` in each sample; its image setting has
`frame_1.png` and so on in place of the video, and is refused
(https://github.com/Video-Reason/VBVR-Pro-Bench, README, "Download Ground Truth Data").
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dit_lens.errors import TaskError
from dit_lens.tasks.vbvr.metadata import NAME as METADATA

SPLITS = ("In-Domain_50", "Out-of-Domain_50")
TASK = re.compile(r"[A-Z]-\d+_")
RAW_SAMPLE = re.compile(r".+_\d{4,}")
EXPECTED = "ROOT/In-Domain_50/G-2_some_task_data-generator/00000/first_frame.png"


@dataclass(frozen=True)
class SampleEntry:
    """Where a sample stands, and what it is called; none of its files has been read.

    Attributes:
        split: folder of the split, such as `In-Domain_50`.
        task: folder of the task, such as `O-39_maze_data-generator`.
        id: folder of the sample, such as `00000`.
        folder: its path.
    """

    split: str
    task: str
    id: str
    folder: Path

    @property
    def label(self) -> str:
        """`split/task/id`: the sample's name in results, scores and folders."""
        return f"{self.split}/{self.task}/{self.id}"


def by_number(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Return a key by which numbers in names sort as numbers: G-2 before G-10."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)


def folders(path: Path) -> list[Path]:
    """Return the folders in a folder, without hidden ones, numbers in order."""
    try:
        visible = [p for p in path.iterdir() if not p.name.startswith(".") and p.is_dir()]
    except OSError as error:
        raise TaskError(f"{path}: the folder cannot be listed ({error}). Check its permissions.") from error
    return sorted(visible, key=lambda p: by_number(p.name))


def _samples(task: Path) -> list[Path]:
    return [f for f in folders(task) if is_sample(f)]


def is_sample(folder: Path) -> bool:
    """Return whether this is a folder with a number for a name that holds anything but hidden files."""
    if not re.fullmatch("[0-9]+", folder.name) or not folder.is_dir():
        return False
    try:
        return any(not p.name.startswith(".") for p in folder.iterdir())
    except OSError:
        return True  # reading it will say why not


def _tasks(split: Path) -> list[Path]:
    return [f for f in folders(split) if _samples(f)]


def find(
    root: Path, split: str | Sequence[str] | None, tasks: str | Sequence[str] | None
) -> list[SampleEntry]:
    """List the samples of a benchmark, in order.

    Args:
        root: the folder of the benchmark.
        split: folders of splits. Default: all.
        tasks: names of tasks, whole or up to an underscore (`O-39`). Default: all.

    Raises:
        TaskError: no such folder, no samples in it, or no such split or task; with a hint.
    """
    if not root.is_dir():
        near = _nearest(root.name, [p.name for p in folders(root.parent)]) if root.parent.is_dir() else ""
        raise TaskError(f"vbvr({str(root)!r}): there is no such folder.{near} Expected: {EXPECTED}.")
    tasks_of = {f.name: _tasks(f) for f in folders(root)}
    tasks_of = {name: paths for name, paths in tasks_of.items() if paths}
    if not tasks_of:
        raise TaskError(f"vbvr({str(root)!r}): no samples here. {_hint(root)}")
    chosen = _chosen(names(split), tasks_of, root)
    wanted = names(tasks)
    entries = [
        SampleEntry(name, task.name, sample.name, sample)
        for name in chosen
        for task in tasks_of[name]
        if wanted is None or any(is_task(task.name, w) for w in wanted)
        for sample in _samples(task)
    ]
    for task_name in wanted or ():
        if not any(is_task(e.task, task_name) for e in entries):
            raise TaskError(_no_task(task_name, chosen, tasks_of, root))
    _refuse_pictures(root, entries)
    return entries


def _refuse_pictures(root: Path, entries: Sequence[SampleEntry]) -> None:
    pictures = [e.label for e in entries if _is_of_pictures(e.folder)]
    if pictures:
        raise TaskError(
            f"vbvr({str(root)!r}): {len(pictures)} samples, such as {pictures[0]}, have frame_1.png in place of "
            "ground_truth.mp4: they are of the image setting of VBVR-Pro-Bench, which asks for pictures. Give the folder of its "
            "video setting, VBVR-Pro-Bench-Video."
        )


def _is_of_pictures(sample: Path) -> bool:
    return (sample / "frame_1.png").exists() and not (sample / "ground_truth.mp4").exists()


def names(listed: str | Sequence[str] | None) -> list[str] | None:
    """Return names as a list: one name, several, or several in one text with commas."""
    parts = listed.split(",") if isinstance(listed, str) else listed
    return None if parts is None else [p.strip() for p in parts if p.strip()]


def is_task(name: str, wanted: str) -> bool:
    """Return whether a task is meant: by its whole name, or up to an underscore."""
    return name == wanted or name.startswith(f"{wanted}_")


def _chosen(wanted: list[str] | None, tasks_of: dict[str, list[Path]], root: Path) -> list[str]:
    for name in wanted or ():
        if name not in tasks_of:
            raise TaskError(
                f"vbvr({str(root)!r}): split {name!r} is not here, or has no samples; there "
                f"{_are(sorted(tasks_of, key=by_number))}.{_nearest(name, tasks_of)}"
            )
    return [name for name in tasks_of if wanted is None or name in wanted]


def _no_task(wanted: str, chosen: list[str], tasks_of: dict[str, list[Path]], root: Path) -> str:
    task_names = [t.name for name in chosen for t in tasks_of[name]]
    said = f"vbvr({str(root)!r}): no task {wanted!r} in {', '.join(chosen)}."
    for other, tasks in tasks_of.items():
        if other not in chosen and any(is_task(t.name, wanted) for t in tasks):
            return f"{said} It is in split {other!r}."
    return f"{said}{_nearest(wanted, task_names) or f' There {_are(task_names)}.'}"


def _are(listed: list[str]) -> str:
    shown = ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
    return f"{'is' if len(listed) == 1 else 'are'} {shown}"


def _nearest(name: str, known: Iterable[str]) -> str:
    """Say which known name is meant, whatever its case, hyphens and generator's suffix; nothing if none is near."""
    plain = {_plain(k): k for k in known}
    near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.5)
    return f" Did you mean {plain[near[0]]!r}?" if near else ""


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]+", "-", name.lower()).removesuffix("-data-generator").removesuffix("-50")


def _hint(root: Path) -> str:
    """Say what a folder without samples is, where it can be told."""
    inside = folders(root)
    if (root / "prompt.txt").exists() or (root / "first_frame.png").exists():
        return (
            f"This is the folder of one sample; give the benchmark: vbvr({str(root.parent.parent.parent)!r})."
        )
    if _samples(root):
        return f"This is the folder of one task; give the benchmark: vbvr({str(root.parent.parent)!r})."
    raw = _raw(root)
    if raw is not None:
        return (
            f"{raw} is in the data generators' raw layout (<task>/<name>_task/<name>_00000000/). Move each "
            f"sample to a folder of split and task, with a number for a name: {EXPECTED}."
        )
    if any(_samples(f) for f in inside):
        return f"This is the folder of one split; give vbvr({str(root.parent)!r}, split={root.name!r})."
    for below in inside:
        tasks = [task for split in folders(below) for task in _tasks(split)]
        if tasks and not _is_of_pictures(_samples(tasks[0])[0]):
            return f"The benchmark is one folder further down: vbvr({str(below)!r})."
    packed = sorted(p.name for p in root.iterdir() if p.name.endswith((".tar.gz", ".tar", ".zip")))
    if packed:
        return f"{packed[0]} is still packed: unpack it, and give the folder that comes out."
    return f"Expected: {EXPECTED}. Get it with `hf download Video-Reason/VBVR-Bench-Data --repo-type dataset --local-dir ROOT`."


def hints(root: Path) -> list[str]:
    """Say what of a benchmark folder looks like samples and is passed over, or is taken for something else."""
    hints = []
    for folder in folders(root):
        inside = folders(folder)
        tasks = [f for f in inside if _samples(f)]
        near = _nearest(folder.name, SPLITS)
        if folder.name not in SPLITS and tasks and near:
            hints.append(f"{folder} is taken for a split of its own.{near}")
        elif folder.name in SPLITS and not tasks:
            hints.append(f"{folder} holds no samples.")
        elif not tasks and _samples(folder):
            hints.append(
                f"{folder} is passed over: it looks like a task, and stands where a split should be."
            )
        for task in inside if tasks else ():
            hints += _hints_in_task(task)
    raw = _raw(root)
    if raw is not None:
        hints.append(f"{raw} is passed over: it is in the data generators' raw layout; expected: {EXPECTED}.")
    return hints


def hints_of_metadata(entries: Sequence[SampleEntry]) -> list[str]:
    """Say which samples lack the metadata that others have: the evaluator of VBVR-Pro-Bench cannot judge them."""
    lacking = [e.label for e in entries if not (e.folder / METADATA).exists()]
    if not lacking or len(lacking) == len(entries):
        return []
    shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
    return [
        f"{len(lacking)} of {len(entries)} samples have no {METADATA}, without which the evaluator of VBVR-Pro-Bench gives no "
        f"score: {shown}."
    ]


def _hints_in_task(task: Path) -> list[str]:
    """Say which samples of a task are empty folders, and whether all of them are."""
    numbered = [f for f in folders(task) if re.fullmatch("[0-9]+", f.name)]
    empty = [f.name for f in numbered if not is_sample(f)]
    if empty:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        return [f"{task} has {len(empty)} empty folders, which are passed over: {shown}."]
    if not numbered and TASK.match(task.name):
        return [f"{task} holds no samples."]
    return []


def _raw(root: Path, depth: int = 3) -> Path | None:
    """Return a folder `<name>_task` with samples `<name>_00000000` in it, at most `depth` folders down."""
    for folder in folders(root):
        if folder.name.endswith("_task") and any(RAW_SAMPLE.fullmatch(f.name) for f in folders(folder)):
            return folder
        if depth > 1 and (raw := _raw(folder, depth - 1)):
            return raw
    return None
