"""One training: batches, steps, the average of the weights, the loss on what is held out, checkpoints."""

from __future__ import annotations

import copy
import json
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

import flow
import lora
from dit_lens.models.organism import LATENT_CHANNELS, TEXT_CHANNELS
from dit_lens.models.organism.modules import LinearCodec, TextEncoder
from feed import Batch, Feed
from mixes import Group
from network import Network
from recipes import BOUNDARY, RECIPES, Recipe
from replay import Replay


@dataclass(frozen=True)
class Options:
    """What does not depend on the organism.

    Attributes:
        folder: of the checkpoints.
        device: where the training runs.
        tokens: of a batch.
        seed: of the training.
        every: seconds between checkpoints, each with the loss on what is held out.
        steps: of the training, where they are counted and not its time.
        kept: step at which, and at whose doublings, the averaged weights are also written to a file of their own. 0 for none.
        ema: decay of the averaged weights, a step.
    """

    folder: Path
    device: str
    tokens: int
    seed: int
    every: float
    steps: int | None = None
    kept: int = 0
    ema: float = 0.999


class Frozen:
    """What all organisms share and none trains: the codec and the word table."""

    def __init__(self, path: Path, device: str) -> None:
        state = load_file(path)
        self.codec, self.text = LinearCodec(LATENT_CHANNELS), TextEncoder(TEXT_CHANNELS)
        for name, module in (("vae", self.codec), ("text_encoder", self.text)):
            parts = {
                k.removeprefix(f"{name}."): v.float() for k, v in state.items() if k.startswith(f"{name}.")
            }
            module.load_state_dict(parts)
            module.to(device)
        self.weights, self.grey = flow.channel_weights(self.codec), flow.grey_latents(self.codec)


def load_network(path: Path, device: str, causal: bool = False) -> Network:
    """Return a network with the averaged weights of a file."""
    network = Network(causal)
    network.load_state_dict({k.removeprefix("dit."): v.float() for k, v in load_file(path).items()})
    return network.to(device)


