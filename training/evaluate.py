"""Measure the organisms: what each solves, by set, number of steps and, with --layers, of layers.

Usage:
    python training/evaluate.py --names full two-expert few4 --n 128    # on a CPU; --device cuda on a GPU
    python training/evaluate.py --names full --sets arrows2 arrows8 arrows20 --layers 4 8 12 16 --steps 4 20 --out runs/depth
    python training/evaluate.py --names full --sets latin choose --guidance 1 2 4 --steps 20 --out runs/guidance
    python training/evaluate.py --names full --videos runs/videos                 # again: judges those videos, makes none
    python training/card.py runs/evaluation/*.json --card docs/organism.md        # tables of what was measured

The networks of `network.py` run here, in float32, from the noise that the pipeline draws for seed i in scene i; a test holds
the two against each other. A run of one step ends with what x0 of step 0 is in a longer one, so that one run says both.
"""

from __future__ import annotations

import copy
import hashlib
import json
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tyro
from tqdm import tqdm

from dit_lens.models.organism.table import ORGANISMS
from judging import SETS, Verdict, judge, question
from recipes import RECIPES

ONE = "1 step"

Row = tuple[str, int]
"""A scene: its set and its number."""


class Pending(NamedTuple):
    """What is being judged of one organism.

    Attributes:
        out: file of the results.
        about: what is said beside them.
        verdicts: by set and label, one for each scene, when they are there.
        scratch: folder that is removed when all is judged.
    """

    out: Path
    about: dict[str, Any]
    verdicts: dict[tuple[str, str], list[Any]]
    scratch: TemporaryDirectory[str]


