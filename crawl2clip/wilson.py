"""The 95% Wilson score interval of a fraction (Wilson 1927, J. Am. Stat. Assoc. 22)."""

import math

Z_95 = 1.959963984540054


def wilson_interval(hits: int, num: int) -> tuple[float, float]:
    """Both ends, within 0 to 1 and around hits / num; (0, 1) without trials.

    It has a sensible width at 0 and `num` hits too, where the textbook interval has none.
    """
    if num == 0:
        return 0.0, 1.0
    value, z2 = hits / num, Z_95**2
    centre = (value + z2 / (2 * num)) / (1 + z2 / num)
    half = Z_95 / (1 + z2 / num) * math.sqrt(value * (1 - value) / num + z2 / (4 * num**2))
    # At 0 and num hits the ends are exactly 0 and 1; rounding would leave them a hair outside the value.
    return min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half))
