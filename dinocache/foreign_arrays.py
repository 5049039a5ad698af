"""Arrays of others in files of PyTorch (.pt) and NumPy (.npz).

No pickle is executed, and what a file claims to hold is held against its size before memory is
taken.
"""

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError
from dinocache.foreign_item import (
    KEYS,
    MOST_OF_DEFLATE,
    ArrayItem,
    Columns,
    ForeignItem,
    checked_columns,
    checked_shape,
    chosen_key,
    parsed_columns,
    shortened,
)
from dinocache.layout import VECTOR_KINDS

__all__ = ["npz_arrays", "npz_item", "pt_item", "texts_of"]

_MAX_ARRAY = 1 << 36


# .pt


def pt_item(path: Path, key: str | None) -> ForeignItem:
    """Open a file of torch.save: a tensor, or a dict of tensors.

    Args:
        path: Of the file.
        key: Name of the features within it; None looks for the usual ones.

    Raises:
        ItemError: If it holds anything else, or claims more than its size.
    """
    import torch

    size = path.stat().st_size
    tensor, others = _only_tensor(_loaded(path, size), key)
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized:
        raise ItemError("its features are no plain tensor")
    if tensor.numel() * tensor.element_size() > size:
        raise ItemError(f"it claims {tuple(tensor.shape)} features in a file of {size} bytes")
    is_bfloat = tensor.dtype == torch.bfloat16
    shape = checked_shape(
        tensor.shape,
        np.dtype(np.float32) if is_bfloat else np.dtype(str(tensor.dtype).removeprefix("torch.")),
    )
    coords: npt.NDArray[Any] | None = None
    columns: Columns = ()
    placed = others.get("coords")
    if isinstance(placed, torch.Tensor) and tensor.ndim > 1:
        if placed.numel() * placed.element_size() > size or placed.layout != torch.strided:
            raise ItemError(f"it claims {tuple(placed.shape)} coordinates")
        columns = checked_columns(placed.shape, shape[0], None)
        coords = placed.detach().reshape(shape[0], -1).to(torch.float64).numpy()
    return ArrayItem(
        tensor.detach().reshape(shape),
        shape=shape,
        coords=coords,
        columns=columns,
        convert=lambda part: (part.float() if is_bfloat else part).numpy(),
    )


def _loaded(path: Path, size: int) -> object:
    """Load tensors, which stay in the file where it is one of PyTorch since 1.6."""
    import torch

    zipped = zipfile.is_zipfile(path)
    if zipped:
        with zipfile.ZipFile(path) as file:
            listed = file.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in listed) or size < sum(
            info.file_size for info in listed
        ):
            raise ItemError("it claims to hold more than its size; torch.save writes no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as exc:
        if "weights_only" in str(exc):
            raise ItemError(
                "it holds more than tensors (a pickle of Python objects), which is not read; save "
                "the tensor alone"
            ) from exc
        raise


def _only_tensor(loaded: object, key: str | None) -> tuple[Any, dict[Any, Any]]:
    """Find the features in what a .pt file holds; gives the rest, too."""
    import torch

    if isinstance(loaded, torch.Tensor) and key is None:
        return loaded, {}
    if not isinstance(loaded, dict):
        raise ItemError(f"it holds a {type(loaded).__name__}; a tensor, or a dict of one is wanted")
    tensors = {k: v for k, v in loaded.items() if isinstance(v, torch.Tensor)}
    floats = [k for k, v in tensors.items() if v.is_floating_point() and k != "coords"]
    return tensors[chosen_key(tensors, floats, key)], tensors


# .npz


def npz_item(path: Path, key: str | None) -> ForeignItem:
    """Open a file of np.savez: features, with `coords` and what an export of ours adds.

    Args:
        path: Of the file.
        key: Name of the features within it; None looks for the usual ones.

    Raises:
        ItemError: If it holds none, or claims more than its size.
    """
    others = ("coords", "coord_columns", "weights", "digest", "encoder", "item_id")
    values, found = npz_arrays(path, key, others)
    shape = checked_shape(values.shape, values.dtype)
    coords = found.get("coords")
    columns: Columns = ()
    if coords is not None and values.ndim > 1:
        if coords.dtype.kind not in "iuf":
            raise ItemError(f"its coordinates are {coords.dtype}")
        named = found.get("coord_columns")
        listed = None if named is None else json.dumps(named.tolist())
        columns = checked_columns(coords.shape, shape[0], parsed_columns(listed))
        coords = coords.reshape(shape[0], -1)
    said = texts_of(found, ("encoder", "weights", "digest", "item_id"))
    return ArrayItem(values.reshape(shape), shape=shape, coords=coords, columns=columns, said=said)


def npz_arrays(
    path: Path, key: str | None, others: Sequence[str]
) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]]]:
    """Read the features of an .npz file, and some others.

    Args:
        path: Of the file.
        key: Name of the features; None looks for the usual ones.
        others: Names of arrays that are not features.

    Returns:
        The features, and those of `others` that it has.

    Raises:
        ItemError: If it holds no features, or claims more than its size.
    """
    with zipfile.ZipFile(path) as file:
        members = {i.filename.removesuffix(".npy"): i for i in file.infolist()}
        heads = {name: _npy_head(file, info) for name, info in members.items()}
        floats = [
            name
            for name, (shape, dtype) in heads.items()
            if dtype.kind == "f" and len(shape) and name not in others
        ]
        if key is None and not any(name in floats for name in KEYS):
            kinds = [name for name in floats if name in VECTOR_KINDS]
            floats = kinds if len(kinds) == 1 else floats
        chosen = chosen_key(heads, floats, key)
        values = _npy(file, members[chosen], heads[chosen])
        found = {n: _npy(file, members[n], heads[n]) for n in others if n in members}
    return values, found


def _npy_head(
    file: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with file.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise ItemError(f"{info.filename} is of .npy version {version}, which is not read")
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    return shape, dtype


def _npy(
    file: zipfile.ZipFile, info: zipfile.ZipInfo, head: tuple[tuple[int, ...], np.dtype[Any]]
) -> npt.NDArray[Any]:
    """Read one array, after holding what it claims against the file."""
    shape, dtype = head
    if dtype.hasobject:
        raise ItemError(f"{info.filename} holds Python objects (a pickle), which are not read")
    n_bytes = math.prod(shape) * dtype.itemsize
    packed = info.compress_size * (
        1 if info.compress_type == zipfile.ZIP_STORED else MOST_OF_DEFLATE
    )
    if n_bytes > min(info.file_size, packed, _MAX_ARRAY):
        raise ItemError(f"{info.filename} claims {n_bytes} bytes and holds {info.compress_size}")
    with file.open(info) as member:
        array: npt.NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array


def texts_of(found: Mapping[str, npt.NDArray[Any]], names: Sequence[str]) -> dict[str, str]:
    """Give those of some arrays that are one text, shortened."""
    return {
        name: shortened(str(found[name][()]))
        for name in names
        if name in found and found[name].dtype.kind == "U" and found[name].ndim == 0
    }
