"""Models beside the catalogue: `diffusers:REPOSITORY_OR_FOLDER`, and `FILE.py:FUNCTION` that returns a lens."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_lens.errors import ModelError, PlanError

if TYPE_CHECKING:
    from dit_lens.lens import Lens

PREFIX = "diffusers:"


def load(name: str, device: str | None, dtype: Any, options: list[str]) -> Lens:
    """Load a model that is named by where it comes from.

    Args:
        name: as in the module's first line; a dotted module will do in place of a file.
        device: where to run. Default: "cuda", or "cpu" on a machine without it.
        dtype: a torch dtype or its name. Default: bfloat16.
        options: names of further options that the caller set, none of which is taken here.

    Raises:
        PlanError: an option that is not taken, or the function does not return a lens.
        ModelError: the pipeline, the file or the function is missing.
    """
    if options:
        raise PlanError(
            f"{name} takes no {', '.join(options)}: set the pipeline up in a function of your own."
        )
    if name.startswith(PREFIX):
        return _pipeline(name.removeprefix(PREFIX), device, dtype)
    if device is not None or dtype is not None:
        raise PlanError(f"{name}: the function itself decides on device and dtype.")
    return _function(name)


def _pipeline(source: str, device: str | None, dtype: Any) -> Lens:
    from diffusers import DiffusionPipeline

    from dit_lens.lens import Lens
    from dit_lens.models import loading

    try:
        pipe = DiffusionPipeline.from_pretrained(source, torch_dtype=loading.number_type(dtype))
    except (OSError, ValueError) as error:
        raise ModelError(f"No diffusers pipeline at {source!r}: {error}") from error
    info = {"name": PREFIX + source, "revision": pipe.config.get("_commit_hash")}
    return Lens(pipe.to(device or loading.default_device()), info=info)


def _function(name: str) -> Lens:
    from dit_lens.lens import Lens

    place, _, function = name.rpartition(":")
    make = getattr(_module(place), function, None)
    if make is None:
        raise ModelError(f"{place} has no function {function!r}.")
    lens = make()
    if not isinstance(lens, Lens):
        raise PlanError(f"{name}() returned a {type(lens).__name__}: it should return a dl.Lens.")
    return lens


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise  # the file exists, and imports a module that does not
            raise ModelError(
                f"--model {place}:...: {error}; give a file, such as my_model.py:make."
            ) from error
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    if spec is None or spec.loader is None or not Path(place).is_file():
        raise ModelError(f"{place}: there is no such file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
