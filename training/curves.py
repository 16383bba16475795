"""Draw the loss on held-out layouts over a training.

Usage: python training/curves.py docs/organism/full.jsonl docs/organism/causal.jsonl --out docs/organism/curves.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro
from matplotlib.figure import Figure


@dataclass
class Args:
    """What is drawn where."""

    logs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files that `train.py` wrote, one for each organism."""
    out: Path = Path("curves.png")


def main(args: Args) -> None:
    """Draw a panel for each organism, with a line for each group of boards."""
    figure = Figure(figsize=(4.4 * len(args.logs), 3.2), layout="constrained")
    axes = figure.subplots(1, len(args.logs), sharey=True, squeeze=False)
    for axis, path in zip(axes[0], args.logs, strict=True):
        log = pd.read_json(path, lines=True)
        held_out = pd.DataFrame([*log["held_out"]], index=log["step"] / 1000)
        held_out.plot(ax=axis, marker=".", lw=1)
        axis.set(title=path.stem, xlabel="steps / 1000", ylabel="loss on held-out layouts", ylim=(0.14, 0.3))
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Args))
