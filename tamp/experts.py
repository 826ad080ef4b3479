"""Whole experts dropped by what they add to the tokens that are routed to them (REAP), for tokens of any modality.

The score of an expert is the mean, over the tokens that its router sends to it, of the norm of what it adds to them: the
router's weight times the norm of its output (arXiv 2510.13999). Which tokens count is chosen as in pruning, so that a model
may be cut for its text tokens, or for text and pictures alike.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tamp import choices, masks, models, passes, planning, shrinking, walk
from tamp.errors import UserError
from tamp.methods import name_of
from tamp.pruning import Stopwatch
from tamp.recipe import FIELDS, Recipe
from tamp.report import peak_memory, versions
from tamp.shrinking import Pool

CODES = tuple(models.MODALITY_NAMES)


@dataclass(frozen=True, kw_only=True)
class ExpertsReport:
    """What :func:`drop_experts` did.

    Attributes:
        model: name or path of the model.
        tokens: the choice of tokens, with its options.
        count: experts of a layer before.
        keep: experts of a layer now.
        rows: one per expert: block, experts (name of the module in the model), expert (its number before), score (rounded
            to six digits), kept, counted (tokens that counted; a mass where tokens are weighed), and the tokens routed to
            it by modality: visual, audio, text.
        weights: of the whole model, (before, now).
        samples: calibration samples used.
        all_tokens: modules with experts that no chosen token reached, so that all their tokens counted.
        unread: blocks whose attention cannot be read, so that AMIA counted all tokens.
        seconds: wall time by phase.
        peak_memory: bytes, see :func:`tamp.report.peak_memory`.
    """

    model: str
    tokens: dict[str, Any]
    count: int
    keep: int
    rows: tuple[dict[str, Any], ...]
    weights: tuple[int, int]
    samples: int
    all_tokens: tuple[str, ...]
    unread: int
    seconds: dict[str, float]
    peak_memory: int

    @functools.cached_property
    def table(self):
        """The rows as a DataFrame, with the modality that an expert is used for more than the others of its layer."""
        import pandas

        table = pandas.DataFrame(self.rows)
        counts = table[list(models.MODALITY_NAMES.values())]
        usual = counts.groupby(table["experts"]).transform("sum")
        shares = counts.div(counts.sum(axis=1), axis=0) / usual.div(usual.sum(axis=1), axis=0)
        return table.assign(leaning=shares.fillna(-1).idxmax(axis=1).where(counts.sum(axis=1) > 0, "none"))

    def lost(self) -> dict[str, float]:
        """Return which share of the routed tokens of every modality had chosen an expert that is gone."""
        gone = [row for row in self.rows if not row["kept"]]
        totals = {name: sum(row[name] for row in self.rows) for name in models.MODALITY_NAMES.values()}
        return {name: sum(row[name] for row in gone) / total for name, total in totals.items() if total}

    def summary(self) -> dict[str, Any]:
        """Return what is worth recording, as plain JSON types."""
        return {
            "model": self.model,
            "experts": {"before": self.count, "now": self.keep},
            "tokens": self.tokens,
            "kept": {
                name: [row["expert"] for row in self.rows if row["experts"] == name and row["kept"]]
                for name in dict.fromkeys(row["experts"] for row in self.rows)
            },
            "lost": self.lost(),
            "weights": {"before": self.weights[0], "now": self.weights[1]},
            "all_tokens": list(self.all_tokens),
            "unread": self.unread,
            "samples": self.samples,
            "seconds": {phase: round(seconds, 3) for phase, seconds in self.seconds.items()},
            "peak_memory_bytes": self.peak_memory,
            "versions": versions(),
        }

    def __str__(self) -> str:
        table = self.table
        layers = table.groupby("experts", sort=False)
        kept, gone = table[table["kept"]], table[~table["kept"]]
        shown = layers[["block"]].first()
        shown["least kept"] = kept.groupby("experts")["score"].min()
        shown["most dropped"] = gone.groupby("experts")["score"].max()
        for name in self.lost():
            total = layers[name].sum()
            shown[f"{name} lost"] = gone.groupby("experts")[name].sum() / total.where(total > 0)
        before, now = self.weights
        leaning = ", ".join(
            f"{name} {group['kept'].sum()} of {len(group)}" for name, group in table.groupby("leaning", sort=False)
        )
        lost = ", ".join(f"{name} {share:.1%}" for name, share in self.lost().items())
        said = (
            f"all tokens counted in {', '.join(self.all_tokens)}, which no chosen token reached\n"
            if self.all_tokens
            else ""
        )
        if self.unread:
            said += f"all tokens counted in {self.unread} blocks whose attention cannot be read\n"
        spent = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in self.seconds.items())
        return (
            f"{self.keep} of {self.count} experts per layer stay (tokens: {self.tokens['tokens']}); {now:,} of {before:,} "
            f"weights, {now / before:.1%}\n"
            f"{shown.reset_index().set_index('block').to_string(float_format='{:.3f}'.format, na_rep='-')}\n"
            f"routed tokens whose expert is gone: {lost}\n"
            f"experts kept, by the modality they lean to: {leaning}\n"
            f"{said}{self.samples} samples; {spent}; peak memory {self.peak_memory / 2**20:,.0f} MiB"
        )


@torch.no_grad()
def drop_experts(
    model: nn.Module,
    samples: Sequence[dict],
    keep: int | float = 0.5,
    tokens: str | Callable = "all",
    progress: bool = True,
    **options: Any,
) -> ExpertsReport:
    """Drop the experts of a model that add least to the tokens that count, in place.

    Every layer keeps the same number of experts, since a configuration holds one number. Weights, router and configuration
    are rewritten, so that the saved model loads everywhere and is smaller and faster there. Before anything is changed, the
    smaller model must compute, on a sample of each kind, what the whole one does when its router cannot choose the others.

    Args:
        model: a transformers model with experts, see :func:`tamp.load`.
        samples: processor outputs, see :func:`tamp.calibration_set`.
        keep: how many experts per layer stay: a number, or a share between 0 and 1, rounded to whole experts; to whole
            experts of every group where the router chooses among groups first.
        tokens: which tokens count: a name of :data:`tamp.selection.TOKENS`, or a function ``f(row) -> (T,) bool``.
        progress: show bars.
        **options: of the choice of tokens, such as ``text_share``.

    Returns:
        Scores, tokens by modality and fate of every expert.

    Raises:
        UserError: if the model has no experts or not of a kind that can be cut, or if a sample or the number does not fit.
            The model is then as it was.
    """
    if wrong := sorted(set(options) & set(FIELDS)):
        raise UserError(f"{wrong[0]} does not say which experts go; leave it out.")
    recipe = Recipe(allocation="uniform", tokens=tokens, **options)
    samples = list(samples or [])
    if not samples:
        raise UserError(
            "Dropping experts needs calibration samples and got none; make some with tamp.calibration_set(...)."
        )
    found = shrinking.pools(model)
    number = how_many(keep, found)
    found, rest = shrinking.plan(model, found, number)
    planning.check_model(model, allow_partial=True)
    watch = Stopwatch(next(model.parameters()).device)
    with passes.undisturbed(model):
        with watch("capture"):
            captured = walk.capture(model, samples, progress)
        with watch("check"):
            shrinking.check(
                model, found, rest, [best(torch.zeros(pool.count), number, pool.groups) for pool in found], captured
            )
        with watch("score"):
            seen, unread = score(model, walk.copies(captured), found, recipe, progress)
        kept = [best(each.scores(), number, each.pool.groups) for each in seen]
        with watch("check"):
            shrinking.check(model, found, rest, kept, captured)
        before = sum(parameter.numel() for parameter in model.parameters())
        with watch("cut"):
            shrinking.finish(model, found, rest, kept)
    return ExpertsReport(
        model=models.name_of(model),
        tokens={"tokens": name_of(tokens), **recipe.options},
        count=found[0].count,
        keep=number,
        rows=tuple(row for each, stay in zip(seen, kept) for row in each.rows(set(stay.tolist()))),
        weights=(before, sum(parameter.numel() for parameter in model.parameters())),
        samples=len(samples),
        all_tokens=tuple(each.pool.experts for each in seen if not each.mass[:, 0].any()),
        unread=unread,
        seconds=dict(watch.seconds),
        peak_memory=peak_memory(watch.device),
    )


def how_many(keep: int | float, found: Sequence[Pool]) -> int:
    """Return how many experts per layer a number or a share asks for.

    Raises:
        UserError: if it is neither.
    """
    if isinstance(keep, int) and not isinstance(keep, bool):
        return keep
    if not isinstance(keep, float) or not 0 < keep < 1:
        raise UserError(f"keep is a number of experts, or a share of them between 0 and 1, not {keep!r}.")
    groups = max(pool.groups for pool in found)
    return groups * math.floor(masks.exact(keep) * found[0].count / groups + masks.exact(0.5))


def best(scores: Tensor, keep: int, groups: int = 1) -> Tensor:
    """Return the experts with the highest scores, the same number of every group, ascending; the first of equals.

    Args:
        scores: (experts,).
        keep: how many stay, a multiple of ``groups``.
        groups: of consecutive experts.

    Returns:
        (keep,) int64.
    """
    order = scores.view(groups, -1).argsort(dim=-1, descending=True, stable=True)[:, : keep // groups]
    starts = torch.arange(groups, device=scores.device)[:, None] * (len(scores) // groups)
    return (order + starts).flatten().sort().values


@dataclass(frozen=True)
class Tally:
    """What the tokens say about the experts of one pool.

    Attributes:
        pool: the experts.
        added: (experts, 2) float64, summed norms of what an expert adds to the tokens that count, and to all tokens.
        mass: (experts, 2) float64, how many tokens these were.
        tokens: (experts, modalities) int64, tokens routed to an expert, by modality in the order of ``CODES``.
    """

    pool: Pool
    added: Tensor
    mass: Tensor
    tokens: Tensor

    def scores(self) -> Tensor:
        """Return the mean of what every expert adds, (experts,) float64; 0 for one that no token reached.

        Six digits are kept, so that the last bits of a sum decide nothing. Where none of the chosen tokens reached any
        expert, all tokens count.
        """
        column = 0 if self.mass[:, 0].any() else 1
        mean = self.added[:, column] / self.mass[:, column].clamp(min=torch.finfo(torch.float64).tiny)
        return torch.tensor([float(f"{value:.6g}") for value in mean.tolist()], dtype=torch.float64)

    def rows(self, kept: set[int]) -> list[dict[str, Any]]:
        """Describe every expert."""
        column = 0 if self.mass[:, 0].any() else 1
        names = [models.MODALITY_NAMES[code] for code in CODES]
        return [
            {
                "block": self.pool.block,
                "experts": self.pool.experts,
                "expert": expert,
                "score": value,
                "kept": expert in kept,
                "counted": mass,
                **dict(zip(names, counts)),
            }
            for expert, (value, mass, counts) in enumerate(
                zip(self.scores().tolist(), self.mass[:, column].tolist(), self.tokens.tolist())
            )
        ]


def score(
    model: nn.Module, captured: Sequence[walk.Captured], found: Sequence[Pool], recipe: Recipe, progress: bool = False
) -> tuple[list[Tally], int]:
    """Walk the whole model once and gather what every expert adds to the tokens.

    Args:
        model: the model, not cut.
        captured: the samples; they move along.
        found: its pools.
        recipe: its choice of tokens.
        progress: show a bar.

    Returns:
        A tally per pool, and the number of blocks whose attention was needed and could not be read.

    Raises:
        UserError: if it cannot be seen with what weight an expert's output is added.
    """
    rule = recipe.rules[1]
    tallies, unread = [], 0
    attention = rule.looks_at == "attention"
    for step in walk.walk(model, captured, attention=attention, progress=progress, description="score"):
        here = [_empty(model, pool) for pool in found if pool.block == step.position]
        tallies += here
        owners = {
            f"{tally.pool.experts[len(step.name) + 1 :]}.down_proj[{expert}]": (tally, expert)
            for tally in here
            for expert in range(tally.pool.count)
        }
        blind = False
        for row in step if here else ():
            blind |= attention and row.attention is None
            own = replace(
                row, **{part: _some(getattr(row, part), owners) for part in ("inputs", "outputs", "places", "gates")}
            )
            if own.gates.keys() != own.outputs.keys():
                raise UserError(f"{type(step.block).__name__} does not say how its experts' outputs are weighed.")
            if own.outputs:
                chosen = masses(own, rule.choose([own], recipe.options)[0])
                for tally in here:
                    _add(
                        model,
                        tally,
                        own,
                        chosen,
                        {name: expert for name, (of, expert) in owners.items() if of is tally},
                    )
        unread += blind
    return [
        replace(tally, added=tally.added.cpu(), mass=tally.mass.cpu(), tokens=tally.tokens.cpu()) for tally in tallies
    ], unread


def masses(row: walk.Row, chosen: Tensor | Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return how much every token counts that a matrix saw, whichever way it was chosen.

    Args:
        row: one row of a step.
        chosen: what a rule of :data:`tamp.selection.TOKENS` gives for the row.

    Returns:
        ``{name: (t,) float64}``, 0 for a token that does not count.
    """
    found = {}
    for name, each in choices.by_matrix(row, chosen).items():
        mass = torch.ones(len(row.inputs[name]), dtype=torch.float64, device=row.inputs[name].device)
        if each is not None:
            mass = torch.zeros_like(mass).index_fill_(0, each, 1) if each.dtype == torch.long else each.to(mass)
        found[name] = mass
    return found


