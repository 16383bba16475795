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

    A file of the user's is called by the attribute that it goes into: it may be moved and called anything.

    Raises:
        ModelError: a file is missing or not whole.
    """
    out = {one.frozen: files.identity(checked(folder / one.frozen))}
    if weights == "random":
        return out | dict.fromkeys(one.dits, f"random, seed {SEED}")
    for attribute, file in one.dits.items():
        label = attribute if Path(file).is_absolute() else file
        out[label] = files.identity(checked(folder / file))
    return out
