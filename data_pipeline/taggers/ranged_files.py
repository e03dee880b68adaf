"""Files of rows in parts: a sorted run of which a reducer reads its own part alone.

An Arrow file (LZ4) with one record batch a part. Columns are numpy arrays, one-dimensional or [rows, D].
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from crawl2clip.errors import DataError


def write_parts(path: Path, columns: dict[str, np.ndarray], part: np.ndarray, num_parts: int) -> None:
    """Writes rows, those of one part together, in their order.

    Args:
        path: the file.
        columns: by name, of equal length.
        part: int [rows], each row's part.
        num_parts: how many parts there are; a part may be empty.
    """
    order = np.argsort(part, kind="stable")
    ends = np.searchsorted(part[order], np.arange(num_parts + 1))
    schema = pa.schema([(name, _type_of(values)) for name, values in columns.items()])
    options = ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, schema, options=options) as writer:
        for number in range(num_parts):
            rows = order[ends[number] : ends[number + 1]]
            arrays = [_to_arrow(values[rows]) for values in columns.values()]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def read_part(paths: Sequence[str], number: int, num_parts: int) -> dict[str, np.ndarray]:
    """The rows of one part in all files, in the order of the files.

    Raises:
        DataError: a file is missing or damaged, or has another number of parts.
    """
    batches = []
    for path in paths:
        try:
            with pa.memory_map(path) as source, ipc.open_file(source) as reader:
                if reader.num_record_batches != num_parts:
                    raise DataError(
                        f"{path} has {reader.num_record_batches} parts and not {num_parts}; delete its folder and run "
                        "stage=tag again"
                    )
                batches.append(reader.get_batch(number))
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{path} cannot be read as a sorted run ({str(error).splitlines()[0]}); delete its folder and run "
                "stage=tag again"
            ) from error
    names = batches[0].schema.names if batches else []
    return {name: np.concatenate([_to_numpy(batch.column(name)) for batch in batches]) for name in names}


def _type_of(values: np.ndarray) -> pa.DataType:
    kind = pa.from_numpy_dtype(values.dtype)
    return kind if values.ndim == 1 else pa.list_(kind, values.shape[1])


def _to_arrow(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1]
    )


def _to_numpy(column: pa.Array) -> np.ndarray:
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
    return column.to_numpy(zero_copy_only=False)
