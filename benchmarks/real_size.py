"""What does capture cost at the size that people study? Parity, labels, memory and time, written to a page.

    python benchmarks/real_size.py [--models wan2.2] [--steps 2] [--rounds 3] [--out docs/performance.md]

The DiT has the published configuration and random weights: cost does not depend on what was learned. On a GPU:
bf16, all layers, 81 frames of 480x832. Elsewhere: float32, the same width, few layers and few tokens, so that
it runs at all; the page says so. Text encoder and codec are the organism's (their cost is not what is asked).
"""

from __future__ import annotations

import contextlib
import io
import json
import platform
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from tqdm import tqdm

import dit_lens as dl
from arms import Arms, growth
from dit_lens.lens import Lens

WAN_A14B: dict[str, Any] = {
    **{"has_image_input": False, "require_clip_embedding": False, "patch_size": (1, 2, 2), "eps": 1e-6},
    **{"in_dim": 36, "out_dim": 16, "dim": 5120, "ffn_dim": 13824, "freq_dim": 256, "text_dim": 4096},
    **{"num_heads": 40, "num_layers": 40},
}
"""Each of the two experts of Wan 2.2-I2V-A14B, as DiffSynth's table of models has it."""


@dataclass
class Options:
    """Options of the benchmark; what is not given follows the device."""

    models: tuple[str, ...] = ("wan2.2",)
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    layers: int | None = None
    """Blocks of each expert; all of them on a GPU, 2 elsewhere."""
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    steps: int = 2
    rounds: int = 3
    store: Path = Path("runs/real_size")
    """Folder that stores are made in, and which is removed in the end."""
    out: Path | None = None
    """Page to write; the figures go beside it as JSON."""

    @property
    def full(self) -> bool:
        """Whether the model has its full size."""
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the model: bf16 is far slower than float32 on CPUs."""
        return torch.bfloat16 if self.full else torch.float32

    @property
    def size(self) -> tuple[int, int, int]:
        """(frames, height, width) of the video."""
        frames, height, width = (81, 480, 832) if self.full else (9, 96, 128)
        return self.frames or frames, self.height or height, self.width or width


def wan(options: Options) -> Lens:
    """Return a lens on Wan 2.2-I2V-A14B with random weights."""
    with contextlib.redirect_stdout(io.StringIO()):
        from diffsynth.models.wan_video_dit import WanModel
        from diffsynth.pipelines.wan_video import WanVideoPipeline

    from dit_lens.models.codec import LinearCodec
    from dit_lens.models.text import TextEncoder, Tokenizer

    layers = options.layers or (WAN_A14B["num_layers"] if options.full else 2)
    pipe = WanVideoPipeline(device=options.device, torch_dtype=options.dtype)
    pipe.tokenizer, pipe.text_encoder = Tokenizer(), TextEncoder(WAN_A14B["text_dim"])
    pipe.vae = LinearCodec(WAN_A14B["out_dim"])
    for name in ("dit", "dit2"):
        setattr(pipe, name, random_weights(WanModel, {**WAN_A14B, "num_layers": layers}, options))
    for part in (pipe.text_encoder, pipe.vae):
        part.to(device=options.device, dtype=options.dtype)
    pipe.text_encoder.table.normal_()
    for part in ("first", "rest"):
        getattr(pipe.vae, f"{part}_basis").normal_(std=0.1)
    return dl.Lens(pipe.eval().requires_grad_(False))


BUILD: dict[str, tuple[str, Callable[[Options], Lens]]] = {"wan2.2": ("Wan 2.2-I2V-A14B", wan)}


def random_weights(kind: Any, config: dict[str, Any], options: Options) -> Any:
    """Make a model with random weights on the device, without a copy of it in memory."""
    from diffsynth.core.vram.initialization import skip_model_initialization

    with skip_model_initialization():
        model = kind(**config)
    generator = torch.Generator(options.device).manual_seed(0)
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            values = torch.empty(p.shape, dtype=options.dtype, device=options.device)
            values.normal_(std=p.shape[-1] ** -0.5, generator=generator)
            setattr(module, name, torch.nn.Parameter(values, requires_grad=False))
    return model


class Recorder:
    """What ran, seen independently of the library: plain hooks, and the arguments of `model_fn`."""

    def __init__(self, lens: Lens) -> None:
        self.lens, self.energies, self.calls = lens, {}, []

    def watch(self, bare: Callable[[], Any]) -> None:
        """Run the bare pipeline, and keep the energy of every block in every call."""
        pipe, model_fn = self.lens.pipe, self.lens.pipe.model_fn
        experts = {id(dit): name for name, dit in self.lens.dits.items()}

        def called(**given: Any) -> Any:
            branch = "cond" if given["positive"] else "uncond"
            self.calls.append((round(float(given["timestep"]), 3), branch, experts[id(given["dit"])]))
            return model_fn(**given)

        def hook(layer: int, output: Any) -> None:
            self.energies[(*self.calls[-1][:2], layer)] = dl.energy(output[0]).cpu()

        handles = [
            block.register_forward_hook(lambda _, __, out, layer=layer: hook(layer, out))
            for dit in self.lens.dits.values()
            for layer, block in enumerate(self.lens.family.block_list(dit))
        ]
        pipe.model_fn = called
        try:
            bare()
        finally:
            del pipe.model_fn
            pipe.model_fn = model_fn
            for handle in handles:
                handle.remove()

    def agrees(self, run: dl.Run) -> int:
        """Return how many energies were compared; every one must be equal, bit for bit, under its label."""
        energy = run["energy"]
        assert len(self.energies) == energy.sizes["step"] * energy.sizes["branch"] * energy.sizes["layer"]
        experts = {timestep: expert for timestep, _, expert in self.calls}
        for (timestep, branch, layer), values in self.energies.items():
            step = int(np.abs(energy.timestep.values - timestep).argmin())
            mine = energy.sel(step=step, branch=branch, layer=layer)
            assert np.array_equal(mine.values.ravel(), values.numpy().ravel()), (step, branch, layer)
            assert str(mine.expert.values) == experts[timestep], step
        return len(self.energies)


def peaks(work: Callable[[], Any], options: Options) -> dict[str, float]:
    """Return what a run takes at most: GB of host memory gained, GB on the device in all."""
    if options.full:
        torch.cuda.reset_peak_memory_stats()
    host = growth(work) / 1e3
    return {"host_GB": host, "device_GB": torch.cuda.max_memory_allocated() / 1e9 if options.full else 0.0}


def measure(name: str, options: Options) -> dict[str, Any]:
    """Build a model, check it, and time all ways to capture, interleaved."""
    title, build = BUILD[name]
    lens = build(options)
    frames, height, width = options.size
    sample = dl.Sample(
        prompt="solve the maze", image=Image.new("RGB", (width, height), (90, 120, 60)), num_frames=frames
    )
    arms = Arms(lens, sample, options.store, steps=options.steps, cfg_scale=5.0)
    middle = lens.layers // 2
    ways: dict[str, Callable[[], Any]] = {
        "bare": arms.bare,
        "official-style hook, first call of a step": lambda: arms.official(branches=2),
        "plain hook: energy": arms.plain_energy,
        "ours: energy of all layers": lambda: arms.ours([dl.energy]),
        "ours: full states of one layer": lambda: arms.ours([(dl.hidden, dl.at(layer=middle))]),
    }
    recorder = Recorder(lens)
    recorder.watch(arms.bare)
    run = arms.ours([dl.energy])
    compared = recorder.agrees(run)
    memory = {way: peaks(work, options) for way, work in ways.items()}
    seconds = times(ways, options)
    rows = {}
    for way, taken in seconds.items():
        ratios = sorted(t / b for t, b in zip(taken, seconds["bare"], strict=True))
        rows[way] = {
            "median_s": statistics.median(taken),
            "ratio_median": statistics.median(ratios),
            "ratio_min": ratios[0],
            "ratio_max": ratios[-1],
            **memory[way],
        }
    grid = [run["energy"].sizes[d] for d in ("frame", "y", "x")]
    return {
        "title": title,
        "layers": lens.layers,
        "parameters": sum(p.numel() for dit in lens.dits.values() for p in dit.parameters()),
        "grid": grid,
        "tokens": int(np.prod(grid)),
        "compared": compared,
        "experts": sorted({expert for _, _, expert in recorder.calls}),
        "arms": rows,
    }


def times(ways: dict[str, Callable[[], Any]], options: Options) -> dict[str, list[float]]:
    """Time all ways in a shuffled order, round after round."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in tqdm(range(options.rounds), desc="rounds"):
        for way in random.sample(list(ways), len(ways)):
            start = time.perf_counter()
            ways[way]()
            if options.full:
                torch.cuda.synchronize()
            seconds[way].append(time.perf_counter() - start)
            shutil.rmtree(options.store, ignore_errors=True)
    return seconds


