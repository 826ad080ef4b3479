"""What to prune and how: one dataclass, and one table of presets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tamp import criteria, masks, scores, selection, updates
from tamp.errors import UserError, unknown
from tamp.methods import Allocation, Criterion, Option, Tokens, Update, name_of

PRESETS: dict[str, dict[str, Any]] = {
    "magnitude": {"allocation": "uniform", "tokens": "all", "criterion": "magnitude"},
    "wanda": {"allocation": "uniform", "tokens": "all", "criterion": "wanda"},
    "sparsegpt": {"allocation": "uniform", "tokens": "all", "criterion": "sparsegpt"},
    "text": {"allocation": "uniform", "tokens": "text", "criterion": "wanda"},
    "owl": {"allocation": "owl", "tokens": "all", "criterion": "wanda"},
    "alphapruning": {"allocation": "alphapruning", "tokens": "all", "criterion": "wanda"},
    "ecoflap": {"allocation": "ecoflap", "tokens": "all", "criterion": "wanda"},
    "das": {"allocation": "das", "tokens": "all", "criterion": "wanda"},
    "atv": {"allocation": "uniform", "tokens": "atv", "criterion": "wanda"},
    "amia": {"allocation": "uniform", "tokens": "amia", "criterion": "wanda"},
    "tamp": {"allocation": "das", "tokens": "amia", "criterion": "wanda"},
    "repair": {
        "allocation": "uniform",
        "tokens": "atv",
        "criterion": "wanda",
        "update": "admm",
        "update_damping": 0.01,
    },
}
METHODS: dict[str, Mapping[str, Any]] = {
    "allocation": scores.ALLOCATIONS,
    "tokens": selection.TOKENS,
    "criterion": criteria.CRITERIA,
    "update": updates.UPDATES,
}
"""The axes of a recipe and their tables. A preset that does not name an update has none; it may set options too."""

SAMPLES = Option(32, "calibration samples that an allocation looks at, from the first on; None for all", least=1)

SEEN = ("activations", "loss")
"""What allocations look at for which they need samples."""


def options() -> dict[str, Option]:
    """Return every option of every method by name, in the order of the tables."""
    return {
        name: option for table in METHODS.values() for row in table.values() for name, option in row.options.items()
    }


@dataclass(frozen=True, init=False)
class Recipe:
    """What to prune and how; the default is TAMP at 50 %.

    Attributes:
        sparsity: share of weights to drop, in [0, 1). With a pattern n:m it is n / m and need not be given.
        pattern: ``"n:m"``, n of every m consecutive inputs dropped. With the allocation ``"uniform"`` that is every matrix's
            pattern, as hardware wants it; any other allocation chooses n per matrix, so that the whole meets n / m as
            closely as whole steps allow. ``"dense|n:m"``: every matrix is dense or n:m, as hardware runs them; those that
            the allocation prunes hardest take the pattern, as many as bring the whole to ``sparsity``.
        allocation: how sparsity is spread over the matrices: a name of :data:`tamp.scores.ALLOCATIONS`, or a function
            ``f(step) -> {matrix: score}``.
        tokens: which calibration tokens count: a name of :data:`tamp.selection.TOKENS`, or a function
            ``f(row) -> (T,) bool``.
        criterion: which weights go: a name of :data:`tamp.criteria.CRITERIA`, or a function
            ``f(weight, mean_square) -> metric``.
        update: what the kept weights do then: a name of :data:`tamp.updates.UPDATES`.
        allocation_samples: how many calibration samples an allocation looks at, from the first on; None for all.
        options: the options of these methods by name, with their defaults where none was given.

    Raises:
        UserError: if a method, a value or an option does not exist, is out of range, or belongs to a method that was not
            chosen.
    """

    sparsity: float
    pattern: str | None
    allocation: str | Callable
    tokens: str | Callable
    criterion: str | Callable
    update: str
    allocation_samples: int | None
    options: Mapping[str, Any] = field(hash=False)

    def __init__(
        self,
        *,
        sparsity: float | None = None,
        pattern: str | None = None,
        allocation: str | Callable = "das",
        tokens: str | Callable = "amia",
        criterion: str | Callable = "wanda",
        update: str = "none",
        allocation_samples: int | None = SAMPLES.default,
        **options: Any,
    ):
        for axis, method in (("allocation", allocation), ("tokens", tokens), ("criterion", criterion)):
            if not callable(method) and method not in list(METHODS[axis]):  # a list, which takes what has no hash
                raise unknown(axis, method, METHODS[axis])
            object.__setattr__(self, axis, method)
        if update not in list(updates.UPDATES):
            raise unknown("update", update, updates.UPDATES)
        object.__setattr__(self, "update", update)
        if update == "admm" and self.rules[2].update:
            raise UserError(
                f"criterion={criterion!r} chooses its mask column by column, so update='admm' cannot choose it again. "
                "Use update='least_squares'."
            )
        object.__setattr__(self, "pattern", pattern)
        object.__setattr__(self, "sparsity", _sparsity(sparsity, pattern))
        if allocation_samples is not None:
            allocation_samples = SAMPLES.check("allocation_samples", allocation_samples)
        object.__setattr__(self, "allocation_samples", allocation_samples)
        if allocation_samples != SAMPLES.default and not self.allocation_needs_samples:
            raise UserError(f"allocation_samples has no effect with allocation={name_of(allocation)!r}: leave it out.")
        if criterion == "magnitude" and tokens != "all":
            raise UserError(
                f"criterion='magnitude' does not use calibration tokens; tokens={name_of(tokens)!r} has no effect. "
                "Use tokens='all'."
            )
        object.__setattr__(self, "options", self._settled(options))

    def _settled(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of the chosen methods, given or by default; check those that were given."""
        own = {name: option for row in self.rules for name, option in row.options.items()}
        known, given = options(), dict(given)
        for name, value in given.items():
            if name not in known:
                raise unknown("recipe field", name, [*FIELDS, *known])
            value = given[name] = known[name].check(name, value)
            if name not in own and value != known[name].default:
                axis, users = _users(name)
                raise UserError(
                    f"{name} has no effect with {axis}={name_of(getattr(self, axis))!r}; it belongs to "
                    f"{' and '.join(map(repr, users))}."
                )
        return {name: given.get(name, option.default) for name, option in own.items()}

    @property
    def rules(self) -> tuple[Allocation, Tokens, Criterion, Update]:
        """The rows of the four methods."""
        return (
            scores.rule(self.allocation),
            selection.rule(self.tokens),
            criteria.rule(self.criterion),
            updates.UPDATES[self.update],
        )

    @classmethod
    def preset(cls, name: str, **changes) -> "Recipe":
        """Make the recipe of a row of :data:`PRESETS`, with changes.

        Raises:
            UserError: if there is no such preset or field, or a value is out of range.
        """
        if name not in list(PRESETS):
            raise unknown("preset", name, PRESETS)
        return cls(**{**PRESETS[name], **changes})

    @classmethod
    def spelled(cls, method: str, level: float | str | None = None) -> "Recipe":
        """Make the recipe of a method written as one word: a preset, perhaps with changes.

        Args:
            method: such as ``"tamp"`` or ``"das:tokens=text,das_granularity=block"``.
            level: a sparsity in [0, 1), or a pattern such as ``"2:4"``, or with a sparsity, ``"dense|2:4@0.3"``.

        Raises:
            UserError: if there is no such preset or field, or a value is out of range.
        """
        preset, _, rest = str(method).partition(":")
        changes: dict[str, str | float | int] = {}
        for change in filter(None, rest.split(",")):
            name, equals, value = change.partition("=")
            if not equals:
                raise UserError(f"{method!r}: write changes to a preset as preset:field=value,field=value.")
            changes[name] = number(value)
        if isinstance(level, str):
            changes["pattern"], at, share = level.partition("@")
            level = number(share) if at else None
        if level is not None:
            changes["sparsity"] = level
        return cls.preset(preset, **changes)

    def under(self, allocation: str) -> "Recipe":
        """Return this recipe with another allocation and that one's default options."""
        chosen = {name: getattr(self, name) for name in FIELDS}
        kept = {name for row in self.rules[1:] for name in row.options}
        if allocation == self.allocation:
            kept = set(self.options)
        if scores.rule(allocation).looks_at not in SEEN:
            chosen["allocation_samples"] = SAMPLES.default
        return Recipe(**{**chosen, "allocation": allocation}, **{name: self.options[name] for name in kept})

    def summary(self) -> dict[str, Any]:
        """Return all that the recipe says as plain JSON types; functions by their qualified names."""
        chosen = {name: getattr(self, name) for name in FIELDS}
        return {name: name_of(value) if callable(value) else value for name, value in chosen.items()} | self.options

    @property
    def plans(self) -> bool:
        """Whether pass 1 is needed: an allocation other than uniform."""
        return self.rules[0].score is not None

    @property
    def allocation_needs_samples(self) -> bool:
        """Whether the allocation looks at calibration samples."""
        return self.rules[0].looks_at in SEEN

    @property
    def needs_samples(self) -> bool:
        """Whether pruning has to look at calibration samples at all."""
        return self.collects or self.allocation_needs_samples

    @property
    def collects(self) -> bool:
        """Whether criterion or update look at calibration samples."""
        return any(row.statistic is not None for row in self.rules[2:])


