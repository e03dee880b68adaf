"""AIPREF, the IETF's preferences about the use of content by AI: `Content-Usage: train-ai=n`.

Drafts draft-ietf-aipref-attach and draft-ietf-aipref-vocab, both still changing, so the decision names the
vocabulary it was made by. A preference comes in a header of the answer or in a group of robots.txt, there with a
path or without; the most restrictive of all that apply counts, and a value that cannot be parsed says nothing.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from data_pipeline.consent import Decision
from data_pipeline.path_patterns import matches, normal_path, path_of

VOCABULARY = "vocab-06"
_SIGNAL = "aipref"
# A member of a structured-field dictionary (RFC 9651): a key, perhaps a value, perhaps parameters.
_MEMBER = re.compile(
    r"""([a-z*][a-z0-9_.*-]*)
    (?:=("(?:[^"\\]|\\["\\])*" | [^\s,;"]+))?
    (?:\ *;\ *[a-z*][a-z0-9_.*-]*(?:=(?:"(?:[^"\\]|\\["\\])*"|[^\s,;"]+))?)*""",
    re.VERBOSE,
)
_COMMA = re.compile(r"[ \t]*,[ \t]*")
_MAX_LENGTH = 2000  # characters of one statement
_MAX_RULES = 10_000


def parse_usage(value: str) -> dict[str, bool]:
    """The preferences in a statement: usage -> allowed. Those that are neither y nor n are left out.

    An empty result also for what is no structured-field dictionary, as the draft wants.
    """
    value = value.strip(" \t")
    if len(value) > _MAX_LENGTH:
        return {}
    found: dict[str, str | None] = {}
    position = 0
    while position < len(value):
        member = _MEMBER.match(value, position)
        if member is None:
            return {}
        found[member[1]] = member[2]  # the last of a key counts
        position = member.end()
        if position < len(value):
            comma = _COMMA.match(value, position)
            if comma is None or comma.end() == len(value):
                return {}
            position = comma.end()
    return {key: text == "y" for key, text in found.items() if text in ("y", "n")}


@dataclass(frozen=True)
class UsageRules:
    """The Content-Usage rules of the robots.txt group that is meant for us."""

    rules: tuple[tuple[str, str], ...] = ()  # (path pattern, "" for all paths; statement)

    @classmethod
    def from_robots(cls, text: str, token: str) -> "UsageRules":
        """The rules in a robots.txt; of the groups those that name us, else those for everyone.

        Args:
            text: the file.
            token: our product token, in lower case.
        """
        ours: list[tuple[str, str]] = []
        others: list[tuple[str, str]] = []
        agents: list[str] = []
        named = False  # whether a group named us, with or without such rules
        in_rules = True
        for line in text.splitlines():
            label, colon, value = line.split("#", 1)[0].partition(":")
            label, value = label.strip().lower(), value.strip()
            if not colon:
                continue
            if label == "user-agent":
                agents = [value.lower()] if in_rules else [*agents, value.lower()]
                named, in_rules = named or value.lower() == token, False
                continue
            in_rules = in_rules or label in ("allow", "disallow", "content-usage")
            if label == "content-usage" and len(ours) + len(others) < _MAX_RULES:
                if token in agents:
                    ours.append(_rule(value))
                elif "*" in agents:
                    others.append(_rule(value))
        return cls(tuple(ours if named else others))

    def statements(self, url: str) -> list[str]:
        """The statements of the longest path that matches a URL."""
        path = path_of(url)
        found = [(len(pattern), statement) for pattern, statement in self.rules if matches(pattern, path)]
        longest = max((length for length, _ in found), default=0)
        return [statement for length, statement in found if length == longest]


def _rule(value: str) -> tuple[str, str]:
    if not value.startswith("/"):
        return "", value
    path, _, statement = value.replace("\t", " ").partition(" ")
    return normal_path(path.encode("utf-8", "replace").decode()), statement


def aipref_decision(
    header_values: Sequence[str], rules: UsageRules, url: str, *, usages: Collection[str]
) -> Decision:
    """What a site prefers about the image at a URL.

    Args:
        header_values: the Content-Usage headers of its answer; none before there is one.
        rules: of its origin's robots.txt.
        url: the image's.
        usages: those that concern us, for example train-ai.
    """
    statements = [*([", ".join(header_values)] if header_values else []), *rules.statements(url)]
    stated = [(usage, allowed) for text in statements for usage, allowed in parse_usage(text).items()]
    for usage, allowed in stated:
        if usage in usages and not allowed:
            return Decision(_SIGNAL, False, f"{usage}=n ({VOCABULARY})")
    for usage, _ in stated:
        if usage in usages:
            return Decision(_SIGNAL, True, f"{usage}=y ({VOCABULARY})")
    return Decision(_SIGNAL, True, "absent")
