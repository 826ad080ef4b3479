"""A plan: how many weights each linear drops, as an object and as a file that is made to be read, edited and compared."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path

from tamp import masks, schema, writing
from tamp.errors import UserError, unknown
from tamp.schema import Range


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many weights every linear drops.

    Attributes:
        linears: names of the linears inside the model, in the order of the blocks.
        sizes: weights of each.
        drops: weights to drop of each.
        scores: what the allocation was made from, None if it was uniform.
        target: share of all weights to drop, in [0, 1).
        pattern: ``"n:m"`` if every linear drops some n of m consecutive inputs, n on average; ``"dense|n:m"`` if none or n.
        cap: largest share any linear may drop, None if there is none.
        allocation: the rule it was made by.
        model: name or path of the model it was made for.
        fingerprint: of that model, see :func:`tamp.models.fingerprint`.
    """

    linears: tuple[str, ...]
    sizes: tuple[int, ...]
    drops: tuple[int, ...]
    scores: tuple[float, ...] | None = None
    target: float
    pattern: str | None = None
    cap: float | None = None
    allocation: str = "uniform"
    model: str = ""
    fingerprint: str = ""

    @property
    def sparsity(self) -> float:
        """Share of all weights dropped."""
        return sum(self.drops) / sum(self.sizes)

    def table(self):
        """List the linears as a DataFrame: linear, weights, score (NaN if uniform), sparsity."""
        import pandas

        shares = [drop / size for drop, size in zip(self.drops, self.sizes)]
        scores = self.scores or math.nan
        return pandas.DataFrame({"linear": self.linears, "weights": self.sizes, "score": scores, "sparsity": shares})

    def __str__(self) -> str:
        table = self.table()
        kinds = table["linear"].str.split(".").str[-1]
        groups = f" in groups of {masks.parse_pattern(self.pattern)[1]}" if self.pattern else ""
        spread = table.groupby(kinds, sort=False)["sparsity"].agg(["min", "mean", "max"])
        return (
            f"{self.allocation} for {self.model}: {self.sparsity:.4%} of {sum(self.sizes):,} weights{groups}\n"
            f"{spread.to_string(float_format='{:.3f}'.format)}"
        )

    def write(self, path: str | Path) -> Path:
        """Write the plan as JSON, a line per linear."""
        head = {field: getattr(self, field) for field in HEAD}
        scores = self.scores or [None] * len(self.linears)
        rows = [
            f"  {json.dumps(name)}: {json.dumps({'weights': size, 'dropped': drop, 'score': score})}"
            for name, size, drop, score in zip(self.linears, self.sizes, self.drops, scores)
        ]
        text = json.dumps(head, indent=1)[:-2] + ',\n "linears": {\n' + ",\n".join(rows) + "\n }\n}\n"
        return writing.write_text(path, text)

    @classmethod
    def read(cls, path: str | Path) -> "Plan":
        """Read a plan, perhaps edited by hand.

        Raises:
            UserError: if it is not a plan, or does not add up: the message says which linear or total, and what to do.
        """
        found = schema.read(path, SCHEMA, "a plan", "`tamp plan` writes one.")
        columns = {key: tuple(row[key] for row in found["linears"].values()) for key in ("weights", "dropped", "score")}
        plan = cls(
            linears=tuple(found["linears"]),
            sizes=columns["weights"],
            drops=columns["dropped"],
            scores=columns["score"] if any(score is not None for score in columns["score"]) else None,
            **{field: found[field] for field in HEAD},
        )
        plan._validate(path)
        return plan

    def _validate(self, path: str | Path) -> None:
        """Check that counts are whole, in range, under the cap, on the pattern, and add up to the target."""
        if not self.linears:
            raise UserError(f"{path} is not a plan: it names no linears. `tamp plan` writes one.")
        try:
            target, (n, m) = masks.exact(self.target), masks.parse_pattern(self.pattern) if self.pattern else (0, 0)
        except ValueError as error:
            raise UserError(f"{path}: {error!s:.200}.") from error
        either = (self.pattern or "").startswith(masks.DENSE)
        scores = self.scores or [0.0] * len(self.linears)
        for name, size, drop, score in zip(self.linears, self.sizes, self.drops, scores):
            if type(size) is not int or type(drop) is not int or not 0 <= drop <= size or not size:
                raise UserError(
                    f"{path}: {name} cannot drop {drop} of {size} weights; give a whole number up to {size}."
                )
            if score is None or not math.isfinite(score):
                raise UserError(f"{path}: the score of {name} is {score}; give a number, or null for all linears.")
            if m and (drop * m) % size:
                raise UserError(
                    f"{path}: {name} drops {drop} of {size} weights, which is not a whole number per group of {m} inputs."
                )
            if either and drop not in (0, size * n // m):
                raise UserError(f"{path}: {name} drops {drop} weights; give 0 or {size * n // m} under {self.pattern}.")
            if not m and self.cap is not None and drop > math.floor(size * Fraction(str(self.cap))) + 1:
                raise UserError(
                    f"{path}: {name} drops {drop / size:.2%} of its weights, above the cap of {self.cap:.2%}; "
                    "drop fewer, or raise the cap."
                )
        asked, dropped = round(sum(self.sizes) * target), sum(self.drops)
        if abs(dropped - asked) > (max(self.sizes) * (n if either else 1) // m if m else 0):
            raise UserError(
                f"{path}: the linears drop {dropped:,} weights together, and the target {self.target:g} of "
                f"{sum(self.sizes):,} is {asked:,}: drop {abs(asked - dropped):,} {'more' if dropped < asked else 'fewer'}, "
                f"or set the target to {dropped / sum(self.sizes)}."
            )

    def check(self, sizes: dict[str, int]) -> None:
        """Check that the plan was made for a model of this shape.

        Args:
            sizes: weights per linear of the model, by name.

        Raises:
            UserError: if the plan names a linear that the model has not, lacks one that it has, or knows it in another size.
        """
        for name, size in zip(self.linears, self.sizes):
            if name not in sizes:
                raise unknown("linear", name, sizes, f"The plan was made for {self.model or 'another model'}.")
            if size != sizes[name]:
                raise UserError(f"{name} has {sizes[name]} weights, and {size} in the plan, made for {self.model!r}.")
        if missing := [name for name in sizes if name not in self.linears]:
            raise UserError(f"The plan lacks {missing[0]} and {len(missing) - 1} other linears of the model.")


HEAD = tuple(field.name for field in fields(Plan) if field.name not in ("linears", "sizes", "drops", "scores"))
"""What a file says of the plan as a whole, before its linears."""

SCHEMA = {
    "linears": {...: {"weights": float, "dropped": float, "score": (None, float)}},
    "target": float,
    "pattern": (None, str),
    "cap": (None, Range(0.0, 1.0)),
    **dict.fromkeys(("allocation", "model", "fingerprint"), str),
}
"""What a file holds, see :func:`tamp.schema.misfit`."""


def distance(drops: Sequence[int], other: Sequence[int]) -> float:
    """Return the share of the weights dropped by one plan that another with the same total drops in other linears."""
    return sum(abs(a - b) for a, b in zip(drops, other)) / 2 / max(1, sum(drops))


def differences(first: Plan, second: Plan):
    """Compare two plans for the same linears.

    Returns:
        A row per linear: linear, weights, first and second (sparsity under each), points (the second minus the first, in
        percentage points).

    Raises:
        UserError: if they are not for the same linears.
    """
    second.check(dict(zip(first.linears, first.sizes)))
    table = first.table().drop(columns="score").rename(columns={"sparsity": "first"})
    table["second"] = table["linear"].map(second.table().set_index("linear")["sparsity"])
    return table.assign(points=100 * (table["second"] - table["first"]))
