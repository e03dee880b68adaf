"""Published lists of pairs, each of whatever form, as rows.

The form is in the name: parquet, csv, tsv or JSON lines, the last three perhaps gzipped.
"""

from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path

from crawl2clip.errors import ConfigError, DataError
from data_pipeline.metadata_columns import NamedColumns
from data_pipeline.metadata_lines import ListFault, RowFault, open_list, read_lines
from data_pipeline.metadata_parquet import parquet_rows
from data_pipeline.metadata_text import Row, delimited_rows, json_rows
from data_pipeline.transfer import is_page


class ListForm(Enum):
    """The forms of lists."""

    parquet = "parquet"
    csv = "csv"
    tsv = "tsv"
    jsonl = "jsonl"


_FORMS = {
    ".parquet": ListForm.parquet,
    **{
        f".{name}{compression}": form
        for name, form in {**{form.value: form for form in ListForm}, "ndjson": ListForm.jsonl}.items()
        if form is not ListForm.parquet
        for compression in ("", ".gz")
    },
}
LIST_ENDINGS = tuple(_FORMS)
"""What the names of lists end in."""

_CHECKED_LINE_BYTES = 1 << 20  # a longer first line is left to the run


def list_form_of(location: str) -> ListForm:
    """The form of a list, by its name.

    Raises:
        ConfigError: the name does not say.
    """
    name = location.split("?", 1)[0].lower() if "://" in location else location.lower()
    for ending, form in _FORMS.items():
        if name.endswith(ending):
            return form
    raise ConfigError(
        f"source.files: the form of the list {location!r} cannot be told from its name; "
        f"names of lists end in {', '.join(LIST_ENDINGS)}"
    )


def read_list(
    path: Path, location: str, given: NamedColumns, max_row_bytes: int, lose: Callable[[ListFault], None]
) -> Iterator[Row | RowFault]:
    """Yields every row of a list, or in its place why it cannot be read; a few at a time are in memory.

    Args:
        path: the list on this machine.
        location: where it is from: names its form, and the list in errors.
        given: columns that the user names.
        max_row_bytes: of a line of csv, tsv or JSON lines.
        lose: called for what is wrong with the list as a whole.

    Raises:
        DataError: it cannot be opened, or its columns cannot be told.
    """
    form = list_form_of(location)
    first_bytes = open_list(path)
    if not first_bytes:
        return lose(ListFault.file_empty)
    if is_page(first_bytes):
        return lose(ListFault.file_not_list)
    if form is ListForm.parquet:
        yield from parquet_rows(path, given, location, lose)
        return
    lines = read_lines(path, max_row_bytes, lose)
    if form is ListForm.jsonl:
        yield from json_rows(lines, given, location)
    else:
        yield from delimited_rows(lines, "," if form is ListForm.csv else "\t", given, location)


def check_list(path: Path, location: str, given: NamedColumns) -> None:
    """Reads the first rows of a list, so that wrong columns are found before work starts.

    Raises:
        ConfigError: its columns cannot be told, or it cannot be opened.
    """
    try:
        next(read_list(path, location, given, _CHECKED_LINE_BYTES, lambda fault: None), None)
    except DataError as error:
        raise ConfigError(str(error)) from error
