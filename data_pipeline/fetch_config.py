"""The settings of fetching: who we say we are, how fast, how patient, what binds us."""

import re
from dataclasses import dataclass, field

from crawl2clip.errors import ConfigError
from crawl2clip.missing import MISSING
from data_pipeline.policy import PolicyConfig

_USER_AGENT = re.compile(r"[A-Za-z][A-Za-z0-9_-]*/[\w.+-]+ \(\+https?://[^\s()]+\)")


def check_number(name: str, value: object, low: float, high: float = float("inf")) -> None:
    """Raises ConfigError when a setting is a number outside low..high; one not yet given is no number."""
    if isinstance(value, (int, float)) and not low <= value <= high:
        allowed = f"of {low:g} or more" if high == float("inf") else f"from {low:g} to {high:g}"
        raise ConfigError(f"{name} is {value}; give a number {allowed}")


def _who_are_you(found: str | None) -> str:
    return (
        f"download.user_agent is {found!r}; site owners must be able to see who fetches and how to reach them: give "
        "download.user_agent=\"'name/version (+https://page-about-your-crawler)'\""
    )


@dataclass(kw_only=True, slots=True)
class FetchConfig:
    """How URLs are fetched. Limits hold for each worker process."""

    # "name/version (+https://page-about-the-crawler)"; the name is what robots.txt calls us by. null until somebody
    # fetches: there is no right default for who that is
    user_agent: str | None = None
    concurrency: int = MISSING  # most requests under way at once; how many are is found by trying. 1 or more
    per_host_connections: int = MISSING  # of these, to one host; 1 or more
    per_host_requests_per_s: float = MISSING  # sustained rate to one host; above 0
    max_host_failures: int = MISSING  # failures in a row that end a host for the rest of the shard; 1 or more
    nameservers: list[str] = MISSING  # DNS servers asked in turn, "9.9.9.9"; [] for the system's resolver
    connect_timeout_s: float = MISSING  # name lookup, TCP and TLS together
    first_byte_timeout_s: float = MISSING  # from the request to the first byte of an answer
    read_timeout_s: float = MISSING  # longest silence between two pieces of an answer
    min_bytes_per_s: float = (
        MISSING  # an answer slower than this, after read_timeout_s, is given up; 0: no limit
    )
    total_timeout_s: float = MISSING  # one request, from lookup to last byte
    task_timeout_s: float = (
        MISSING  # one URL, with its redirects, retries and pauses, from its first request on
    )
    retries: int = MISSING  # more tries after a time-out, a broken connection, 408, 425, 429, 5xx; 0 or more
    backoff_s: float = MISSING  # wait before the first retry; doubles each time
    max_retry_after_s: float = MISSING  # longest Retry-After that is waited for; a longer one ends the host
    max_redirects: int = MISSING  # hops after the first
    max_bytes: int = MISSING  # of a body, also after its Content-Encoding is undone
    allow_loopback: bool = MISSING  # lets 127.0.0.0/8 and ::1 be fetched; for tests and the demo only
    policy: PolicyConfig = field(default_factory=PolicyConfig)  # which signals of site owners bind

    def __post_init__(self) -> None:
        if self.user_agent is not None and not _USER_AGENT.fullmatch(self.user_agent):
            raise ConfigError(_who_are_you(self.user_agent))
        for name, low in (
            ("concurrency", 1),
            ("per_host_connections", 1),
            ("per_host_requests_per_s", 1e-3),
            ("max_host_failures", 1),
            ("connect_timeout_s", 1e-3),
            ("read_timeout_s", 1e-3),
            ("first_byte_timeout_s", 1e-3),
            ("min_bytes_per_s", 0),
            ("total_timeout_s", 1e-3),
            ("task_timeout_s", 1e-3),
            ("retries", 0),
            ("backoff_s", 0),
            ("max_retry_after_s", 0),
            ("max_redirects", 0),
            ("max_bytes", 1),
        ):
            check_number(f"download.{name}", getattr(self, name), low)

    @property
    def identified_as(self) -> str:
        """The user agent.

        Raises:
            ConfigError: none is given.
        """
        if self.user_agent is None:
            raise ConfigError(_who_are_you(None))
        return self.user_agent
