"""What a row of a method table says.

The tables are :data:`tamp.scores.ALLOCATIONS`, :data:`tamp.selection.TOKENS` and :data:`tamp.criteria.CRITERIA`. A method is
a function and what goes with it, stated once: its options, what it looks at, where it is from. Recipes, command line, README
and API page read it from here. A function of your own may be given instead of a name; it is then a row by itself.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from tamp.errors import UserError


@dataclass(frozen=True)
class Option:
    """An option of a method.

    Attributes:
        default: its value if none is given; its type is the option's.
        meaning: what it does, as a phrase.
        least: the smallest number allowed.
        most: the largest number allowed, if there is one.
        choices: the words allowed, for an option that is a word.
    """

    default: Any
    meaning: str
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> Any:
        """Check a value and return it as Python's own type; numbers may be those of other libraries, such as NumPy's.

        Raises:
            UserError: if it is not one of the words, or not a finite number of at least ``least``; or not a whole one where
                the default is.
        """
        if self.choices:
            if value not in self.choices:
                raise UserError(f"{name} must be {' or '.join(map(repr, self.choices))}, not {value!r}.")
            return value
        whole = isinstance(self.default, int)
        known = isinstance(value, Real) and not isinstance(value, bool) and not abs(value) > 1e300
        number = float(value) if known else None
        most = math.nextafter(math.inf, 0) if self.most is None else self.most
        if number is None or not self.least <= number <= most or (whole and number != int(number)):
            bounds = f"of at least {self.least:g}" if self.most is None else f"from {self.least:g} to {self.most:g}"
            raise UserError(f"{name} must be a {'whole ' * whole}number {bounds}, not {value!r}.")
        return int(value) if whole else number


@dataclass(frozen=True, kw_only=True)
class Method:
    """What every row says.

    Attributes:
        options: its options by name.
        summary: what it does, as a phrase.
        source: where it is from.
    """

    options: Mapping[str, Option] = field(default_factory=dict)
    summary: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Allocation(Method):
    """A rule for how much of each matrix to drop.

    Attributes:
        score: ``(step, options) -> {matrix: score}``, called for every block of the dense model (:class:`tamp.walk.Step`);
            None for the same share everywhere.
        share: ``(scores, sizes, sparsity, options) -> drops``: from scores and numbers of weights to weights to drop.
        by_block: ``(options) -> bool``: whether a budget is one per block, spread evenly inside it, instead of per matrix.
        looks_at: ``"nothing"``, ``"weights"``, ``"activations"`` or ``"loss"``.
    """

    score: Callable | None
    share: Callable | None = None
    by_block: Callable[[Mapping], bool] = lambda options: False
    looks_at: str = "activations"


@dataclass(frozen=True, kw_only=True)
class Tokens(Method):
    """A rule for which calibration tokens count.

    Attributes:
        choose: ``(rows, options) -> masks``: per row (:class:`tamp.walk.Row`) the tokens that count, (T,) bool for all
            matrices, (matrices, T) bool, or ``{name: (t,) bool}`` for each, see :func:`tamp.choices.by_matrix`.
        looks_at: ``"modality"``, ``"activations"`` or ``"attention"``; the last computes the attention of the last token.
        together: whether rows of several samples are chosen from at once.
    """

    choose: Callable
    looks_at: str = "activations"
    together: bool = False


@dataclass(frozen=True, kw_only=True)
class Criterion(Method):
    """A rule for which weights of a matrix to drop.

    Attributes:
        metric: ``(weight, statistic) -> metric``, (out, in) each; the smallest entries of a row are dropped.
        update: instead, ``(weight, statistic, drop, pattern, options) -> weight``: the pruned weight, the others changed.
        statistic: class of the accumulator of the inputs that count; None for a criterion that needs no calibration.
    """

    metric: Callable | None = None
    update: Callable | None = None
    statistic: type | None = None


def name_of(method: str | Callable) -> str:
    """Return what a method is called in reports, plans and manifests: its name, or a function's qualified name."""
    return method if isinstance(method, str) else f"{method.__module__}.{method.__qualname__}"


@dataclass(frozen=True, kw_only=True)
class Update(Method):
    """What the kept weights do once the mask is chosen.

    Attributes:
        apply: ``(weight, choose, statistic, options) -> weight``, (out, in) each; ``choose(weight, share=1.0)`` gives the
            mask that drops this share of all that are due; None to leave the kept weights as they are.
        statistic: ``(width, device) -> accumulator`` of the inputs.
    """

    apply: Callable | None
    statistic: Callable | None = None
