"""How long does it take to name a model by every byte of it? Checksums of tensors, and the identity of the organism.

    python benchmarks/fingerprint.py [--largest 8] [--rounds 20] [--device cpu] [--out benchmarks/fingerprint.json]

Processor time of one thread, median and best, and wall time, median, of some rounds.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

import dit_lens as dl
from dit_lens.families.fingerprint import Gathering, checksum, joint_checksums


@dataclass
class Options:
    """Options of the benchmark."""

    largest: float = 8
    """GB of the largest tensor, in bfloat16."""
    rounds: int = 20
    device: str = "cpu"
    """Where the tensors are; the organism stays on the CPU."""
    out: Path | None = None


def main(options: Options) -> None:
    """Measure, print a table, and write it where asked."""
    torch.set_num_threads(1)
    lens = dl.load("organism-v1")
    tensors = [*lens.pipe.parameters(), *lens.pipe.buffers()]
    gathering = Gathering()
    gathering.take(tensors)
    size = sum(t.numel() * t.element_size() for t in tensors)
    rows = [
        measure("organism: checksum of all tensors", size, options, lambda: joint_checksums([gathering])),
        measure("organism: fingerprint of the DiT", size, options, lens.fingerprint),
        measure("organism: whole identity", size, options, lens.identity),
    ]
    for gigabytes, dtype in ((1.0, torch.float32), (options.largest, torch.bfloat16)):
        count = int(gigabytes * 1e9) // torch.empty(0, dtype=dtype).element_size()
        tensor = torch.empty(count, dtype=dtype, device=options.device).normal_()
        name = f"{gigabytes:g} GB, {str(dtype).removeprefix('torch.')}, {options.device}"
        rows.append(measure(name, int(gigabytes * 1e9), options, lambda tensor=tensor: checksum(tensor)))
        del tensor
    print(f"{'what':40} {'MB':>8} {'wall ms':>10} {'CPU ms':>10} {'best':>8} {'GB/s':>6}")
    for row in rows:
        print(
            f"{row['what']:40} {row['MB']:8.1f} {row['wall ms']:10.2f} {row['CPU ms']:10.2f} "
            f"{row['best CPU ms']:8.2f} {row['GB/s']:6.1f}"
        )
    if options.out is not None:
        options.out.write_text(
            json.dumps({**asdict(options), "out": str(options.out), "rows": rows}, indent=1) + "\n"
        )


def measure(what: str, size: int, options: Options, work: Callable[[], Any]) -> dict[str, Any]:
    """Return the times of some work on `size` bytes; the first round is not counted."""
    work()
    wall, busy = [], []
    for _ in range(options.rounds):
        start, spent = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        busy.append(time.process_time() - spent)
    seconds = statistics.median(wall)
    times = {
        "wall ms": 1e3 * seconds,
        "CPU ms": 1e3 * statistics.median(busy),
        "best CPU ms": 1e3 * min(busy),
    }
    return {"what": what, "MB": size / 1e6, **times, "GB/s": size / seconds / 1e9}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