class Evaluation:
    """Scenes, and processes that judge; as a context, at whose end all is judged and written.

    Args:
        frozen: codec and words (`trainer.Frozen`).
        n: scenes of each set.
        workers: processes that judge.
        sets: names of the sets. Default: all.
        nice: how far the processes stand back behind others.
        videos: folder in which videos stay, and those that are there are not made again. Default: none stay.
    """

    def __init__(
        self,
        frozen: Any,
        n: int,
        workers: int,
        sets: tuple[str, ...] = tuple(SETS),
        nice: int = 0,
        videos: Path | None = None,
    ) -> None:
        self.frozen, self.n, self.sets, self.videos = frozen, n, sets, videos
        self.pool = multiprocessing.get_context("spawn").Pool(workers, os.nice, (nice,))
        self.rows: list[Row] = [(name, number) for name in sets for number in range(n)]
        self.questions = self.pool.starmap_async(question, self.rows)
        self.pending: list[Pending] = []

    def __enter__(self) -> Evaluation:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.write(wait=True)
        self.pool.terminate()

    def write(self, wait: bool = False) -> None:
        """Write the results of the organisms that are judged.

        Args:
            wait: wait for those that are not.
        """
        for pending in list(self.pending):
            if wait or all(v.ready() for verdicts in pending.verdicts.values() for v in verdicts):
                self._write(pending)
                self.pending.remove(pending)

    def start(
        self,
        name: str,
        network: Any,
        out: Path,
        steps: tuple[int, ...],
        layers: tuple[int, ...] = (),
        guidance: tuple[float, ...] = (1.0,),
    ) -> None:
        """Let a network answer every set, and have it judged in the background; the results are written at the end.

        Args:
            name: of the organism.
            network: its DiT.
            out: file of the results.
            steps: numbers of steps, the largest last.
            layers: numbers of layers after which it is read out, all others left out. Default: all layers.
            guidance: scales of guidance; 1 is none.
        """
        import torch

        self.write()
        begun, scratch = time.perf_counter(), TemporaryDirectory()
        maker, folder = f"{name} {_state(network, self.frozen)}", self.videos or Path(scratch.name)
        verdicts: dict[tuple[str, str], list[Any]] = defaultdict(list)
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        ways = [*product(guidance, layers or (None,), steps)]
        for (scale, depth, many), rows in tqdm([*product(ways, self._batches())], desc=name, unit="batch"):
            files = self._files(folder, rows, many, [maker, depth or 0, scale])
            if not all(file.exists() for file in files.values()):
                for label, videos in self._answers(cut(network, depth), rows, many, scale).items():
                    _write_whole(files[label], partial(np.save, arr=videos))
            for label, file in files.items():
                if label == ONE and many != steps[-1]:
                    continue  # it is the same in every run
                label = label if depth is None else f"{label}, {depth} layers"
                label = label if scale == 1 else f"{label}, guidance {scale:g}"
                for row, (each, number) in enumerate(rows):
                    verdict = self.pool.apply_async(judge, (each, number, str(file), row))
                    verdicts[each, label].append(verdict)
        torch.set_float32_matmul_precision(precision)
        about = {"organism": name, "n": self.n, "seconds": round(time.perf_counter() - begun, 1)}
        self.pending.append(Pending(out, about, verdicts, scratch))

    def _batches(self, size: int = 128) -> Iterator[list[Row]]:
        """Go through the scenes of all sets in batches of one shape."""
        shapes: dict[Any, list[Row]] = {}
        for row, (image, _, frames) in self._asked.items():
            shapes.setdefault((frames, image.shape), []).append(row)
        for rows in shapes.values():
            for start in range(0, len(rows), size):
                yield rows[start : start + size]

    @cached_property
    def _asked(self) -> dict[Row, tuple[Any, str, int]]:
        """Return first frame, prompt and number of frames of every scene."""
        return dict(zip(self.rows, self.questions.get(), strict=True))

    def _files(self, folder: Path, rows: list[Row], steps: int, made: Sequence[Any]) -> dict[str, Path]:
        """Return by label the file of the videos of scenes, named by all that makes them: what is asked, noise, and `made`."""
        name = hashlib.sha256(repr([*made, steps]).encode())
        for row in rows:
            image, *asked = self._asked[row]
            name.update(repr([row[1], *asked, image.shape]).encode() + image.tobytes())
        return {label: folder / f"{name.hexdigest()[:32]} {label}.npy" for label in (ONE, f"{steps} steps")}

    def _answers(self, network: Any, rows: list[Row], steps: int, guidance: float = 1.0) -> dict[str, Any]:
        """Return the videos of scenes, [scene, time, height, width, rgb]: at the end, and after one step."""
        import torch

        import flow
        from feed import Words, encode

        images, prompts, frames = zip(*(self._asked[row] for row in rows), strict=True)
        codec, words = self.frozen.codec, Words(self.frozen.text)
        device = codec.first_basis.device
        with torch.no_grad():
            stills = torch.stack([torch.from_numpy(image) for image in images])[:, None].to(device)
            shown = encode(codec, stills).float()
            grid = (1 + (frames[0] - 1) // 4, *shown.shape[3:])
            noise = torch.cat([_noise(grid, number) for _, number in rows]).to(device)
            given = flow.condition(shown.expand(-1, -1, grid[0], -1, -1), self.frozen.grey)
            network = flow.guided(network, guidance, words.embed([""]))
            path = flow.trajectory(network, noise, given, words.embed(prompts), steps)
            # The line through the first step, to noise level 0.
            x0 = path[0] + (path[1] - path[0]) / (1 - flow.schedule(steps)[1].item())
            return {ONE: _frames(codec, x0), f"{steps} steps": _frames(codec, path[-1])}

    def _write(self, pending: Pending) -> None:
        results: dict[str, Any] = defaultdict(dict)
        for (name, label), verdicts in pending.verdicts.items():
            judged: list[Verdict] = [verdict.get() for verdict in verdicts]
            results[name][label] = {
                "solved": [int(v.solved) for v in judged],
                "answered": [int(v.answered) for v in judged],
                "score": [round(float(v.score), 4) for v in judged],
            }
        pending.scratch.cleanup()
        text = json.dumps({**pending.about, "sets": results}) + "\n"
        _write_whole(pending.out, lambda stream: stream.write(text.encode()))


def cut(network: Any, layers: int | None) -> Any:
    """Return a network that is read out after so many layers; None for all of them."""
    if layers is None:
        return network
    short = copy.copy(network)
    short._modules = {**network._modules, "blocks": network.blocks[:layers]}
    return short


def _state(network: Any, frozen: Any) -> str:
    """Return a checksum of the weights of a network, codec and words."""
    out = hashlib.sha256()
    for module in (network, frozen.codec, frozen.text):
        for name, value in sorted(module.state_dict().items()):
            out.update(name.encode() + value.detach().cpu().float().numpy().tobytes())
    return out.hexdigest()


def _write_whole(file: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file, which is there when it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    with part.open("wb") as stream:
        write(stream)
    os.replace(part, file)


def _noise(grid: tuple[int, ...], seed: int) -> Any:
    """Return the noise that the pipeline draws for a seed, [1, channel, frame, y, x]."""
    import torch

    from dit_lens.models.organism import LATENT_CHANNELS

    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, LATENT_CHANNELS, *grid), generator=generator)


