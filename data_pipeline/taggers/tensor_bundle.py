"""Reads the tensors of a TensorFlow checkpoint without TensorFlow: the `variables` of a Keras SavedModel.

Two files. `variables.index` is a LevelDB table from a name to a BundleEntryProto (type, shape, offset, size, CRC-32C);
the other holds the values one after the other. Written after the format's documentation (leveldb/doc/table_format.md,
tensorflow/core/protobuf/tensor_bundle.proto). Only what such checkpoints of small models use is read: one data file,
uncompressed index blocks, and the types float32, float64, int32, int64 and string.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from crawl2clip.errors import DataError

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_DTYPES = {1: np.dtype("<f4"), 2: np.dtype("<f8"), 3: np.dtype("<i4"), 9: np.dtype("<i8")}
_STRING = 7
_MAX_ELEMENTS = 1 << 28


def read_tensor_bundle(index: bytes, data: bytes, name: str) -> dict[str, np.ndarray]:
    """name -> array; strings as an object array of bytes.

    Args:
        index: `variables.index`.
        data: `variables.data-00000-of-00001`.
        name: of the file, for messages.

    Raises:
        DataError: it is cut off, damaged, or uses what is not read here.
    """
    try:
        return {
            key.decode("utf-8"): tensor
            for key, entry in _entries(index)
            if key and (tensor := _tensor(_fields(entry), data)) is not None
        }
    except (IndexError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{name} is not a TensorFlow checkpoint that can be read here ({error}); fetch it again, or convert its "
            "weights to safetensors"
        ) from error


def _entries(index: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table."""
    footer = index[-_FOOTER:]
    if len(index) < _FOOTER or int.from_bytes(footer[-8:], "little") != _MAGIC:
        raise ValueError("its index has no LevelDB footer")
    place = _skip_handle(footer, 0)  # of the metaindex
    offset, place = _varint(footer, place)
    size, _ = _varint(footer, place)
    for _, handle in _block(index, offset, size):
        start, place = _varint(handle, 0)
        length, _ = _varint(handle, place)
        yield from _block(index, start, length)


def _skip_handle(data: bytes, place: int) -> int:
    _, place = _varint(data, place)
    return _varint(data, place)[1]


def _block(index: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block: a key repeats `shared` bytes of the one before."""
    if offset + size + 1 > len(index):
        raise ValueError("a block lies beyond the end of its index")
    if index[offset + size] != 0:
        raise ValueError("its index is compressed")
    block = index[offset : offset + size]
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")  # the restarts, and their number
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        unshared, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + unshared]
        place += unshared
        yield key, block[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise ValueError("a number of its index has no end")


def _fields(message: bytes) -> dict[int, list[Any]]:
    """field number -> values of a protocol buffer: numbers, or bytes."""
    found: dict[int, list[Any]] = {}
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(message, place)
        elif kind == 2:
            length, place = _varint(message, place)
            value, place = message[place : place + length], place + length
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            value, place = message[place : place + width], place + width
        else:
            raise ValueError(f"wire type {kind} of a protocol buffer is not read")
        found.setdefault(tag >> 3, []).append(value)
    return found


def _tensor(entry: dict[int, list[Any]], data: bytes) -> np.ndarray | None:
    """The tensor of a BundleEntryProto; None for a type that is not read, which no weight has."""
    (kind,) = entry.get(1, [0])
    shape = [_fields(dim).get(1, [0])[0] for dim in _fields(entry.get(2, [b""])[0]).get(2, [])]
    offset, size = entry.get(4, [0])[0], entry.get(5, [0])[0]
    values = data[offset : offset + size]
    if len(values) < size:
        raise ValueError("its data end before a tensor does")
    count = int(np.prod(shape, dtype=np.int64)) if shape else 1
    if not 0 <= count <= _MAX_ELEMENTS:
        raise ValueError(f"a tensor of shape {shape}")
    if kind == _STRING:
        return _strings(values, count).reshape(shape)
    if kind not in _DTYPES:
        return None
    return np.frombuffer(values, _DTYPES[kind], count).reshape(shape)


def _strings(values: bytes, count: int) -> np.ndarray:
    """Strings of a tensor: all lengths as varints, a checksum of them, then the bytes."""
    found = np.empty(count, dtype=object)
    place, lengths = 0, []
    for _ in range(count):
        length, place = _varint(values, place)
        lengths.append(length)
    place += 4
    for number, length in enumerate(lengths):
        found[number] = values[place : place + length]
        place += length
    return found
