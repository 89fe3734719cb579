"""Large arrays in checkpoints, a file of plain bytes each: a replay of gigabytes goes out and in without another copy.

orbax holds two more copies of an array while it saves it, which for a replay is more than many machines have.
"""

import io
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.harness.errors import Damaged
from experiments.harness.storage import opened

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
        Damaged: the file is not what was written, or missing.
        Unreadable: it cannot be read.
    """
    import jax
    import numpy as np

    if isinstance(like, jax.Array):
        like.delete()
    try:
        with opened(path) as file:
            if os.fstat(file.fileno()).st_size != expected[0]:
                raise Damaged(f"its array {path.name} has another size")
            array, checksum = (_read_to_host if isinstance(like, np.ndarray) else _read_to_devices)(file, like)
    except FileNotFoundError:
        raise Damaged(f"its array {path.name} is missing") from None
    if checksum != expected[1]:
        raise Damaged(f"its array {path.name} is damaged")
    return array


def _read_to_host(file: io.BufferedReader, like: Any) -> tuple[Any, int]:
    import numpy as np

    array, checksum = np.empty(like.shape, like.dtype), 0
    whole = array.reshape(-1).view(np.uint8).data
    for start in range(0, len(whole), _BLOCK_BYTES):
        block = whole[start : start + _BLOCK_BYTES]
        file.readinto(block)
        checksum = zlib.crc32(block, checksum)
    return array, checksum


def _read_to_devices(file: io.BufferedReader, like: Any) -> tuple[Any, int]:
    """The array and the checksum. There is never a second one beside it, neither on the device nor on the host."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    sharding = getattr(like, "sharding", None)
    array, checksum = jax.jit(lambda: jnp.zeros(like.shape, like.dtype), out_shardings=sharding)(), 0
    put = jax.jit(jax.lax.dynamic_update_slice, donate_argnums=0, out_shardings=sharding)
    strides = [like.dtype.itemsize * math.prod(like.shape[axis + 1 :]) for axis in range(like.ndim)]
    for place, shape, known in _places(like.shape, like.dtype.itemsize):
        file.seek(sum(stride * index for stride, index in zip(strides, place, strict=True)))
        block = file.read(like.dtype.itemsize * math.prod(shape))
        checksum = zlib.crc32(block[known:], checksum)
        array = put(array, np.frombuffer(block, like.dtype).reshape(shape), place).block_until_ready()
    return array, checksum


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
    """The bytes of a device's array, a block at most at once: the device holds one beside it."""
    import jax
    import numpy as np

    for place, shape, known in _places(array.shape, array.dtype.itemsize):
        yield np.asarray(jax.lax.dynamic_slice(array, place, shape)).reshape(-1).view(np.uint8)[known:]


def _places(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Pieces of an array in the order of their bytes, which are contiguous, and a block at most.

    Yields:
        Where one begins, its shape, and how many of its bytes belong to the one before as well: the last one along an
        axis overlaps with it, so that all have one shape, for which a function is compiled once.
    """
    import numpy as np

    row_bytes = [itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    axis = next((axis for axis, size in enumerate(row_bytes) if size <= _BLOCK_BYTES), None)
    if axis is None:  # a single number
        yield (), (), 0
        return
    length = shape[axis]
    rows = min(length, _BLOCK_BYTES // row_bytes[axis])
    piece = (1,) * axis + (rows,) + shape[axis + 1 :]
    for outer in np.ndindex(shape[:axis]):
        for start in range(0, length, rows):
            begin = min(start, length - rows)
            yield (*outer, begin, *(0 for _ in shape[axis + 1 :])), piece, (start - begin) * row_bytes[axis]
