"""Numbers kept in a sample's .npy field, read without trusting it: multi-label targets and group codes.

numpy's own reader allocates what the header announces before it looks at the data; here the header is
compared with the bytes that are there first, and nothing is unpickled.
"""

import io
import math

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from crawl2clip.errors import DataError


def read_vector(data: bytes, where: str) -> NDArray[np.float64]:
    """The numbers of a .npy field.

    Args:
        data: the field's bytes, version 1 or 2 of numpy's format.
        where: shard and sample, for messages.

    Returns:
        [n] float64; a single number counts as a vector of one.

    Raises:
        DataError: no .npy, cut off, not of numbers, of more than one dimension, or with a number that is not finite.
    """
    file = io.BytesIO(data)
    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, _, dtype = read(file)
    except (ValueError, KeyError, EOFError) as error:
        raise DataError(f"{where}: .npy is not an array of numpy ({error}); write the shard again") from error
    rest = data[file.tell() :]
    if dtype.kind not in "biuf" or len(shape) > 1:
        raise DataError(
            f"{where}: .npy is an array of {dtype} with shape {shape}; a vector of numbers is expected"
        )
    size = math.prod(shape)
    if size * dtype.itemsize != len(rest):
        raise DataError(
            f"{where}: .npy announces {size} numbers of {dtype} and holds {len(rest)} bytes; it was cut off: fetch the "
            "shard again"
        )
    values = np.frombuffer(rest, dtype).astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"{where}: .npy holds numbers that are not finite; write the shard again")
    return values


def read_targets(data: bytes, where: str) -> tuple[list[int], int]:
    """Multi-label targets from a .npy field with a 0 or 1 for each class, as CLIP_benchmark writes them.

    Returns:
        (indices of the classes that apply, number of classes).

    Raises:
        DataError: as `read_vector`, or a number that is neither 0 nor 1.
    """
    values = read_vector(data, where)
    if not np.isin(values, (0.0, 1.0)).all():
        raise DataError(
            f"{where}: .npy holds {values[~np.isin(values, (0.0, 1.0))][0]:g}; multi-label targets are 0 or 1 a class"
        )
    return np.flatnonzero(values).tolist(), len(values)


def read_codes(data: bytes, fields: list[str], where: str) -> dict[str, str]:
    """Group codes from a .npy field, one number a name, as DataComp's WILDS and fairness sets keep them.

    Raises:
        DataError: as `read_vector`, or another number of columns than names.
    """
    values = read_vector(data, where)
    if len(values) != len(fields):
        raise DataError(
            f"{where}: .npy holds {len(values)} numbers, metadata_fields names {len(fields)} ({', '.join(fields)}); "
            "name every column in its order"
        )
    return {
        name: str(int(value)) if value.is_integer() else str(value)
        for name, value in zip(fields, values.tolist(), strict=True)
    }
