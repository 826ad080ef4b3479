"""What to prune and how: one dataclass, and one table of the methods it can spell."""

from dataclasses import dataclass, fields

from tamp import masks
from tamp.errors import UserError, unknown

PRESETS: dict[str, dict[str, str]] = {
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
}
CHOICES = {
    "allocation": ("uniform", "owl", "alphapruning", "ecoflap", "das"),
    "tokens": ("all", "text", "atv", "amia"),
    "criterion": ("magnitude", "wanda", "sparsegpt"),
    "das_similarity": ("mean", "positive"),
    "das_granularity": ("linear", "block"),
    "amia_similarity": ("mean", "positive"),
}


USED_WITH = {
    "das_similarity": {"allocation": ("das",)},
    "das_granularity": {"allocation": ("das",)},
    "das_cap": {"allocation": ("das", "ecoflap")},
    "owl_threshold": {"allocation": ("owl",)},
    "owl_band": {"allocation": ("owl",)},
    "alpha_band": {"allocation": ("alphapruning",)},
    "ecoflap_step": {"allocation": ("ecoflap",)},
    "atv_alpha": {"tokens": ("atv",)},
    "amia_similarity": {"tokens": ("amia",)},
    "amia_neighbours": {"tokens": ("amia",)},
    "amia_threshold": {"tokens": ("amia",)},
    "damping": {"criterion": ("sparsegpt",)},
    "block_size": {"criterion": ("sparsegpt",)},
}
"""Option to the choices it belongs to; given with others it would do nothing, which is refused."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to prune and how; the default is TAMP at 50 %.

    Attributes:
        sparsity: share of weights to drop, in [0, 1). With a pattern it is n / m and need not be given.
        pattern: ``"n:m"``, n of every m consecutive inputs dropped. With the allocation ``"uniform"`` that is every linear's
            pattern, as hardware wants it; any other allocation chooses n per linear, so that the whole meets n / m as
            closely as whole steps allow.
        allocation: how sparsity is spread over the linears: ``"uniform"``, ``"owl"``, ``"alphapruning"``,
            ``"ecoflap"`` or ``"das"``.
        tokens: which calibration tokens count: ``"all"``, ``"text"``, ``"atv"`` or ``"amia"``.
        criterion: ``"magnitude"`` (needs no calibration), ``"wanda"`` or ``"sparsegpt"``.
        das_similarity: ``"mean"`` (the paper, closed form) or ``"positive"`` (as released).
        das_granularity: a sparsity per ``"linear"`` (the paper) or per ``"block"``.
        das_cap: how far above ``sparsity`` any linear may go, under DAS and ECoFLaP.
        owl_threshold: an entry of Wanda's metric above this many times its block's mean is an outlier.
        owl_band: how far from ``sparsity`` OWL moves a block, its lambda.
        alpha_band: how far AlphaPruning moves a linear, as a share of ``sparsity``, its tau.
        ecoflap_step: size of ECoFLaP's perturbation.
        atv_alpha: how many visual tokens ATV takes per unit of drift.
        allocation_samples: how many calibration samples an allocation looks at, from the first on; None for all.
        amia_similarity: like ``das_similarity``, in AMIA's stopping rule.
        amia_neighbours: k of AMIA's graph.
        amia_threshold: of AMIA's stopping rule.
        damping: SparseGPT's.
        block_size: columns SparseGPT prunes at a time.
    """

    sparsity: float | None = None
    pattern: str | None = None
    allocation: str = "das"
    tokens: str = "amia"
    criterion: str = "wanda"
    das_similarity: str = "mean"
    das_granularity: str = "linear"
    das_cap: float = 0.1
    owl_threshold: float = 5.0
    owl_band: float = 0.08
    alpha_band: float = 0.3
    ecoflap_step: float = 1e-3
    atv_alpha: float = 1.0
    allocation_samples: int | None = 32
    amia_similarity: str = "positive"
    amia_neighbours: int = 3
    amia_threshold: float = 0.1
    damping: float = 0.01
    block_size: int = 128

    def __post_init__(self):
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown(name, str(getattr(self, name)), known)
        try:
            if self.pattern is not None:
                n, m = masks.parse_pattern(self.pattern)
                if self.sparsity not in (None, n / m):
                    raise UserError(
                        f"Pattern {self.pattern} is a sparsity of {n / m:g}, not {self.sparsity}; give one of the two."
                    )
                object.__setattr__(self, "sparsity", n / m)
            object.__setattr__(self, "sparsity", float(masks.exact(0.5 if self.sparsity is None else self.sparsity)))
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error
        self._refuse_what_does_nothing()
        for name, low in (
            ("das_cap", 0),
            ("owl_threshold", 0),
            ("owl_band", 0),
            ("alpha_band", 0),
            ("ecoflap_step", 1e-12),
            ("atv_alpha", 0),
            ("amia_neighbours", 1),
            ("amia_threshold", 0),
            ("damping", 0),
            ("block_size", 1),
            ("allocation_samples", 1),
        ):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value >= low):
                raise UserError(f"{name} must be a number of at least {low}, not {value!r}.")

    @classmethod
    def preset(cls, name: str, **changes) -> "Recipe":
        """Make the recipe of a row of :data:`PRESETS`, with changes.

        Raises:
            UserError: if there is no such preset or field, or a value is out of range.
        """
        if name not in PRESETS:
            raise unknown("preset", name, PRESETS)
        for change in changes:
            if change not in (known := [f.name for f in fields(cls)]):
                raise unknown("recipe field", change, known)
        return cls(**{**PRESETS[name], **changes})

    @classmethod
    def spelled(cls, method: str, level: float | str | None = None) -> "Recipe":
        """Make the recipe of a method written as one word: a preset, perhaps with changes.

        Args:
            method: such as ``"tamp"`` or ``"das:tokens=text,das_granularity=block"``.
            level: a sparsity in [0, 1), or a pattern such as ``"2:4"``.

        Raises:
            UserError: if there is no such preset or field, or a value is out of range.
        """
        preset, _, rest = method.partition(":")
        changes: dict[str, str | float | int] = {}
        for change in filter(None, rest.split(",")):
            name, equals, value = change.partition("=")
            if not equals:
                raise UserError(f"{method!r}: write changes to a preset as preset:field=value,field=value.")
            changes[name] = _number(value)
        if level is not None:
            changes["pattern" if isinstance(level, str) else "sparsity"] = level
        return cls.preset(preset, **changes)

    def _refuse_what_does_nothing(self) -> None:
        if self.criterion == "magnitude" and self.tokens != "all":
            raise UserError(
                f"Magnitude looks at no calibration token, so tokens={self.tokens!r} means nothing: use 'all'."
            )
        for field in fields(self):
            for choice, users in USED_WITH.get(field.name, {}).items():
                if getattr(self, field.name) != field.default and getattr(self, choice) not in users:
                    raise UserError(
                        f"{field.name} does nothing under {choice}={getattr(self, choice)!r}; it belongs to "
                        f"{' and '.join(map(repr, users))}."
                    )

    @property
    def plans(self) -> bool:
        """Whether pass 1 is needed: an allocation other than uniform."""
        return self.allocation != "uniform"

    @property
    def capped(self) -> bool:
        """Whether ``das_cap`` limits the sparsity of a linear."""
        return self.allocation in USED_WITH["das_cap"]["allocation"]

    @property
    def allocation_needs_samples(self) -> bool:
        """Whether the allocation looks at calibration samples; AlphaPruning looks at weights alone."""
        return self.allocation not in ("uniform", "alphapruning")

    @property
    def needs_samples(self) -> bool:
        """Whether pruning has to look at calibration samples at all."""
        return self.criterion != "magnitude" or self.allocation_needs_samples


def _number(text: str) -> str | float | int:
    """Read a number if it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
