"""TDMRep, the W3C community group's reservation of text and data mining rights (www.w3.org/2022/tdmrep).

Two of its forms concern an image: a header of its answer, and the file /.well-known/tdmrep.json of its origin.
The first rule that matches in the file counts, a header overrules the file, and anything that is not a plain 0
or 1 says nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.consent import Decision
from data_pipeline.path_patterns import matches, normal_path, path_of

WELL_KNOWN = "/.well-known/tdmrep.json"
MAX_BYTES = 500 * 1024
_SIGNAL = "tdmrep"
_MAX_RULES = 10_000


@dataclass(frozen=True)
class TdmRules:
    """What an origin's file says; no rules when it has none that can be read."""

    rules: tuple[tuple[str, bool], ...] = ()  # (pattern, reserved), in order

    @classmethod
    def from_response(cls, status: int, body: bytes) -> "TdmRules":
        """The rules in the answer to a request for the file."""
        if status != 200:
            return cls()
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            return cls()
        if not isinstance(found, list):
            return cls()
        return cls(tuple(rule for item in found[:_MAX_RULES] if (rule := _rule(item)) is not None))

    def reserved(self, url: str) -> bool | None:
        """What the file says of a URL; None when nothing."""
        path = path_of(url)
        return next((reserved for pattern, reserved in self.rules if matches(pattern, path)), None)


def _rule(item: Any) -> tuple[str, bool] | None:
    if not isinstance(item, dict):
        return None
    location, reserved = item.get("location"), _flag(item.get("tdm-reservation"))
    if not isinstance(location, str) or reserved is None:
        return None
    return normal_path(location.encode("utf-8", "replace").decode()), reserved


def _flag(value: Any) -> bool | None:
    return {"0": False, "1": True}.get(str(value).strip()) if isinstance(value, int | str) else None


def tdmrep_decision(header_values: Sequence[str], rules: TdmRules, url: str) -> Decision:
    """What a site says about mining the image at a URL.

    Args:
        header_values: the tdm-reservation headers of its answer; none before there is one.
        rules: of its origin.
        url: the image's.
    """
    stated = [flag for value in header_values if (flag := _flag(value)) is not None]
    where, reserved = ("header", stated[-1]) if stated else ("file", rules.reserved(url))
    if reserved is None:
        return Decision(_SIGNAL, True, "absent")
    return Decision(_SIGNAL, not reserved, f"{where} says {int(reserved)}")
