"""Large arrays in checkpoints, a file of plain bytes each: a replay of gigabytes is written without a copy in memory.

orbax holds two more copies of an array while it saves it, which for a replay is more than many machines have.
"""

import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGE_BYTES = 64 << 20
"""From this size on."""
_BLOCK_BYTES = 16 << 20


def is_large(leaf: Any) -> bool:
    """Whether a leaf, an array or what stands for one, goes into a file of its own."""
    import numpy as np  # here and below: listing the experiments imports this file, and must stay quick

    size, dtype = getattr(leaf, "size", 0), getattr(leaf, "dtype", None)
    return isinstance(dtype, np.dtype) and size * dtype.itemsize >= LARGE_BYTES


def write(path: Path, array: Any) -> list[int]:
    """Writes an array to disk; returns the file's size in bytes and its CRC-32."""
    size = checksum = 0
    with open(path, "wb") as file:
        for block in _blocks(array):
            file.write(block)
            size, checksum = size + len(block), zlib.crc32(block, checksum)
        file.flush()
        os.fsync(file.fileno())
    return [size, checksum]


def read(path: Path, like: Any, expected: list[int]) -> Any:
    """The array that `write` wrote, of the shape, dtype and placement of `like`, whose memory is given up for it.

    Raises:
        ValueError: the file is not what was written.
    """
    import jax
    import numpy as np

    if isinstance(like, jax.Array):
        like.delete()
    array = np.empty(like.shape, like.dtype)
    whole, checksum = array.reshape(-1).view(np.uint8).data, 0
    try:
        with open(path, "rb") as file:
            for start in range(0, len(whole), _BLOCK_BYTES):
                block = whole[start : start + _BLOCK_BYTES]
                if file.readinto(block) != len(block):
                    raise ValueError("too short")
                checksum = zlib.crc32(block, checksum)
    except OSError as error:
        raise ValueError(error.strerror) from None
    if [path.stat().st_size, checksum] != expected:
        raise ValueError("damaged")
    if isinstance(like, np.ndarray):
        return array
    # A copy: memory that NumPy owns could not be donated.
    return jax.device_put(array, getattr(like, "sharding", None), may_alias=False)


def _blocks(array: Any) -> Iterator[memoryview]:
    import numpy as np

    for part in (array,) if _comes_whole(array) else _pieces(array.addressable_data(0)):
        whole = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        for start in range(0, len(whole), _BLOCK_BYTES):
            yield whole[start : start + _BLOCK_BYTES]


def _comes_whole(array: Any) -> bool:
    """Whether NumPy sees an array without a copy, as on the CPU; or it is small, or divided over devices."""
    import numpy as np

    if isinstance(array, np.ndarray) or array.nbytes <= _BLOCK_BYTES or not array.is_fully_replicated:
        return True
    return all(device.platform == "cpu" for device in array.devices())


def _pieces(array: Any) -> Iterator[Any]:
    """A device's array in pieces of a block at most, in the order of their bytes: the device holds one beside it."""
    import jax
    import numpy as np

    row_bytes = [array.nbytes // math.prod(array.shape[: axis + 1]) for axis in range(array.ndim)]
    axis = next(axis for axis, size in enumerate(row_bytes) if size <= _BLOCK_BYTES)
    length = array.shape[axis]
    rows = min(length, _BLOCK_BYTES // row_bytes[axis])
    shape = (1,) * axis + (rows,) + array.shape[axis + 1 :]
    for outer in np.ndindex(array.shape[:axis]):
        for start in range(0, length, rows):
            begin = min(start, length - rows)  # the last piece overlaps the one before: one shape compiles once
            place = (*outer, begin, *(0 for _ in array.shape[axis + 1 :]))
            yield np.asarray(jax.lax.dynamic_slice(array, place, shape)).reshape(shape[axis:])[start - begin :]
