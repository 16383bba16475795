"""Arrays and images by content: type, shape, number type and exact bytes. No array library is imported here."""

from __future__ import annotations

import hashlib
import math
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dit_lens.plan import classes, origin

if TYPE_CHECKING:
    from dit_lens.plan.content import Walk

SLAB = 1 << 24
"""Values of an array that are read at a time: a lazy array may be far larger than memory."""


_MARKS = ("_is_hf", "_dynamo")
"""How the names of attributes begin that libraries leave on tensors."""


def is_tensor(value: Any) -> bool:
    """Say whether a value is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_array(value: Any) -> bool:
    """Say whether a value is an array of numpy's, or of a library's that numpy can read (Dask, JAX).

    An object of the user's that only looks like one holds more than its values.
    """
    kind = type(value)
    of_numpy = any(base.__module__ == "numpy" and base.__name__ == "ndarray" for base in kind.__mro__)
    if not of_numpy and not origin.is_library_module(str(kind.__module__)):
        return False
    return hasattr(kind, "__array__") and hasattr(value, "dtype") and hasattr(value, "shape")


def reader_of(value: Any) -> Callable[[Walk, Any], Any] | None:
    """Return the function that reads a value as an array, a table or an image; None where it is none of these."""
    kind = type(value)
    root = kind.__module__.partition(".")[0]
    if is_tensor(value):
        return tensor
    if root == "xarray" and kind.__name__ == "DataTree":
        return tree
    if root == "xarray" and hasattr(value, "dims") and hasattr(value, "coords"):
        return dataset if hasattr(value, "data_vars") else labelled
    if root == "xarray" and hasattr(value, "dims") and hasattr(value, "dtype"):
        return labelled  # a bare Variable
    if root == "pandas" and hasattr(value, "to_numpy"):
        return table
    if any(base.__module__ == "PIL.Image" and base.__name__ == "Image" for base in kind.__mro__):
        return image
    return array if is_array(value) else None


def array(walk: Walk, value: Any) -> Any:
    """Return an array as data: numpy's, a masked one, a lazy one."""
    dtype, kind = value.dtype, type(value)
    data: dict[str, Any] = {"@array": "numpy", "shape": list(value.shape), "dtype": str(dtype)}
    if kind.__module__ != "numpy" and kind.__module__.partition(".")[0] not in ("dask", "numpy", "xarray"):
        data["kind"] = f"{kind.__module__}.{kind.__qualname__}"
        data |= _of_user(walk, value) | _units_of(value)
        attrs = getattr(value, "attrs", None)  # of arrays in files: zarr, h5py
        data |= {"attrs": walk.visit(dict(attrs))} if isinstance(attrs, Mapping) else {}
    elif kind.__name__ not in ("ndarray", "memmap"):  # a matrix multiplies otherwise
        data["kind"] = kind.__name__
    if hasattr(value, "mask") and hasattr(value, "filled"):
        data |= {"kind": "masked", "mask": array(walk, _numpy(value.mask)), "fill": repr(value.fill_value)}
        value = value.data
    if getattr(dtype, "names", None):
        data["fields"] = {name: array(walk, value[name]) for name in dtype.names}
    elif getattr(dtype, "kind", "") in ("O", "T"):  # objects, and strings of any length
        data["values"] = [walk.visit(item) for item in _numpy(value).ravel().tolist()]
    else:
        data["sha256"] = _digest(value)
    return data


def _units_of(value: Any) -> dict[str, str]:
    """Return the units that a library's array says of itself, such as pint's and astropy's."""
    units = getattr(value, "units", None) or getattr(value, "unit", None)
    return {} if units is None or isinstance(units, types.MethodType) else {"units": str(units)}


def _of_user(walk: Walk, value: Any) -> dict[str, Any]:
    """Return what an array or a tensor of a class of the user's holds beside its values: attributes, and code."""
    kind = type(value)
    if origin.is_library_module(str(kind.__module__)):
        return {}
    return {
        "class": classes.describe(walk, kind),
        "attributes": walk.visit(dict(getattr(value, "__dict__", {}))),
    }


def labelled(walk: Walk, value: Any) -> Any:
    """Return an xarray DataArray or Variable as data, with its dimensions, coordinates and attributes."""
    coords = {str(k): labelled(walk, c.variable) for k, c in _sorted(getattr(value, "coords", {}))}
    named = {"dims": list(map(str, value.dims)), "coords": coords, "attrs": walk.visit(dict(value.attrs))}
    named |= {"name": walk.visit(value.name)} if getattr(value, "name", None) is not None else {}
    return array(walk, value.variable if hasattr(value, "variable") else value) | named


