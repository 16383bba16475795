"""LoRAs by `load`'s options: from what the user wrote to files, and into the models of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dit_lens.errors import PlanError
from dit_lens.models import lora

P = TypeVar("P")
P_co = TypeVar("P_co", covariant=True)


class Adaptable(Protocol[P_co]):
    """What a table says of a model's LoRAs.

    Attributes:
        loras: options, with the pipeline's attribute that each goes into.
        known_loras: LoRAs that have a name: option to file, by that name.
    """

    @property
    def loras(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def known_loras(self) -> Mapping[str, Mapping[str, P_co]]: ...  # noqa: D102


def find(
    name: str, model: Adaptable[P], given: Mapping[str, str | Path | None], locate: Callable[[P], Path]
) -> dict[str, Path]:
    """Return the LoRA files by option, each checked to be there.

    Args:
        name: of the model.
        model: its row of the table.
        given: options of the user; those that are None were not given.
        locate: a file that the table knows to where it is.

    Raises:
        PlanError: the model does not take an option.
        ModelError: a file is missing or broken.
    """
    wanted = {option: value for option, value in given.items() if value is not None}
    known = model.known_loras.get(str(wanted.get("lora")), {})
    if known:
        del wanted["lora"]
        wanted = {**{option: locate(part) for option, part in known.items()}, **wanted}
    for option in wanted:
        if option not in model.loras:
            names = ", ".join(model.known_loras) or "none"
            raise PlanError(
                f"{name} takes {' and '.join(model.loras)}, not {option}={wanted[option]!r} (LoRAs that it has by name: {names})."
            )
    paths = {option: Path(value) for option, value in wanted.items()}
    for path in paths.values():
        lora.check_file(path)
    return paths


def add(pipe: Any, model: Adaptable[P], paths: Mapping[str, Path], alpha: float) -> dict[str, Any]:
    """Add LoRAs to a pipeline; return what `lens.info` says of each, by option."""
    return {option: lora.add(pipe, model.loras[option], path, alpha) for option, path in paths.items()}
