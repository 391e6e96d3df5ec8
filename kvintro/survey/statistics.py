# SPDX-License-Identifier: LGPL-2.1-or-later
"""Statistics of a survey: whether places are drawn evenly, and which values stand out. Pure arithmetic."""

from __future__ import annotations

import math
from statistics import fmean, median
from typing import List, Sequence, Tuple

#: Up to this number of values the distribution of the statistic is exact.
_EXACT = 500
#: Square of the distance times the number of values beyond which the matrix would be large.
_FAR = 7.24
#: Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993): scores above this stand out.
STANDS_OUT = 3.5
_MAD, _MEAN_AD = 1.486, 1.253314


def evenness(parts: Sequence[Tuple[float, float]]) -> Tuple[float, float]:
    """The two-sided Kolmogorov-Smirnov test of whether values are drawn evenly from 0 to 1.

    A value is known to be in a part of that interval. The distance is measured to the nearer end of the part,
    so the p-value is too large rather than too small.

    :param parts: lower and upper end.
    :returns: the largest distance between the distributions, and the p-value.
    """
    n = len(parts)
    low, high = sorted(start for start, _ in parts), sorted(end for _, end in parts)
    above = max((i + 1) / n - at for i, at in enumerate(high))
    below = max(at - i / n for i, at in enumerate(low))
    distance = max(above, below, 0.0)
    return distance, ks_p_value(n, distance)


def ks_p_value(n: int, distance: float) -> float:
    """The probability that n values drawn from a uniform distribution deviate from it at least this much."""
    if distance <= 0.5 / n:
        return 1.0
    if distance >= 1:
        return 0.0
    far = distance * distance * n
    if far > _FAR:
        # The same paper as below: good to 7 digits there.
        return 2.0 * math.exp(-(2.000071 + 0.331 / math.sqrt(n) + 1.409 / n) * far)
    if n <= _EXACT:
        return min(max(1 - _exact(n, distance), 0.0), 1.0)
    # Stephens (1970), Use of the Kolmogorov-Smirnov, Cramer-Von Mises and Related Statistics Without
    # Extensive Tables: good to two digits.
    t = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * distance
    total = sum((-1.0) ** (k - 1) * math.exp(-2 * k * k * t * t) for k in range(1, 101))
    return min(max(2 * total, 0.0), 1.0)


def _exact(n: int, distance: float) -> float:
    """Marsaglia, Tsang and Wang (2003), Evaluating Kolmogorov's Distribution."""
    import numpy as np

    k = math.floor(n * distance) + 1
    h = k - n * distance
    size = 2 * k - 1
    rows = np.arange(size)
    matrix = (rows[:, None] - rows[None, :] + 1 >= 0).astype(float)
    powers = h ** np.arange(1, size + 1)
    matrix[:, 0] -= powers
    matrix[-1, :] -= powers[::-1]
    if 2 * h - 1 > 0:
        matrix[-1, 0] += (2 * h - 1) ** size
    gap = rows[:, None] - rows[None, :] + 1
    matrix /= np.array([[math.factorial(max(int(g), 0)) for g in row] for row in gap], dtype=float)
    power = np.linalg.matrix_power(matrix, n)
    logarithm = math.lgamma(n + 1) - n * math.log(n)
    centre = float(power[k - 1, k - 1])
    return math.exp(math.log(centre) + logarithm) if centre > 0 else 0.0


def scores(values: Sequence[float]) -> List[float]:
    """How far each value is from the median: the modified z-score of Iglewicz and Hoaglin.

    If more than half of the values are equal, the mean absolute deviation is the unit.
    """
    middle = median(values)
    distances = [abs(value - middle) for value in values]
    unit = _MAD * median(distances) or _MEAN_AD * fmean(distances)
    return [(value - middle) / unit if unit else 0.0 for value in values]
