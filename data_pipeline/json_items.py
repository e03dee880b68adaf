"""The items of one list in a JSON file, one at a time: little more than the largest of them is held in memory.

The file is an object with that list and other keys, which are read whole. Any layout of the text is read, since it is
not always this project that laid it out.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from crawl2clip.errors import DataError

_BLOCK = 1 << 14  # characters that are read at once
_SPACE = re.compile(r"[ \t\n\r]*")
_AFTER_VALUE = tuple(",]}: \t\n\r")
_decode = json.JSONDecoder().raw_decode


def read_items(path: Path, key: str, others: dict[str, Any]) -> Iterator[Any]:
    """The items of the list `key` of the object in a JSON file.

    Args:
        others: gets the object's other keys, and under `key` the number of items; complete when there are no more.

    Raises:
        DataError: the file is missing, torn, or not such an object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            yield from _items(_Text(file), key, others)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; check the path, or run the step that writes it") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError(
            f"{path} is not valid JSON ({what}); delete it and run the step that writes it again"
        ) from error


def _items(text: "_Text", key: str, others: dict[str, Any]) -> Iterator[Any]:
    text.take("{")
    end = text.take("}") if text.next() == "}" else ","
    while end == ",":
        if text.next() != '"':
            raise text.error('expected a key in "')
        found = text.value()
        text.take(":")
        if found == key:
            others[key] = 0
            text.take("[")
            end = text.take("]") if text.next() == "]" else ","
            while end == ",":
                item = text.value()
                end = text.take(",]")
                others[key] += 1
                yield item
        else:
            others[found] = text.value()
        end = text.take(",}")
    if text.next():
        raise text.error("expected nothing more")


class _Text:
    """A JSON text, of which only what is being decoded is in memory."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.buffer, self.place = "", 0
        self.before = 0  # characters before the buffer
        self.ended = False

    def next(self) -> str:
        """The next character that is not white space, without taking it; none at the end."""
        while True:
            space = _SPACE.match(self.buffer, self.place)
            assert space is not None  # it matches nothing as well
            self.place = space.end()
            if self.place < len(self.buffer) or self.ended:
                return self.buffer[self.place : self.place + 1]
            self._read_on()

    def take(self, allowed: str) -> str:
        """Takes the next character, which is one of those allowed."""
        found = self.next()
        if not found or found not in allowed:
            raise self.error(f"expected {' or '.join(allowed)}")
        self.place += 1
        return found

    def value(self) -> Any:
        """Takes the next value, whole."""
        self.next()
        while True:
            try:
                value, end = _decode(self.buffer, self.place)
            except json.JSONDecodeError as error:
                if self.ended:
                    raise self.error(error.msg) from error
            else:
                if self.buffer[end : end + 1] in _AFTER_VALUE or self.ended:  # else a number may go on
                    self.place = end
                    return value
            self._read_on()

    def error(self, what: str) -> json.JSONDecodeError:
        """What is wrong, and where."""
        found = repr(self.buffer[self.place : self.place + 20]) if self.next() else "the end"
        return json.JSONDecodeError(f"{what} at character {self.before + self.place}, found {found}", "", 0)

    def _read_on(self) -> None:
        # Twice as much each time, so that a long value is not decoded from its start more than a few times.
        kept = self.buffer[self.place :]
        block = self.file.read(max(_BLOCK, len(kept)))
        self.before += self.place
        self.buffer, self.place, self.ended = kept + block, 0, not block
