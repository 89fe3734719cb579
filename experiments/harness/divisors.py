"""Divisors of whole numbers, for what must divide something evenly: found at once, however large it is."""

import math


def divisors(number: int) -> list[int]:
    """All divisors of a number of at least 1, the least first; it takes as many steps as its square root is large."""
    low = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    return low + [number // one for one in reversed(low) if one * one != number]
