"""Train the organisms: flow matching on the tasks' right videos. Each goes on from its checkpoint when repeated.

Usage:
    python training/fit_codec.py
    python training/train.py --minutes 600                               # CPU: all of them, ten hours
    python training/train.py --names full --minutes 90                   # one of them
    python training/train.py --device cuda --minutes 8 --workers 14      # GPU
    python training/train.py --names full --seed 1 --steps 7000 --kept 100 --folder checkpoints/seed1 --device cuda

The schedule follows the time spent training, or with --steps the step: what is trained for longer is trained more slowly
to its end.
"""

from __future__ import annotations

import os
import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import tyro

from recipes import RECIPES

# Torch is imported below, so that the processes that draw, which import this file again, start without it.


@dataclass
class Args:
    """Options of a training."""

    names: tuple[str, ...] = tuple(RECIPES)
    """Organisms, in an order in which each finds what it starts from."""
    minutes: float = 600
    """Time of all of them together, parts that are resumed included; each has its share of it."""
    steps: int | None = None
    """Steps of each of them, in place of the time."""
    kept: int = 0
    """Step at which, and at whose doublings, weights are kept as NAME.STEP.safetensors. 0 for none."""
    device: str = "cpu"
    tokens: int | None = None
    """Tokens of a batch. Default: 2048 on a CPU, 32768 on a GPU."""
    workers: int | None = None
    """Processes that draw scenes. Default: 1 on a CPU, all cores but three on a GPU."""
    seed: int = 0
    folder: Path = Path("checkpoints")
    frozen: Path = Path("src/dit_lens/models/organism/frozen.safetensors")
    """Codec and words, made by fit_codec.py."""
    every: float | None = None
    """Seconds between checkpoints. Default: 300 on a CPU, 30 on a GPU."""
    evaluate: Path | None = None
    """Folder for what each one solves, by `evaluate.py`'s sets. Default: nothing is measured."""
    n: int = 128
    """Scenes of each set of the evaluation."""


def main(args: Args) -> None:
    """Train one after the other."""
    import torch

    from evaluate import Evaluation
    from feed import Feed
    from trainer import Frozen, Options, Trainer

    gpu = args.device != "cpu"
    workers = args.workers or (max((os.cpu_count() or 4) - 3, 1) if gpu else 1)
    tokens, every = args.tokens or (1 << 15 if gpu else 1 << 11), args.every or (30.0 if gpu else 300.0)
    args.folder.mkdir(parents=True, exist_ok=True)
    options = Options(args.folder, args.device, tokens, args.seed, every, args.steps, args.kept)
    frozen = Frozen(args.frozen, args.device)
    held, fill, chunk = (40_000, 1000, 16) if gpu else (2000, 64, 4)
    shares = {name: RECIPES[name].share for name in args.names}
    if gpu:
        torch.set_float32_matmul_precision("high")
    with ExitStack() as stack:
        evaluation = (
            stack.enter_context(Evaluation(frozen, args.n, workers, nice=15)) if args.evaluate else None
        )
        open_feed, mix = stack.enter_context(ExitStack()), None
        for name in args.names:
            recipe = RECIPES[name]
            if recipe.mix != mix:
                open_feed.close()
                mix = recipe.mix
                feed = open_feed.enter_context(
                    Feed(
                        mix,
                        frozen.codec,
                        frozen.text,
                        workers=workers,
                        held=held,
                        fill=fill,
                        chunk=chunk,
                        seed=secrets.randbits(31),  # a training that goes on draws other scenes
                    )
                )
            seconds = 60 * args.minutes * shares[name] / sum(shares.values())
            trainer = Trainer(name, recipe, seconds, options, frozen, feed)
            trainer.run()
            if evaluation is not None and recipe.is_whole:
                steps = (4, 20) if recipe.steps == 20 else (recipe.steps,)
                evaluation.start(name, trainer.averaged(), args.evaluate / f"{name}.json", steps)


if __name__ == "__main__":
    main(tyro.cli(Args))
