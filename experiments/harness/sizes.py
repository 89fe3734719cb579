"""What a run needs of memory at least, known before anything is built, and how large its options can be instead.

All of it is counted, never guessed: what arrays take follows from the shapes that `jax.eval_shape` gives, and of a
network's activations only those count that a backward pass cannot do without. What XLA needs besides is not known
beforehand. So a run that is refused could not have run, and one that is not may still need more than there is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from experiments.harness.bounds import replaced

Needs = Callable[[Any], Mapping[str, int]]
"""(configuration) -> the bytes that each part of a run needs, by a name for it."""


class Sized(NamedTuple):
    """An option that the size of a run depends on: the more, the larger.

    Attributes:
        path: of its field in the configuration: "training.batch_size".
        step: it must be a multiple of this.
        least: the smallest value that makes sense.
        now: its value where the field has none: 0 may stand for a default.
    """

    path: str
    step: int = 1
    least: int = 1
    now: int = 0

    @property
    def option(self) -> str:
        """As it is typed."""
        return f"--{self.path.rpartition('.')[2].replace('_', '-')}"


def what_fits(config: Any, needs: Needs, options: Sequence[Sized]) -> Callable[[int], str]:
    """What is said to someone whose run does not fit: of each option the largest value with which it does.

    Args:
        config: the configuration of the run.
        needs: see `Needs`; called with other values of the options.
        options: those that can be made smaller.

    Returns:
        (bytes that there are) -> such as "take a smaller --replay-capacity (2991234 fits)".
    """

    def words(available: int) -> str:
        found = [(one.option, largest(config, needs, one, available)) for one in options]
        told = [f"{option} ({value} fits)" for option, value in found if value is not None]
        if not told:
            return f"no smaller {' or '.join(option for option, _ in found)} alone is enough"
        return f"take a smaller {', or '.join(told)}"

    return words


def largest(config: Any, needs: Needs, option: Sized, available: int) -> int | None:
    """The largest value of one option with which a run fits, to a hundredth; None where none below its own is enough.

    All other options stay as they are.

    Of several numbers, such as widths, the largest ones are cut to it.
    """
    path = tuple(option.path.split("."))
    given = functools.reduce(getattr, path, config)
    several = isinstance(given, tuple)
    now = max(given, default=0) if several else int(given) or option.now

    def excess(value: int) -> int:
        new = tuple(min(one, value) for one in given) if several else value
        return sum(needs(replaced(config, path, new)).values()) - available

    low, high = -(-option.least // option.step), now // option.step
    if low >= high or excess(low * option.step) > 0:
        return None
    return option.step * _last_at_most_0(lambda number: excess(number * option.step), low, high)


_EXACT = 100


def _last_at_most_0(function: Callable[[int], int], low: int, high: int) -> int:
    """A whole number at which an increasing function is at most 0, as it is at `low`, and not at `high`.

    It is the last one, or at most a hundredth below it. In turns a line through both ends is followed, exact at once
    where the function is one, and the middle of their logarithms is tried.
    """
    at_low, at_high, by_line = function(low), function(high), True
    while high - low > max(1, low // _EXACT):
        guess = low + (high - low) * -at_low // max(1, at_high - at_low) if by_line else math.isqrt(low * high)
        guess = min(max(guess + by_line * (guess == low), low + 1), high - 1)
        by_line = not by_line
        if (value := function(guess)) <= 0:
            low, at_low = guess, value
        else:
            high, at_high = guess, value
    return low


def extrapolated(needs: Callable[[int], Mapping[str, int]], count: int) -> dict[str, int]:
    """What `count` equal layers need, from what one and two do: a deep network is built once, where it is needed."""
    one = needs(1)
    if count == 1:
        return dict(one)
    two = needs(2)
    return {name: one[name] + (count - 1) * (two[name] - one[name]) for name in one}


def kept_bytes(forward: Callable[..., Any], params: Any, *inputs: Any) -> int:
    """Memory that a backward pass needs of a forward pass at least: what is multiplied by weights, or with itself.

    Each such array counts once, and those of one that is computed again in the backward pass do not. XLA may compute
    what is between two products again; the products themselves it does not.

    Args:
        forward: (params, *inputs) -> outputs.
        params: arrays, or the shapes of some.
        inputs: likewise.
    """
    jaxpr = jax.make_jaxpr(forward)(params, *inputs).jaxpr
    of_params = len(jax.tree.leaves(params))
    return sum(_kept(jaxpr, jaxpr.invars[of_params:])[0].values())


_SAME = frozenset({"reshape", "transpose", "convert_element_type", "squeeze", "expand_dims", "sharding_constraint"})
"""What leaves the values of an array as they are."""
_PRODUCTS = frozenset({"dot_general", "conv_general_dilated"})


def _kept(jaxpr: Any, inputs: Iterable[Any]) -> tuple[dict[Any, int], set[Any]]:
    """The bytes of what products read, by the variable, and the variables that depend on the inputs."""
    depends, kept, source = set(inputs), {}, {}
    for equation in jaxpr.eqns:
        read = [one for one in equation.invars if not hasattr(one, "val") and one in depends]
        if not read:
            continue
        depends.update(equation.outvars)
        name, inner = equation.primitive.name, list(_inside(equation.params))
        if name in _SAME:
            source[equation.outvars[0]] = source.get(read[0], read[0])
        if name in _PRODUCTS or name in ("checkpoint", "remat2"):
            for one in read:
                first = source.get(one, one)
                kept[first] = min(kept.get(first, _bytes(one)), _bytes(one), _bytes(first))
        elif len(inner) == 1 and len(inner[0].invars) == len(equation.invars):
            outer = {of: one for of, one in zip(inner[0].invars, equation.invars, strict=True) if one in read}
            found, within = _kept(inner[0], outer)[0], 0
            for one, size in found.items():
                if one in outer and name != "scan":
                    first = source.get(outer[one], outer[one])
                    kept[first] = min(kept.get(first, size), size)
                else:
                    within += size
            if within:
                kept[equation.outvars[0]] = within * (equation.params["length"] if name == "scan" else 1)
    return kept, depends


def _bytes(variable: Any) -> int:
    return variable.aval.size * variable.aval.dtype.itemsize


def _inside(params: Mapping[str, Any]) -> Iterable[Any]:
    for value in params.values():
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner
