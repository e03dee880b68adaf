"""What a site's owner says about fetching and using an image: robots.txt and X-Robots-Tag.

Both are machine-readable reservations, and both bind by default. Every decision carries its signal and its
reason and ends in the `consent` column, so that a later reader can see why an image was taken or left.

The surprising part is how robots.txt fails (RFC 9309, section 2.3.1): a missing file (4xx) allows everything,
a server that cannot answer (5xx, no connection) forbids everything.
"""

import email.utils
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from protego import Protego

ROBOTS_MAX_BYTES = 500 * 1024  # RFC 9309, section 2.5: parse at least this much; the rest is ignored


@dataclass(frozen=True)
class Decision:
    """One signal and what it said.

    Attributes:
        signal: "robots.txt", "x-robots-tag", "tdmrep" or "aipref".
        allowed: whether it lets us fetch or keep the image.
        reason: the rule, status code or directive it rests on.
    """

    signal: str
    allowed: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.signal}={'allowed' if self.allowed else 'refused'}:{self.reason}"


def describe(decisions: Sequence[Decision]) -> str | None:
    """The `consent` column: the decisions in the order they were made, each once; None when none was made."""
    return "; ".join(dict.fromkeys(map(str, decisions))) or None


def product_token(user_agent: str) -> str:
    """The name that robots.txt and X-Robots-Tag address us by: "crawl2clip" of "crawl2clip/0.1 (+https://...)"."""
    return re.split(r"[/\s]", user_agent.strip(), maxsplit=1)[0].lower()


# robots.txt


def robots_text(body: bytes) -> str:
    """A robots.txt as text; what is past `ROBOTS_MAX_BYTES` is ignored."""
    return body[:ROBOTS_MAX_BYTES].decode("utf-8-sig", "replace").replace("\0", "")


class Robots:
    """What one origin's robots.txt says to one user agent."""

    def __init__(self, token: str, *, rules: Protego | None, allow_all: bool, reason: str) -> None:
        self._token = token
        self._rules = rules
        self._allow_all = allow_all
        self._reason = reason

    @classmethod
    def from_response(cls, token: str, status: int, body: bytes) -> "Robots":
        """The rules in the answer to a request for /robots.txt, redirects followed.

        2xx: as written. 4xx: no rules, all is allowed. Anything else forbids everything; 429 as well, since
        a server that says "not now" has not said "there are no rules".

        Args:
            token: our product token.
            status: HTTP status code of the answer.
            body: its body, or the first `ROBOTS_MAX_BYTES` of it.
        """
        if 200 <= status < 300:
            return cls(token, rules=Protego.parse(robots_text(body)), allow_all=False, reason="rules")
        return cls(token, rules=None, allow_all=400 <= status < 500 and status != 429, reason=str(status))

    @classmethod
    def unreachable(cls, token: str, reason: str) -> "Robots":
        """No answer at all: everything is forbidden until there is one."""
        return cls(token, rules=None, allow_all=False, reason=reason)

    def decide(self, url: str) -> Decision:
        """Whether we may fetch a URL of this origin."""
        allowed = self._allow_all if self._rules is None else self._rules.can_fetch(url, self._token)
        return Decision("robots.txt", allowed, self._reason)


# X-Robots-Tag

_SIGNAL = "x-robots-tag"
_VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
_WEEKDAY = re.compile(r"(mon|tue|wed|thu|fri|sat|sun)[a-z]*\Z", re.IGNORECASE)
_ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def parse_x_robots_tag(value: str) -> list[tuple[str | None, str, str]]:
    """The directives of one X-Robots-Tag header line.

    A name before a colon is either a directive that takes a value ("unavailable_after: <date>") or a user
    agent that the rest of the line is meant for ("googlebot: noindex, nofollow, otherbot: noai"). A date may
    hold commas and colons.

    Returns:
        (user agent or None for everyone, directive, its value or ""), all but the value in lower case.
    """
    found: list[tuple[str | None, str, str]] = []
    agent: str | None = None
    parts = value.split(",")
    position = 0
    while position < len(parts):
        name, argument = parts[position].strip(), ""
        position += 1
        while ":" in name:
            head, rest = (piece.strip() for piece in name.split(":", 1))
            if head.lower() in _VALUED:
                name, argument = head, rest
                break
            agent, name = head.lower(), rest
        if name.lower() == "unavailable_after" and _WEEKDAY.match(argument) and position < len(parts):
            argument += "," + parts[position]  # the comma of "Fri, 25 Jun 2010 15:00:00 GMT"
            position += 1
        if name:
            found.append((agent, name.lower(), argument))
    return found


def parse_date(text: str) -> datetime | None:
    """A date as sites write it after unavailable_after, in UTC; None when it cannot be read.

    RFC 822, RFC 850 and ISO 8601 are understood. A date without a zone is taken as UTC.
    """
    text = text.strip()
    try:
        if _ISO_DATE.match(text):
            parsed = datetime.fromisoformat(re.sub(r"[zZ]\Z", "+00:00", text))
        else:
            parsed = email.utils.parsedate_to_datetime(text)
        return parsed.replace(tzinfo=parsed.tzinfo or timezone.utc).astimezone(timezone.utc)
    except (ValueError, TypeError, IndexError, OverflowError):  # Overflow: a zone moves it past year 9999
        return None


def x_robots_decision(
    headers: Sequence[str], *, token: str, opt_out_directives: Collection[str], now: datetime
) -> Decision:
    """What the X-Robots-Tag lines of a response say to us.

    Args:
        headers: the values of all its X-Robots-Tag lines.
        token: our product token; lines for other user agents do not concern us.
        opt_out_directives: those that bind, in lower case. "none" counts as "noindex", and so does
            "unavailable_after" once its date has passed. A date that cannot be read is ignored, as search
            engines do.
        now: the time of the response, with a zone.
    """
    if not headers:
        return Decision(_SIGNAL, True, "absent")
    ours: list[str] = []
    for line in headers:
        for agent, directive, argument in parse_x_robots_tag(line):
            if agent not in (None, "*", token):
                continue
            ours.append(directive)
            means = "noindex" if directive == "none" else directive
            if directive == "unavailable_after":
                date = parse_date(argument)
                means = "noindex" if date is not None and date <= now else directive
            if means in opt_out_directives:
                return Decision(_SIGNAL, False, directive)
    return Decision(_SIGNAL, True, _readable(ours) or "for others")


def _readable(directives: Sequence[str]) -> str:
    """A few directive names for the consent column; a hostile header does not become a megabyte of it."""
    names = [name for name in dict.fromkeys(directives) if re.fullmatch(r"[a-z_-]{1,30}", name)]
    return ",".join(names[:5])