def _frames(codec: Any, latents: Any) -> Any:
    """Return the pixels of latents, [row, time, height, width, rgb] of uint8."""
    video = codec.decode(latents).permute(0, 2, 3, 4, 1)
    return ((video + 1) * 127.5).clamp(0, 255).byte().cpu().numpy()


@dataclass
class Args:
    """Options of the evaluation."""

    names: tuple[str, ...] = ("full",)
    """Files of weights, or "two-expert"; they are looked for in `folder`."""
    n: int = 128
    """Scenes of each set."""
    sets: tuple[str, ...] = tuple(SETS)
    steps: tuple[int, ...] = (4, 20)
    """Numbers of steps, the largest last; one step is measured beside them."""
    layers: tuple[int, ...] = ()
    """Numbers of layers after which the network is read out. Default: all layers."""
    guidance: tuple[float, ...] = (1.0,)
    """Scales of classifier-free guidance; 1 is none."""
    device: str = "cpu"
    workers: int = 2
    """Processes that judge."""
    folder: Path = Path("src/dit_lens/models/organism")
    """Where the weights are."""
    frozen: Path = Path("src/dit_lens/models/organism/frozen.safetensors")
    """Codec and words."""
    videos: Path | None = None
    """Folder in which the videos stay, so that they can be judged again when a scorer changes. Default: none stay."""
    out: Path = Path("runs/evaluation")
    """Folder of the results, a file for each organism."""


def check(args: Args) -> None:
    """Refuse what would be measured twice, or not at all.

    Raises:
        ValueError: an option names nothing, or the same twice.
    """
    layers = ORGANISMS["organism-full"].layers
    known = {
        "names": (args.names, lambda name: name == "two-expert" or name.partition(".")[0] in RECIPES),
        "sets": (args.sets, lambda name: name in SETS),
        "steps": (args.steps, lambda many: many >= 1),
        "layers": (args.layers, lambda many: 1 <= many <= layers),
        "guidance": ([f"{scale:g}" for scale in args.guidance], lambda scale: True),
    }
    for option, (values, is_known) in known.items():
        if wrong := [value for value in values if not is_known(value)]:
            raise ValueError(f"--{option} {wrong[0]}: there is no such thing to measure.")
        if len({*values}) < len(values):
            raise ValueError(f"--{option} {' '.join(map(str, values))}: name each once.")
    if args.n < 1:
        raise ValueError(f"--n {args.n}: measure one scene at least.")


def main(args: Args) -> None:
    """Measure one after the other."""
    check(args)
    from trainer import Frozen, load_organism

    with Evaluation(
        Frozen(args.frozen, args.device), args.n, args.workers, args.sets, videos=args.videos
    ) as evaluation:
        for name in args.names:
            network = load_organism(name, args.folder, args.device)
            evaluation.start(name, network, args.out / f"{name}.json", args.steps, args.layers, args.guidance)


if __name__ == "__main__":
    main(tyro.cli(Args))