def dataset(walk: Walk, value: Any) -> Any:
    """Return an xarray Dataset as data; of one that was opened, the order of variables does not count: files come in any."""
    variables = {str(name): labelled(walk, variable) for name, variable in _sorted(value.variables)}
    data = {
        "@dataset": variables,
        "coords": sorted(map(str, value.coords)),
        "attrs": walk.visit(value.attrs),
    }
    opened = "source" in value.encoding or any("source" in v.encoding for v in value.variables.values())
    return data if opened else data | {"order": list(map(str, value.data_vars))}


def tree(walk: Walk, value: Any) -> Any:
    """Return an xarray DataTree as data."""
    return {"@tree": [[path, dataset(walk, node)] for path, node in _sorted(value.to_dict())]}


def _sorted(variables: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """Return variables in the order of their names: a store lists them in any order."""
    return sorted(variables.items(), key=lambda item: str(item[0]))


def table(walk: Walk, value: Any) -> Any:
    """Return a pandas table, column or index as data."""
    data: dict[str, Any] = {"@table": type(value).__name__}
    data |= {"attrs": walk.visit(dict(value.attrs))} if getattr(value, "attrs", None) else {}
    if hasattr(value, "columns"):
        columns = [[walk.visit(name), table(walk, value.iloc[:, n])] for n, name in enumerate(value.columns)]
        return data | {
            "columns": columns,
            "named": table(walk, value.columns),
            "index": table(walk, value.index),
        }
    data |= {
        "name": walk.visit(getattr(value, "name", None)),
        "names": walk.visit(list(getattr(value, "names", []))),
        "ordered": bool(getattr(value.dtype, "ordered", False)),
        "dtype": str(value.dtype),
        "categories": walk.visit([*getattr(value.dtype, "categories", [])]),
        "values": array(walk, value.to_numpy()),
    }
    if walk.exact and (spacing := getattr(value, "freqstr", None)):  # of an index of times: code may read it
        data["freq"] = str(spacing)
    return data | ({"index": table(walk, value.index)} if hasattr(value, "index") else {})


def image(walk: Walk, value: Any) -> Any:
    """Return a picture as data: a palette, transparency and orientation count as its pixels do.

    Where code reads it, all that its file says of it counts, and what the user has given it.
    """
    pixels = hashlib.sha256(value.tobytes()).hexdigest()
    palette = getattr(value, "palette", None)
    more = {"palette": [palette.mode, walk.visit(bytes(palette.tobytes()))]} if palette is not None else {}
    seen = ("transparency", "background", "gamma")
    info = {k: v for k, v in value.info.items() if walk.exact or k in seen}
    if orientation := (value.getexif().get(0x0112) if hasattr(value, "getexif") else None):
        info["orientation"] = orientation
    more |= {"info": walk.visit(info)} if info else {}
    return {
        "@image": value.mode,
        "size": list(value.size),
        "sha256": pixels,
        **more,
        **_read_image(walk, value),
    }


def _read_image(walk: Walk, value: Any) -> dict[str, Any]:
    """Return what code that reads a picture may read of it beside its pixels: attributes, class, further frames."""
    if not walk.exact:
        return {}
    kind = type(value)
    given = {n: held for n, held in vars(value).items() if classes.is_given(kind, n)}
    data = {"attributes": walk.visit(given)} if given else {}
    if not classes.is_library(kind):
        data["class"] = classes.describe(walk, kind)
    if getattr(value, "n_frames", 1) > 1:
        here, frames = value.tell(), []
        try:
            for number in range(value.n_frames):
                value.seek(number)
                frames.append(hashlib.sha256(value.tobytes()).hexdigest())
        finally:
            value.seek(here)
        data |= {"frame": here, "frames": frames}
    return data


def tensor(walk: Walk, value: Any) -> Any:
    """Return a torch tensor as data, with the attributes that the user has given it."""
    held = attributes_of(value)
    data = _values(walk, value)
    if (
        value.requires_grad and not walk.of_pipeline and walk.gathering is None
    ):  # in a model it changes no result
        hooks = [*(value._backward_hooks or {}).values()]
        data = {"@tensor": data, "requires_grad": True, "hooks": walk.visit(hooks)}
    if walk.gathering is None and value.is_leaf and value.grad is not None:
        data = {"@tensor": data, "grad": tensor(walk, value.grad)}
    if not held or (isinstance(data, dict) and "attributes" in data):
        return data
    return {"@tensor": data, "attributes": walk.visit(held)}


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes that the user has given a tensor; torch keeps its own in those of nested ones."""
    marks = "_" if value.is_nested else _MARKS
    return {name: held for name, held in vars(value).items() if not name.startswith(marks)}


def _values(walk: Walk, value: Any) -> Any:
    """Return a tensor's values: by position where they are gathered, by the walk's own checksum where it has one."""
    if walk.gathering is not None and (position := walk.gathering.take([value])) is not None:
        return {"@tensor": position}
    plain = type(value) in tensor_types() and not value.is_nested and str(value.layout) == "torch.strided"
    if plain and is_freed(value):
        return walk.unnamed(value, "a tensor whose memory was freed")
    if value.is_meta and (walk.checksum is None or walk.called is not None):
        return walk.unnamed(value, "a tensor without values (on the meta device)")
    if not plain or value.is_quantized:
        return _unusual(walk, value)
    if walk.checksum is not None:
        return walk.checksum(value)
    flat = value.detach().resolve_conj().resolve_neg().reshape(-1)
    digest = hashlib.sha256()
    for start in range(0, flat.numel(), SLAB):
        digest.update(memoryview(tensor_bytes(flat[start : start + SLAB])))
    return {
        "@array": "torch",
        "shape": list(value.shape),
        "dtype": str(value.dtype),
        "sha256": digest.hexdigest(),
    }


def tensor_types() -> tuple[type, ...]:
    """Return torch's own classes of tensors: by themselves, since a class of the user's may have the name of one."""
    import torch

    return torch.Tensor, torch.nn.Parameter, torch.nn.Buffer


def is_freed(value: Any) -> bool:
    """Say whether the memory of a strided tensor was given back: to read it would end the process."""
    return not value.is_meta and value.numel() > 0 and value.untyped_storage().nbytes() == 0


def tensor_bytes(flat: Any) -> Any:
    """Return the bytes of a flat tensor, whichever number type it has, as a numpy array of uint8."""
    import torch

    # A single value counts as contiguous with any stride, and `view` refuses it then.
    flat = flat.cpu().clone(memory_format=torch.contiguous_format) if flat.numel() == 1 else flat.cpu()
    return flat.contiguous().view(torch.uint8).numpy()


def _unusual(walk: Walk, value: Any) -> Any:
    """Return a tensor that is not a block of numbers: of a class of its own, sparse, quantized, nested."""
    data: dict[str, Any] = {"@tensor": type(value).__qualname__, "dtype": str(value.dtype)}
    if value.is_nested:
        return (
            data
            | _of_user(walk, value)
            | {"layout": str(value.layout), "parts": walk.visit([*value.unbind()])}
        )
    data["shape"] = list(value.shape)
    parts = tensor_parts(value)
    if parts is None:
        return walk.unnamed(value, f"a tensor of the kind {type(value).__name__} ({value.layout})")
    return data | _of_user(walk, value) | {name: walk.visit(part) for name, part in parts.items()}


def tensor_parts(value: Any) -> dict[str, Any] | None:
    """Return what a tensor is made of that is not a block of numbers; None where that is not known."""
    if hasattr(value, "__tensor_flatten__"):
        names, context = value.__tensor_flatten__()
        return {**{name: getattr(value, name) for name in names}, "context": context}
    if str(value.layout) == "torch.sparse_coo":
        whole = value.coalesce()
        return {"indices": whole.indices(), "values": whole.values()}
    if "sparse" in str(value.layout):
        names = (
            ("crow_indices", "col_indices")
            if "_csr" in str(value.layout) or "_bsr" in str(value.layout)
            else ()
        )
        names = names or ("ccol_indices", "row_indices")
        return {**{name: getattr(value, name)() for name in names}, "values": value.values()}
    if str(value.layout) != "torch.strided":
        return None
    if value.is_quantized:
        scales = ("q_per_channel_scales", "q_per_channel_zero_points", "q_per_channel_axis")
        names = scales if "channel" in str(value.qscheme()) else ("q_scale", "q_zero_point")
        return {"values": value.int_repr(), **{name: getattr(value, name)() for name in names}}
    import torch

    plain = value.detach().as_subclass(torch.Tensor)
    return {"values": plain, "attributes": {k: v for k, v in vars(value).items() if v is not value}}


def _digest(value: Any) -> str:
    digest = hashlib.sha256()
    for slab in slabs(value):
        digest.update(memoryview(slab).cast("B") if slab.size else b"")
    return digest.hexdigest()


def slabs(value: Any) -> Iterator[Any]:
    """Go through an array in order, in contiguous parts of bounded size, without reading all of a lazy one."""
    import numpy as np

    size = math.prod(value.shape)
    if size <= SLAB or not value.shape:
        part = np.ascontiguousarray(_numpy(value))
        yield part.reshape(-1).view(np.uint8) if part.size else part
        return
    row = size // value.shape[0]
    if row > SLAB:
        for n in range(value.shape[0]):
            yield from slabs(value[n])
        return
    rows = max(1, SLAB // row)
    for start in range(0, value.shape[0], rows):
        yield from slabs(value[start : start + rows])


def _numpy(value: Any) -> Any:
    import numpy as np

    return np.asarray(value)