def page(found: list[dict[str, Any]], options: Options) -> str:
    """Return the page."""
    device = torch.cuda.get_device_name() if options.full else f"CPU ({platform.machine()})"
    lines = [
        "# Performance at real size",
        "",
        f"Made by `python {' '.join(sys.argv)}`; the figures are in [performance.json](performance.json).",
        f"{device}, {options.dtype}, torch {torch.__version__}; {options.steps} steps, both guidance branches;",
        f"{options.rounds} rounds, all arms interleaved in a shuffled order, ratios to the bare pipeline of the same round",
        "(median, least, most). Random weights: what capture costs does not depend on them.",
    ]
    if not options.full:
        lines += [
            "",
            "**Not at full size.** No GPU was at hand: the width is the model's own, but layers and tokens are few, so",
            "that it runs at all. On a GPU the same command makes the page at full size.",
        ]
    return "\n".join([*lines, *(line for model in found for line in section(model, options))]) + "\n"


def section(model: dict[str, Any], options: Options) -> list[str]:
    """Return the lines on one model."""
    frames, height, width = options.size
    lines = [
        "",
        f"## {model['title']}",
        "",
        f"Experts that ran: {', '.join(model['experts'])}; {model['layers']} layers each, "
        f"{model['parameters'] / 1e9:.2f} G parameters in all;",
        f"{frames} frames of {height}x{width}: {model['tokens']:,} tokens ({' x '.join(map(str, model['grid']))}).",
        "",
        f"Parity and labels: all {model['compared']} energy maps (step, branch, layer) are, bit for bit, what plain hooks",
        "saw in the bare pipeline under the label that `model_fn` was given.",
        "",
        "| arm | median s | ratio | min | max | host memory gained, GB | device memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, r in model["arms"].items():
        ratio = f"{r['ratio_median']:.3f} | {r['ratio_min']:.3f} | {r['ratio_max']:.3f}"
        device = f"{r['device_GB']:.1f}" if options.full else "-"
        lines.append(f"| {way} | {r['median_s']:.2f} | {ratio} | {r['host_GB']:.2f} | {device} |")
    return lines


def main(options: Options) -> None:
    """Measure every model; print the page, or write it."""
    try:
        found = [measure(name, options) for name in options.models]
    finally:
        shutil.rmtree(options.store, ignore_errors=True)
    text = page(found, options)
    print(text)
    if options.out:
        options.out.write_text(text)
        settings = {k: str(v) for k, v in asdict(options).items()}
        data = {"settings": settings, "models": found}
        options.out.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
