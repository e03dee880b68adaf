"""Which of the signals that site owners give bind a download; `configs/policy/` holds the files to choose from.

A decision is made and stored for every signal that binds. One that does not is not asked for, which the
`consent` column shows by its absence.
"""

from dataclasses import dataclass

from crawl2clip.missing import MISSING


@dataclass(kw_only=True, slots=True)
class PolicyConfig:
    """The signals, one field each."""

    robots: bool = MISSING  # robots.txt, RFC 9309
    opt_out_directives: list[str] = MISSING  # X-Robots-Tag directives; [] for none
    tdmrep: bool = MISSING  # tdm-reservation headers and /.well-known/tdmrep.json, one more request an origin
    aipref_usages: list[str] = MISSING  # usages refused by Content-Usage, e.g. train-ai; [] for none