FIELDS = tuple(each.name for each in fields(Recipe) if each.name != "options")
"""What every recipe says, whatever its methods."""


def check(recipe: Any) -> None:
    """Check that a recipe is one, and not its name.

    Raises:
        UserError: if it is not.
    """
    if not isinstance(recipe, Recipe):
        raise UserError(f"A recipe is a tamp.Recipe, such as tamp.Recipe.preset('wanda'), not {recipe!r:.80}.")


def _users(option: str) -> tuple[str, list[str]]:
    """Return the axis that an option belongs to, and the methods that have it."""
    users = {axis: [name for name, row in table.items() if option in row.options] for axis, table in METHODS.items()}
    return next((axis, names) for axis, names in users.items() if names)


def _sparsity(sparsity: float | None, pattern: str | None) -> float:
    """Return the share of weights that a sparsity or a pattern asks for, one half if neither is given."""
    try:
        if pattern is not None:
            n, m = masks.parse_pattern(pattern)
            if str(pattern).startswith(masks.DENSE):
                if sparsity is None or masks.exact(sparsity) * m > n:
                    raise UserError(f"Pattern {pattern} needs a sparsity too, from 0 to {n / m:g}, not {sparsity}.")
            elif sparsity not in (None, n / m):
                raise UserError(f"Pattern {pattern} is a sparsity of {n / m:g}, not {sparsity}; give one of the two.")
            else:
                sparsity = n / m
        return float(masks.exact(0.5 if sparsity is None else sparsity))
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def number(text: str) -> str | float | int:
    """Read a whole number or another if it is one; else return the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
