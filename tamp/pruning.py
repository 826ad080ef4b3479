"""The pruner: two passes over the decoder blocks that carry out a recipe.

Pass 1, only if the allocation asks for it, walks the dense blocks and scores every linear. Pass 2 walks them again: collect
statistics with the block still dense but fed by pruned predecessors, prune it, run it again, and feed its outputs to the
next block.
"""

import contextlib
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from tamp import choices, criteria, masks, models, onloading, passes, planning, plans, ranks, selection, updates, walk
from tamp.captured import check_end
from tamp.errors import UserError
from tamp.methods import name_of
from tamp.recipe import Recipe, check
from tamp.report import Report, peak_memory, reset_peak_memory
from tamp.scores import ALLOCATIONS

log = logging.getLogger(__name__)

LOCK_STEP = 2**28  # bytes of the samples whose tokens are picked together: what went in and out, and their kernels


class Keeper(Protocol):
    """Keeps finished blocks, and the plan, of a run that may be continued; see :class:`tamp.streaming.Keeper`."""

    plan: plans.Plan | None

    def begin(self, plan: plans.Plan) -> list[dict[str, Any]]:
        """Give the model the blocks that are finished, and return what was noted of each."""

    def keep(self, position: int, block: nn.Module, note: dict[str, Any]) -> None:
        """Keep a finished block, and what is to be noted of it."""


@torch.no_grad()
def prune(
    model: nn.Module,
    samples: Sequence[dict] | None,
    recipe: Recipe,
    progress: bool = True,
    plan: plans.Plan | None = None,
    allow_partial: bool = False,
    *,
    device: str | torch.device | None = None,
    states: str = "auto",
    keeper: Keeper | None = None,
) -> Report:
    """Prune the matrices of a model's decoder blocks in place: :func:`tamp.prune` without a folder.

    Args:
        model, samples, recipe, progress, plan, allow_partial, device, states: see :func:`tamp.prune`.
        keeper: where finished blocks go, and where those of an earlier run come from.

    Returns:
        A :class:`tamp.report.Report`.

    Raises:
        UserError: see :func:`tamp.prune`.
    """
    check(recipe)
    samples = None if samples is None else list(samples)
    blocks = models.blocks(model)
    left_out = planning.check_model(model, allow_partial)
    if plan is not None:
        recipe = _under(plan, recipe, model)
    needed = recipe.needs_samples if plan is None else recipe.collects
    if needed and not samples:
        raise UserError(
            f"{name_of(recipe.allocation)} + {name_of(recipe.criterion)} needs calibration samples and got none; "
            "make some with tamp.calibration_set(...)."
        )
    place = onloading.Place(model, device, states, samples if needed else (), fresh=keeper is not None)
    watch = Stopwatch(place.device)
    pruned = 0
    with passes.undisturbed(model):
        try:
            captured: list[walk.Captured] = []
            if needed:
                with watch("capture"):
                    numbers = ranks.share(range(len(samples)))
                    captured = walk.capture(model, ranks.share(samples), progress, place, numbers)
                    if ranks.size() > 1:
                        unused = frozenset().union(*ranks.told(frozenset().union(*(each.unused for each in captured))))
                        captured = [replace(each, unused=unused) for each in captured]
            linears = walk.reached(model, captured)
            if plan is None and keeper is not None:
                plan = keeper.plan
            if plan is None:
                scores = None
                if recipe.plans:
                    with watch("allocate"):
                        seen = captured
                        if ranks.size() > 1 and recipe.allocation_needs_samples:  # all look at the same ones
                            seen = walk.capture(model, samples[slice(recipe.allocation_samples)], progress, place)
                        scores = planning.score(model, seen, recipe, progress, place)
                plan = planning.make_plan(model, scores, recipe, captured)
            else:
                planning.check_pattern(linears, recipe.pattern)
            left_out |= {
                name: (linear.weight.numel(), "never called")
                for name, linear in models.all_linears(model).items()
                if name not in linears
            }
            drops = dict(zip(plan.linears, plan.drops))
            notes = [] if keeper is None else keeper.begin(plan)
            known = len(notes)

            def left(step: walk.Step) -> None:
                if keeper is not None and step.position >= known:
                    keeper.keep(step.position, step.block, notes[step.position])

            attention = recipe.rules[1].looks_at == "attention" and bool(captured)
            shown = {"progress": progress, "description": "prune"}
            for step in walk.walk(model, captured, attention=attention, change=True, place=place, left=left, **shown):
                if step.position < known:
                    with watch("replay"):
                        step.skip()
                else:
                    with watch("calibrate"):
                        collected = collect(step, recipe)
                    pruned = step.position + 1
                    with watch("prune"):
                        for name, linear in step.linears.items():  # what it takes is freed when no other needs it
                            kept = (each.pop(name, None) for each in (collected.statistics, collected.hessians))
                            prune_linear(linear, next(kept), drops[f"{step.name}.{name}"], recipe, *kept)
                    with watch("replay"):
                        error = step.replay()
                    notes.append(collected.note(step) | {"error": error})
                    del collected
            with place.whole():
                check_end(model, captured)
        except BaseException as error:
            if pruned:
                error.add_note(
                    f"Pruning stopped at block {pruned} of {len(blocks)}: the model in memory is partly pruned; "
                    "load it again before using it."
                )
            raise
    rows = [
        {"block": position, "linear": name, "kept": kept, "error": note["error"]}
        for position, note in enumerate(notes)
        for name, kept in note["kept"].items()
    ]
    zeros = [(linear.weight == 0).sum().item() for linear in linears.values()]
    return Report(
        recipe=recipe,
        plan=plan,
        rows=_rows(rows, plan, zeros),
        sparsity=sum(zeros) / sum(plan.sizes),
        samples=len(samples or []) if needed else 0,
        seconds=dict(watch.seconds),
        peak_memory=peak_memory(watch.device),
        left_out=left_out,
        pooled=tuple(name for note in notes for name in note["pooled"]),
        unread=sum(note["unread"] for note in notes),
        model=models.name_of(model),
    )


