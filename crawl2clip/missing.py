"""The value of a setting that has none yet.

It is omegaconf's MISSING, without omegaconf: importing that costs a twentieth of a second, which worker and decoding
processes would all pay to read the definitions of settings that they are sent complete.
"""

from typing import Any

MISSING: Any = "???"
