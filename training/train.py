"""Train the organism: flow matching on the tasks' right videos. Resumes from its checkpoint when repeated.

Usage:
    python training/fit_codec.py
    python training/train.py --minutes 90 --workers 2          # CPU: one thread a worker
    python training/train.py --minutes 20 --device cuda        # GPU: one worker

Two workers of one thread share gradients: on two cores that is a quarter faster than one worker of two
threads, and does not collapse when something else runs. The schedule follows the time spent training, not the
step.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data import LARGE, SMALL, Scenes
from dit_lens.models import organism


@dataclass
class Args:
    """Options of a training run."""

    minutes: float = 90
    """Time to train for, all resumed parts together."""
    workers: int = 2
    device: str = "cpu"
    batch: int = 12
    """4x4 boards a worker and step; half as many 6x6 boards."""
    lr: float = 1.5e-3
    large_share: float = 0.6
    """Share of the time on 6x6 boards, after the first quarter (a third of it before)."""
    shift: float = 3.0
    """Noise levels are drawn as shift * u / (1 + (shift - 1) * u), u uniform."""
    ema: float = 0.998
    reuse: int = 3
    """Batches that a scene is used for."""
    seed: int = 0
    dir: Path = Path("checkpoints")
    every: float = 4.0
    """Minutes between checkpoints."""


def learning_rate(args: Args, done: float, step: int) -> float:
    """Warm up for 100 steps, stay to 55% of the time, then fall linearly to 2%."""
    fall = 1.0 if done < 0.55 else max(0.02, 1 - 0.98 * (done - 0.55) / 0.45)
    return args.lr * min(1.0, (step + 1) / 100) * fall


def channel_weights(codec: nn.Module) -> Tensor:
    """Weigh latent channels by their standard deviation in pixels, mean 1.

    The weights do not depend on the data, so the optimum is the same; capacity goes where the picture is.
    """
    first, rest = codec.first_scale, codec.rest_scale
    return torch.stack([first / first.mean(), rest / rest.mean()], 1)  # [channel, first or rest]


def condition(latents: Tensor, grey: Tensor) -> Tensor:
    """Return what the pipeline's image unit makes: mask and encoded first frame, grey frames after it."""
    b, _, f, y, x = latents.shape
    mask = torch.zeros(b, 4, f, y, x, device=latents.device)
    mask[:, :, 0] = 1
    image = grey.view(1, -1, 1, 1, 1).expand_as(latents).clone()
    image[:, :, 0] = latents[:, :, 0]
    return torch.cat([mask, image], 1)


