"""The files of an organism: which they are, and whether they are there. No torch."""

from __future__ import annotations

from pathlib import Path

from dit_lens.errors import ModelError
from dit_lens.models import files
from dit_lens.models.organism.table import SEED, Organism


def checked(file: Path) -> Path:
    """Return a file that is there, and whole.

    Raises:
        ModelError: it is not.
    """
    if not file.is_file():
        raise ModelError(f"There is no {file}, which this organism needs: `make train` makes it.")
    if why := files.broken(file):
        raise ModelError(f"{file} {why}.")
    return file


def identities(one: Organism, weights: str, folder: Path) -> dict[str, str]:
    """Return what the weights are: the hash of each file by its name; of DiTs that are drawn, by attribute, the seed.

    Raises:
        ModelError: a file is missing or not whole.
    """
    read = (one.frozen, *one.dits.values()) if weights == "trained" else (one.frozen,)
    drawn = {} if weights == "trained" else dict.fromkeys(one.dits, f"random, seed {SEED}")
    return {name: files.identity(checked(folder / name)) for name in read} | drawn