def _under(plan: plans.Plan, recipe: Recipe, model: nn.Module) -> Recipe:
    """Check that a plan, a recipe and a model belong together, and return the recipe with the plan's allocation."""
    if not isinstance(plan, plans.Plan):
        raise UserError(f"A plan is a tamp.Plan, from tamp.plan or tamp.Plan.read, not {plan!r:.80}.")
    plan.check({name: linear.weight.numel() for name, linear in models.all_linears(model).items()})
    if (plan.target, plan.pattern) != (recipe.sparsity, recipe.pattern):
        raise UserError(
            f"The plan is for {plan.pattern or f'a sparsity of {plan.target:g}'} and the recipe asks for "
            f"{recipe.pattern or f'{recipe.sparsity:g}'}: give the recipe the plan's."
        )
    if plan.fingerprint != models.fingerprint(model):
        log.warning("The plan was made for other weights (%s) than those of this model.", plan.model or "not named")
    return recipe.under(plan.allocation) if plan.allocation in ALLOCATIONS else recipe


class Stopwatch:
    """Adds up seconds by phase; waits for a GPU's work to end before it reads the clock."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        reset_peak_memory(device)

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time what runs inside and add it to ``phase``."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[phase] += time.perf_counter() - start


@dataclass(frozen=True)
class Collected:
    """What the samples say about one block.

    Attributes:
        statistics: accumulator per matrix.
        hessians: what the update needs per matrix; matrices with the same input have the same one.
        kept: mean number of tokens that counted, per matrix and row.
        pooled: experts that too few tokens reached, which use the statistic of all experts in their tensor.
        unread: whether the rule looks at attention, and the block's cannot be read, so that all tokens counted.
    """

    statistics: dict
    hessians: dict
    kept: dict[str, float]
    pooled: list[str]
    unread: bool

    def note(self, step: walk.Step) -> dict[str, Any]:
        """Return what a report says of the block, as plain JSON types."""
        pooled = [f"{step.name}.{name}" for name in self.pooled]
        return {"kept": {name: self.kept.get(name) for name in step.linears}, "pooled": pooled, "unread": self.unread}


def collect(step: walk.Step, recipe: Recipe) -> Collected:
    """Run a dense block on every sample and gather what the criterion needs of the tokens that count.

    Args:
        step: the block, not pruned yet.
        recipe: tokens and criterion.

    Raises:
        UserError: if no token counts for a matrix.
    """
    _, rule, criterion, update = recipe.rules
    if not step.samples or not recipe.collects:
        for _ in step:  # the dense outputs are needed for the error all the same
            pass
        return Collected({}, {}, {}, [], False)
    statistics = {
        name: criterion.statistic(linear.in_features, linear.weight.device)
        for name, linear in step.linears.items()
        if criterion.statistic
    }
    hessians: dict = {}
    waiting: list[walk.Row] = []
    held = rows = 0
    device = step.samples[0].modality.device
    most = LOCK_STEP if device.type == "cpu" else max(LOCK_STEP, selection.lock_step(device))
    unread = False

    def add() -> None:
        if statistics:
            for row, chosen in zip(waiting, rule.choose(waiting, recipe.options)):
                criteria.add(statistics, row.inputs, choices.by_matrix(row, chosen))
        if update.apply:
            for row in waiting:
                criteria.add_shared(hessians, update.statistic, row.inputs, updates.tokens(row, recipe.options))

    number = None
    for row in step:
        if waiting and row.sample != number and held >= most:
            add()
            waiting, held = [], 0
        waiting.append(row)
        if not rule.together:
            add()
            waiting = []
        held += row.nbytes() + sum(4 * len(output) ** 2 for output in row.outputs.values())
        number = row.sample
        rows += 1
        unread |= rule.looks_at == "attention" and row.attention is None
        del row  # with what it saw, before the next sample runs
    rows = sum(ranks.told(rows))
    if not rows:
        raise step.not_reached()
    if waiting:
        add()
    unread = any(ranks.told(unread))

    def fresh(name: str, make):
        return make(step.linears[name].in_features, step.linears[name].weight.device)

    ranks.add(statistics, lambda name: fresh(name, criterion.statistic))
    ranks.add(hessians, lambda name: fresh(name, update.statistic))
    kept = {name: statistic.count / rows for name, statistic in statistics.items()}
    pooled = criteria.pool(statistics)
    if update.apply:
        for name in step.linears:
            if name not in hessians:  # an expert that no token reached
                hessians[name] = fresh(name, update.statistic)
        pooled += [name for name in criteria.pool(hessians) if name not in statistics]
    empty = [name for name, statistic in statistics.items() if not statistic.count]
    if empty:
        raise UserError(
            f"No calibration token counts for {empty[0]} of block {step.position}: "
            f"tokens={name_of(recipe.tokens)!r} selected none in any sample."
        )
    return Collected(statistics, hessians, kept, pooled, unread)


def prune_linear(linear: models.Matrix, statistic, drop: int, recipe: Recipe, hessian=None) -> None:
    """Prune one matrix in place, and let its kept weights make up for the dropped ones if the recipe says so.

    Args:
        linear: what to prune.
        statistic: its accumulator, None for a criterion without one.
        drop: how many weights to drop; under a pattern, of every m inputs the share that this is of all weights.
        recipe: criterion, pattern and update.
        hessian: accumulator for the update.
    """
    weight = linear.weight
    if not drop:
        return
    if drop == weight.numel():  # all of it: nothing is left to choose, or to update
        weight.zero_()
        return
    _, _, criterion, update = recipe.rules
    m = masks.parse_pattern(recipe.pattern)[1] if recipe.pattern else 0
    n = drop * m // weight.numel()

    def choose(weight: torch.Tensor, share: float = 1.0) -> torch.Tensor:
        """Return which weights go when this share of all that are due goes, (out, in) bool."""
        metric = criterion.metric(weight, statistic)
        if metric.shape != weight.shape:
            raise UserError(
                f"The criterion {name_of(recipe.criterion)!r} gives a metric of shape {tuple(metric.shape)} for a "
                f"weight of shape {tuple(weight.shape)}: return one number per weight."
            )
        if share == 1 and metric.isnan().any():  # which is neither smaller nor larger than another
            raise UserError(f"The criterion {name_of(recipe.criterion)!r} gives NaN: return a number per weight.")
        zero = linear.weight == 0
        metric = torch.where(zero, -torch.inf, metric)  # they go first, and all of them
        mask = masks.n_of_m(metric, round(share * n), m) if m else masks.unstructured(metric, drop=round(share * drop))
        return mask | zero

    if criterion.update:
        pruned = criterion.update(weight, statistic, drop, f"{n}:{m}" if m else None, recipe.options)
    if update.apply and hessian is not None:
        chosen = (lambda *_: pruned == 0) if criterion.update else choose
        weight.copy_(update.apply(weight, chosen, hessian, recipe.options))
    elif criterion.update:
        weight.copy_(pruned)
    else:
        weight.masked_fill_(choose(weight), 0)


def _rows(done: list[dict], plan: plans.Plan, zeros: list[int]) -> tuple[dict, ...]:
    """Describe every linear: what was asked, what came out, what it cost."""
    scores = plan.scores or [math.nan] * len(plan.sizes)
    return tuple(
        {
            "block": row["block"],
            "linear": row["linear"],
            "weights": size,
            "score": score,
            "asked": drop / size,
            "got": zero / size,
            "kept": math.nan if row["kept"] is None else row["kept"],
            "error": math.nan if row["error"] is None else row["error"],
        }
        for row, size, score, drop, zero in zip(done, plan.sizes, scores, plan.drops, zeros)
    )