class Experts(nn.Module):
    """Two networks: one at high noise levels, one from the boundary down."""

    def __init__(self, high: Network, low: Network) -> None:
        super().__init__()
        self.high, self.low = high, low

    def forward(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """Return the velocity by the expert for the noise level, which is one for all rows."""
        expert = self.high if float(sigma[0]) >= BOUNDARY else self.low
        velocity: Tensor = expert(x, sigma, context)
        return velocity


def load_organism(name: str, folder: Path, device: str) -> nn.Module:
    """Return an organism to be run, from the files of `RECIPES` in a folder; "full.100" as it was after 100 steps."""
    if name == "two-expert":
        high, low = (load_network(folder / f"{part}.safetensors", device) for part in ("high", "low"))
        return Experts(high, low).eval()
    recipe = RECIPES[name.partition(".")[0]]
    if not recipe.rank:
        return load_network(folder / f"{name}.safetensors", device, recipe.causal).eval()
    assert recipe.start is not None
    network = load_network(folder / f"{recipe.start}.safetensors", device)
    lora.add(network, recipe.rank)
    file = folder / f"{name}.safetensors"
    values = lora.values_of(load_file(file))
    wanted = {n for n, p in network.named_parameters() if p.requires_grad}
    if values.keys() != wanted:
        raise ValueError(
            f"{file} holds {len(values.keys() & wanted)} of the {len(wanted)} matrices of this LoRA."
        )
    network.load_state_dict(values, strict=False)
    return network.to(device).eval()


class Trainer:
    """The training of one organism, which goes on where it was left.

    Args:
        name: of the organism.
        recipe: how it is made.
        seconds: of training, all parts together; what `options.steps` says goes before it.
        options: of the run.
        frozen: codec and words.
        feed: the scenes.
    """

    def __init__(
        self, name: str, recipe: Recipe, seconds: float, options: Options, frozen: Frozen, feed: Feed
    ) -> None:
        self.name, self.recipe, self.seconds, self.options = name, recipe, seconds, options
        self.frozen, self.feed, self.device = frozen, feed, torch.device(options.device)
        torch.manual_seed(options.seed)
        start = self._start()
        network = Network(recipe.causal) if start is None else load_network(start, "cpu", recipe.causal)
        if recipe.rank:
            lora.add(network, recipe.rank)
            if self.file(name).exists():
                network.load_state_dict(lora.values_of(load_file(self.file(name))), strict=False)
        self.network = network.to(self.device)
        self.trained = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().clone() for n, p in self.trained.items()}
        rate = torch.tensor(recipe.learning_rate, device=self.device)
        self.decay = torch.zeros((), device=self.device)
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=rate,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=True,
            capturable=self.device.type == "cuda",
        )
        self.step, self.spent = 0, 0.0
        self.samples = dict.fromkeys((g.name for g in feed.groups), 0)
        self.losses: dict[str, Tensor] = {}
        self._resume()
        torch.manual_seed(options.seed + self.step)
        self.teacher = (
            None if recipe.teacher is None else load_network(self.file(recipe.teacher), options.device)
        )
        self.levels = flow.schedule(recipe.steps).to(self.device)
        self.steps = {g.name: Replay(partial(self._step, g), self.device) for g in feed.groups}
        if self.device.type == "cuda":
            for each in filter(None, (self.network, self.teacher)):
                for block in each.blocks:
                    block.compile(dynamic=True)

    def file(self, name: str) -> Path:
        """Return where the averaged weights of an organism are."""
        return self.options.folder / f"{name}.safetensors"

    def _start(self) -> Path | None:
        """Return the file of a whole network that it starts from: its own, where its checkpoint is lost, or the recipe's.

        Raises:
            FileNotFoundError: those of the recipe are not there.
        """
        if self.file(self.name).exists() and not self.recipe.rank:
            return self.file(self.name)
        if self.recipe.start is None:
            return None
        start = self.file(self.recipe.start)
        if not start.exists():
            raise FileNotFoundError(
                f"{self.name} starts from {start}, which is not there: train {self.recipe.start} first."
            )
        return start

    @property
    def done(self) -> float:
        """The share of the training that is done."""
        steps = self.options.steps
        return self.spent / self.seconds if steps is None else self.step / steps

    def run(self) -> None:
        """Train until the time is spent, or the steps are taken."""
        if self.done >= 1:
            return
        saved = begun = time.perf_counter()
        with tqdm(total=100, initial=round(100 * self.done), desc=self.name, unit="%", mininterval=5) as bar:
            while self.done < 1:
                self.train_step()
                if self.step % 20 == 0:  # reading a loss waits for the device, so that the clock is right
                    float(next(iter(self.losses.values())))
                now = time.perf_counter()
                self.spent += min(now - begun, 60.0)  # a process that was paused has not trained meanwhile
                begun = now
                bar.update(round(100 * self.done) - bar.n)
                if self.is_kept:
                    self.write_weights(self.file(f"{self.name}.{self.step}"))
                if now - saved > self.options.every:
                    self.save()
                    begun = saved = time.perf_counter()
        self.save()

    @property
    def is_kept(self) -> bool:
        """Whether the weights of this step get a file of their own."""
        times, rest = divmod(self.step, self.options.kept) if self.options.kept else (0, 0)
        return rest == 0 and times > 0 and times & (times - 1) == 0

    def train_step(self) -> None:
        """Take one step, on the group that is behind its share of the time."""
        tokens = {g.name: self.samples[g.name] * g.tokens for g in self.feed.groups}
        total = sum(tokens.values()) + self.options.tokens
        group = max(self.feed.groups, key=lambda g: g.time * total - tokens[g.name])
        self.feed.take()
        for parameters in self.optimizer.param_groups:
            parameters["lr"].fill_(self.learning_rate())
        self.decay.fill_(min(self.options.ema, (self.step + 1) / (self.step + 10)))
        self.steps[group.name]()
        self.step += 1
        self.samples[group.name] += self.rows(group)

    def rows(self, group: Group) -> int:
        """Return the samples of a batch of a group."""
        return max(self.options.tokens // group.tokens, 1)

    def _step(self, group: Group) -> None:
        """Take one step on a group. All of it happens on the device, so that it can be replayed."""
        batch = self.feed.batch(group, self.rows(group))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        averages, values = list(self.average.values()), [p.detach() for p in self.trained.values()]
        torch._foreach_mul_(averages, self.decay)
        torch._foreach_add_(averages, torch._foreach_mul(values, 1 - self.decay))
        if group.name not in self.losses:
            self.losses[group.name] = loss.detach().clone()
        self.losses[group.name].lerp_(loss.detach(), 0.02)

    def learning_rate(self) -> float:
        """Warm up for 100 steps, stay for half the time, then fall linearly to 2%."""
        fall = 1.0 if self.done < 0.5 else max(0.02, 1 - 0.98 * (self.done - 0.5) / 0.5)
        return self.recipe.learning_rate * min(1.0, (self.step + 1) / 100) * fall

    def loss(self, batch: Batch) -> Tensor:
        """Return the error of the velocity at random noise levels, or beside the teacher's runs."""
        if self.teacher is not None:
            return self._distilled(batch)
        noise = torch.randn_like(batch.latents)
        sigma = flow.draw_levels(len(noise), *self.recipe.levels, noise.device)
        return self._error(self.network, batch, noise, sigma)

    def _error(self, network: nn.Module, batch: Batch, noise: Tensor, sigma: Tensor) -> Tensor:
        given = flow.condition(batch.latents, self.frozen.grey)
        x = flow.noised(batch.latents, noise, sigma)
        velocity = network(torch.cat([x, given], 1), sigma, batch.context)
        return flow.error(velocity, noise - batch.latents, self.frozen.weights)

    def _distilled(self, batch: Batch) -> Tensor:
        """Return the error of a step that covers several of the teacher's (Luhman and Luhman 2021, arXiv 2101.02388)."""
        assert self.teacher is not None
        steps, fine = self.recipe.steps, 20
        rows = max(len(batch.latents) // steps, 1)
        latents, context = batch.latents[:rows], batch.context[:rows]
        given = flow.condition(latents, self.frozen.grey)
        with torch.no_grad():
            path = flow.trajectory(self.teacher, torch.randn_like(latents), given, context, fine)
        stops = path[:: fine // steps]
        lines = [
            (after - x) / (b - a)
            for x, after, a, b in zip(stops, stops[1:], self.levels, self.levels[1:], strict=False)
        ]
        sigma = self.levels[:-1].repeat_interleave(rows, output_size=steps * rows)
        x = torch.cat([torch.cat([x, given], 1) for x in stops[:-1]])
        velocity = self.network(x, sigma, context.repeat(steps, 1, 1))
        return flow.error(velocity, torch.cat(lines), self.frozen.weights)

    @torch.no_grad()
    def held_out_loss(self) -> dict[str, float]:
        """Return the loss of the averaged weights on scenes that are never trained on, by group.

        Noise and noise levels are the same every time.
        """
        network = self.averaged()
        out = {}
        for group in self.feed.groups:
            rows = min(Feed.HELD_OUT, self.rows(group))
            batch = self.feed.held_out_batch(group, rows)
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(batch.latents.shape, generator=generator).to(self.device)
            first, last = map(flow.unshifted, self.recipe.levels)
            sigma = flow.shifted(torch.linspace(first, last, rows + 2, device=self.device)[1:-1])
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                out[group.name] = float(self._error(network, batch, noise, sigma))
        return out

    def averaged(self) -> nn.Module:
        """Return the network with the averaged weights."""
        compiled = [block._compiled_call_impl for block in self.network.blocks]
        for block in self.network.blocks:
            block._compiled_call_impl = None
        network = copy.deepcopy(self.network)
        for block, call in zip(self.network.blocks, compiled, strict=True):
            block._compiled_call_impl = call
        network.load_state_dict({**network.state_dict(), **self.average})
        return network.eval()

    def save(self) -> None:
        """Write the checkpoint (to resume), the averaged weights (to use) and a line of the log, each whole or not at all."""
        state: dict[str, Any] = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        state |= {"average": self.average, "step": self.step, "spent": self.spent, "samples": self.samples}
        state["seed"] = self.options.seed
        checkpoint = self.options.folder / f"{self.name}.last.pt"
        torch.save(state, f"{checkpoint}.part")
        os.replace(f"{checkpoint}.part", checkpoint)
        self.write_weights(self.file(self.name))
        line = {"step": self.step, "seconds": round(self.spent, 1), "samples": self.samples}
        line |= {"loss": {g: round(float(v), 5) for g, v in self.losses.items()}}
        line |= {"held_out": {g: round(v, 5) for g, v in self.held_out_loss().items()}}
        line |= {"drawn": {g: ring.drawn for g, ring in self.feed.rings.items()}}
        with open(self.options.folder / f"{self.name}.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")

    def write_weights(self, file: Path) -> None:
        """Write the averaged weights, in float16, whole or not at all."""
        whole = {f"dit.{n}": p for n, p in self.average.items()}
        values = lora.file_of(self.average) if self.recipe.rank else whole
        save_file({n: v.half().cpu().contiguous() for n, v in values.items()}, f"{file}.part")
        os.replace(f"{file}.part", file)

    def _resume(self) -> None:
        """Take up the checkpoint, where there is one.

        Raises:
            ValueError: it is of another seed, or of more steps than are to be taken.
        """
        path = self.options.folder / f"{self.name}.last.pt"
        if path.exists():
            state = torch.load(path, map_location=self.device)
            seed, steps = state.get("seed", self.options.seed), self.options.steps
            if seed != self.options.seed:
                raise ValueError(
                    f"{path} is of seed {seed}: give another folder to seed {self.options.seed}."
                )
            if steps is not None and state["step"] > steps:
                raise ValueError(
                    f"{path} is of {state['step']} steps, more than {steps}: give another folder."
                )
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average = state["average"]
            self.step, self.spent, self.samples = state["step"], state["spent"], state["samples"]


__all__ = ["Frozen", "Group", "Options", "Trainer", "load_network", "load_organism"]
