"""What does a record of attention cost? Each against the layer's own attention, interleaved in one run, as ratios.

    python benchmarks/attention.py [--frames 8 --height 15 --width 26 --heads 8] [--rounds 5] [--out benchmarks/attention.json]
    python benchmarks/attention.py --frames 21 --height 30 --width 52 --heads 40 --device cuda --dtype bfloat16    # Wan 14B

Random queries, keys and values of one layer and one branch, of Wan's head width of 128 and its 512 tokens of text. The layer's
own attention is torch's scaled_dot_product_attention over the video's tokens, and over the text; a record of the text is
compared with both together, all others with the first. Beside them what a user would otherwise do: the whole map of one head
at a time. Growth of memory is that of the arm alone: resident memory on a CPU, torch's own count on a GPU.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro

import dit_lens as dl
from arms import growth, median_interval
from dit_lens.families.attention import Heard
from dit_lens.families.site import Tokens

WIDTH, TEXT = 128, 512
OWN, CROSS = "the layer's own self-attention", "its own attention to the text"


@dataclass
class Options:
    """Options of the benchmark."""

    frames: int = 8
    height: int = 15
    """Rows of tokens."""
    width: int = 26
    heads: int = 8
    rounds: int = 5
    device: str = "cpu"
    dtype: str = "float32"
    out: Path | None = None


def arms_of(options: Options) -> dict[str, Callable[[], Any]]:
    """Return every arm by name, on the same random tensors."""
    torch.manual_seed(0)
    grid = options.frames, options.height, options.width
    count = grid[0] * grid[1] * grid[2]

    def drawn(tokens: int) -> torch.Tensor:
        size = 1, tokens, options.heads, WIDTH
        return torch.randn(size, device=options.device).to(getattr(torch, options.dtype))

    q, k, v, text_k, text_v = drawn(count), drawn(count), drawn(count), drawn(TEXT), drawn(TEXT)
    video = Heard(q, k, v, None, WIDTH**-0.5).of_row(0, Tokens(grid), Tokens(grid))
    text = Heard(q, text_k, text_v, None, WIDTH**-0.5).of_row(0, Tokens(grid), Tokens((1, 1, TEXT)))

    def attend(k: torch.Tensor, v: torch.Tensor) -> Any:
        return F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)))

    def whole_map() -> Any:
        """One head after the other, from frame to frame: what fits of the map that a user would keep."""
        out = []
        for head in range(options.heads):
            weights = (q[0, :, head].float() @ k[0, :, head].float().T * WIDTH**-0.5).softmax(-1)
            out.append(weights.view(grid[0], -1, grid[0], count // grid[0]).sum(-1).mean(1))
        return torch.stack(out).mean(0)

    records = {
        "over='frames'": (dl.attention(over="frames"), video),
        "over='frames', queries=32": (dl.attention(over="frames", queries=32), video),
        "to='first_frame'": (dl.attention(to="first_frame"), video),
        "from_=4 places": (dl.attention(from_=[(0, 0, n) for n in range(4)]), video),
        "entropy, queries=32": (dl.attention(entropy=True, queries=32), video),
        "entropy": (dl.attention(entropy=True), video),
        "to='self'": (dl.attention(to="self"), video),
        "to='text'": (dl.attention(to="text"), text),
    }
    return {
        OWN: lambda: attend(k, v),
        CROSS: lambda: attend(text_k, text_v),
        **{name: (lambda record=record, a=a: record(a)) for name, (record, a) in records.items()},
        "the map of a head at a time, by hand": whole_map,
    }


def timed(work: Callable[[], Any], device: str) -> tuple[float, float]:
    """Return an arm's seconds, and the growth of memory in MB, of two runs one after the other."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    start = time.perf_counter()
    kept = work()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    del kept
    if on_gpu:
        return seconds, (torch.cuda.max_memory_allocated() - held) / 1e6
    return seconds, growth(work)


def measure(options: Options) -> dict[str, list[tuple[float, float]]]:
    """Run all arms, in a shuffled order, round after round."""
    arms = arms_of(options)
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    with torch.no_grad():
        for work in arms.values():
            work()  # threads, kernels and memory are there
        for number in range(options.rounds):
            for name in random.sample(list(arms), len(arms)):
                figures[name].append(timed(arms[name], options.device))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    return figures


def rows(figures: dict[str, list[tuple[float, float]]]) -> dict[str, dict[str, Any]]:
    """Summarise the rounds of every arm: its time to the layer's own in the same round."""
    out = {}
    for name, rounds in figures.items():
        own = [
            a + (b if name == "to='text'" else 0)
            for (a, _), (b, _) in zip(figures[OWN], figures[CROSS], strict=True)
        ]
        ratios = [seconds / base for (seconds, _), base in zip(rounds, own, strict=True)]
        out[name] = {
            "median_s": statistics.median(seconds for seconds, _ in rounds),
            "ratio": median_interval(ratios),
            "growth_MB": statistics.median(grown for _, grown in rounds),
        }
    return out


def main(options: Options) -> None:
    """Compare all arms; print a table; write JSON."""
    table = rows(measure(options))
    tokens = options.frames * options.height * options.width
    print(
        f"{tokens} tokens x {options.heads} heads of {WIDTH}, {options.dtype} on {options.device}, n = {options.rounds} rounds"
    )
    print("| arm | median s | ratio | 95% interval | memory MB |\n|---|---|---|---|---|")
    for name, r in table.items():
        median, low, high = r["ratio"]
        print(
            f"| {name} | {r['median_s']:.4f} | {median:.3f} | {low:.3f} to {high:.3f} | {r['growth_MB']:.0f} |"
        )
    if options.out:
        about = {"command": " ".join(["python", *sys.argv]), "tokens": tokens, "heads": options.heads}
        about |= {
            "rounds": options.rounds,
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "dtype": options.dtype,
        }
        if options.device.startswith("cuda"):
            about["device"] = torch.cuda.get_device_name()
        options.out.write_text(json.dumps({**about, "arms": table}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