def _some(values: dict[str, Tensor], names: dict) -> dict[str, Tensor]:
    """Return those values that belong to some names."""
    return {name: value for name, value in values.items() if name in names}


def _empty(model: nn.Module, pool: Pool) -> Tally:
    """Return the tally of a pool that no token has reached."""
    device = next(model.get_submodule(pool.experts).parameters()).device
    sums = torch.zeros(2, pool.count, 2, dtype=torch.float64, device=device)
    return Tally(pool, sums[0], sums[1], torch.zeros(pool.count, len(CODES), dtype=torch.int64, device=device))


def _add(model: nn.Module, tally: Tally, row: walk.Row, chosen: dict[str, Tensor], experts: dict[str, int]) -> None:
    """Add one row of a sample to a tally.

    Args:
        model: the model.
        tally: where to.
        row: with the experts' matrices alone.
        chosen: mass of every token per matrix.
        experts: number of the expert per matrix, those of this pool.
    """
    names = [name for name in row.outputs if name in experts]
    if not names:
        return
    left = torch.cat([row.outputs[name] for name in names])  # (n, d)
    module = model.get_submodule(tally.pool.experts)
    if getattr(module, "has_post_expert_norm", False):
        left = module.post_expert_norm(left)
    added = left.float().norm(dim=-1).double() * torch.cat([row.gates[name] for name in names]).double().abs()  # (n,)
    codes = torch.cat([row.codes_at(row.places.get(name)) for name in names]).to(left.device)
    mass = torch.stack([torch.cat([chosen[name] for name in names]), (codes >= 0).double()], 1)
    numbers = torch.tensor([experts[name] for name in names], device=left.device)
    owner = numbers.repeat_interleave(torch.tensor([len(row.outputs[name]) for name in names], device=left.device))
    tally.added.index_add_(0, owner, added[:, None] * mass)
    tally.mass.index_add_(0, owner, mass)
    for place, code in enumerate(CODES):
        tally.tokens[:, place] += torch.bincount(owner[codes == code], minlength=tally.pool.count)