def loss_of(pipe: Any, args: Args, latents: Tensor, context: Tensor, grey: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted squared error of the velocity (x1 - x0) at random noise levels."""
    noise, u = torch.randn_like(latents), torch.rand(len(latents), device=latents.device)
    sigma = args.shift * u / (1 + (args.shift - 1) * u)
    s = sigma.view(-1, 1, 1, 1, 1)
    velocity = pipe.model_fn(
        dit=pipe.dit,
        latents=(1 - s) * latents + s * noise,
        timestep=1000 * sigma,
        context=context,
        y=condition(latents, grey),
    )
    error = (velocity - (noise - latents)).square()
    w = weights[:, [0] + [1] * (latents.shape[2] - 1)]
    return (error * w[None, :, :, None, None]).mean()


class Trainer:
    """Everything of one worker."""

    def __init__(self, args: Args, rank: int) -> None:
        self.args, self.rank = args, rank
        torch.manual_seed(args.seed)
        self.pipe = organism.pipeline(weights=None, device=args.device)
        frozen = load_file(args.dir / "frozen.safetensors")
        self.frozen = frozen
        for name in ("vae", "text_encoder"):
            module = getattr(self.pipe, name)
            module.load_state_dict(
                {k.split(".", 1)[1]: v.float() for k, v in frozen.items() if k.startswith(name)}
            )
        self.dit = self.pipe.dit.train().requires_grad_(True)
        nn.init.zeros_(self.dit.head.head.weight)
        nn.init.zeros_(self.dit.head.head.bias)
        self.params = list(self.dit.parameters())
        self.ema = [p.detach().clone() for p in self.params]
        self.opt = torch.optim.AdamW(
            self.params, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        self.step, self.spent, self.samples = 0, 0.0, {"small": 0, "large": 0}
        self._resume()
        torch.manual_seed(args.seed + 1000 * (rank + 1) + self.step)
        with torch.no_grad():
            codec, text = self.pipe.vae.cpu(), self.pipe.text_encoder.cpu()
            self.weights = channel_weights(codec).to(args.device)
            self.grey = codec.encode(torch.zeros(1, 3, 5, 8, 8))[0, :, 1, 0, 0].to(args.device)
            seed = hash((args.seed, rank, self.step))
            count = 600 if args.device == "cpu" else 6000
            self.scenes = {
                "small": Scenes(SMALL, codec, text, count, args.reuse, abs(seed)),
                "large": Scenes(LARGE, codec, text, count, args.reuse, abs(seed) + 1),
            }

    def _resume(self) -> None:
        path = self.args.dir / "last.pt"
        if path.exists():
            state = torch.load(path, map_location=self.args.device)
            self.dit.load_state_dict(state["dit"])
            self.opt.load_state_dict(state["opt"])
            self.ema = state["ema"]
            self.step, self.spent, self.samples = state["step"], state["spent"], state["samples"]

    def save(self) -> None:
        """Write the checkpoint (to resume) and the averaged weights (to use), each whole or not at all."""
        names = [name for name, _ in self.dit.named_parameters()]
        state = {"dit": self.dit.state_dict(), "opt": self.opt.state_dict(), "ema": self.ema}
        state |= {"step": self.step, "spent": self.spent, "samples": self.samples}
        torch.save(state, self.args.dir / "last.tmp")
        os.replace(self.args.dir / "last.tmp", self.args.dir / "last.pt")
        weights = {f"dit.{n}": p.half().cpu().contiguous() for n, p in zip(names, self.ema, strict=True)}
        save_file(self.frozen | weights, self.args.dir / "v1.tmp")
        os.replace(self.args.dir / "v1.tmp", self.args.dir / "v1.safetensors")

    def train_step(self, kind: str) -> float:
        """Take one step on one board size; return the loss."""
        args = self.args
        n = args.batch if kind == "small" else max(args.batch // 2, 1)
        with torch.no_grad():
            latents, context = (x.to(args.device) for x in self.scenes[kind].batch(n))
        loss = loss_of(self.pipe, args, latents, context, self.grey, self.weights)
        loss.backward()
        if args.workers > 1:
            flat = torch.cat([p.grad.flatten() for p in self.params if p.grad is not None])
            dist.all_reduce(flat)
            flat /= args.workers
            parts = flat.split([p.numel() for p in self.params if p.grad is not None])
            for p, g in zip([p for p in self.params if p.grad is not None], parts, strict=True):
                p.grad.copy_(g.view_as(p))
        nn.utils.clip_grad_norm_(self.params, 1.0)
        for group in self.opt.param_groups:
            group["lr"] = learning_rate(args, self.spent / (60 * args.minutes), self.step)
        self.opt.step()
        self.opt.zero_grad()
        decay = min(args.ema, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.params], 1 - decay)
        self.step += 1
        self.samples[kind] += n * args.workers
        return float(loss.detach())


def work(rank: int, args: Args) -> None:
    """Run one worker until the time is spent."""
    torch.set_num_threads(1 if args.device == "cpu" else 8)
    if args.workers > 1:
        address = {"init_method": f"file://{(args.dir / 'meeting').absolute()}"}
        dist.init_process_group("gloo", rank=rank, world_size=args.workers, **address)
    trainer = Trainer(args, rank)
    saved = log = time.time()
    losses = {"small": 1.0, "large": 1.0}
    owed, cost = 0.0, {"small": 1.0, "large": 1.0}
    parent = os.getppid()  # a worker whose starter was killed stops too, and never writes over a new run
    while os.getppid() == parent:
        # Rank 0 keeps the clock and picks the board size that is behind its share of the time.
        share = args.large_share * (1.0 if trainer.spent > 15 * args.minutes else 1 / 3)
        plan = torch.tensor([float(owed > 0), trainer.spent])
        if args.workers > 1:
            dist.broadcast(plan, 0)
        if float(plan[1]) >= 60 * args.minutes:
            break
        kind = "large" if plan[0] > 0 else "small"
        begun = time.time()
        losses[kind] += 0.01 * (trainer.train_step(kind) - losses[kind])
        cost[kind] = min(time.time() - begun, 5.0)  # a process that was paused has not trained meanwhile
        owed += share * cost[kind] - (cost[kind] if kind == "large" else 0)
        trainer.spent = trainer.spent + cost[kind] if rank == 0 else float(plan[1])
        if rank == 0 and time.time() - log > 30:
            log = time.time()
            line = {"step": trainer.step, "minutes": trainer.spent / 60, **trainer.samples}
            line |= {f"loss_{k}": math.floor(v * 1e4) / 1e4 for k, v in losses.items()}
            print(json.dumps(line), flush=True)
        if rank == 0 and time.time() - saved > 60 * args.every:
            trainer.save()
            saved = time.time()
    if rank == 0 and os.getppid() == parent:
        trainer.save()


def main(args: Args) -> None:
    """Start the workers."""
    args.dir.mkdir(parents=True, exist_ok=True)
    (args.dir / "meeting").unlink(missing_ok=True)
    if args.workers == 1:
        work(0, args)
    else:
        torch.multiprocessing.spawn(work, (args,), nprocs=args.workers)


if __name__ == "__main__":
    main(tyro.cli(Args))
