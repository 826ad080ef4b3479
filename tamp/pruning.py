"""The pruner: two passes over the decoder blocks that carry out a recipe.

Pass 1, only if the allocation asks for it, walks the dense blocks and scores every linear. Pass 2 walks them again: collect
statistics with the block still dense but fed by pruned predecessors, prune it, run it again, and feed its outputs to the
next block.
"""

import contextlib
import dataclasses
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from tamp import calibration, criteria, masks, models, planning, plans, selection
from tamp.errors import UserError
from tamp.recipe import Recipe
from tamp.report import Report, peak_memory, reset_peak_memory

log = logging.getLogger(__name__)

LOCK_STEP = 2**26  # kernel entries (float32) of the samples whose tokens are picked together


@torch.no_grad()
def prune(
    model: nn.Module,
    samples: Sequence[dict] | None,
    recipe: Recipe,
    progress: bool = True,
    plan: plans.Plan | None = None,
) -> Report:
    """Prune the linears of a model's decoder blocks in place.

    Everything else stays untouched, bit for bit, and so do the model's mode, device, ``use_cache`` and attention setting.
    The same samples give the same masks.

    Args:
        model: a transformers model with a decoder, see :func:`tamp.load`.
        samples: processor outputs, see :func:`tamp.calibration_set`; may be None for magnitude pruning.
        recipe: what to do.
        progress: show bars.
        plan: from :func:`tamp.plan` or a file (:meth:`tamp.plans.Plan.read`): how much of each linear to drop. It takes
            the place of the recipe's allocation, so that any method runs under any plan.

    Returns:
        A :class:`tamp.report.Report`: a row per linear, exact sparsity, times and memory.

    Raises:
        UserError: if a sample, a width or the plan does not fit. An exception that leaves the model partly pruned says so
            in a note.
    """
    blocks = models.blocks(model)
    stack = list(blocks.values())
    linears = models.all_linears(model)
    planning.check_model(model, recipe.pattern)
    if plan is not None:
        recipe = _under(plan, recipe, model)
    needed = recipe.needs_samples if plan is None else recipe.criterion != "magnitude"
    if needed and not samples:
        raise UserError(
            f"{recipe.allocation} + {recipe.criterion} needs calibration samples and got none; "
            "make some with tamp.calibration_set(...)."
        )
    watch = Stopwatch(next(model.parameters()).device)
    pruned = 0
    with calibration.undisturbed(model):
        try:
            captured = []
            if needed:
                with watch("capture"):
                    captured = calibration.capture(model, samples, progress)
            if plan is None:
                scores = None
                if recipe.plans:
                    with watch("allocate"):
                        scores = planning.score(model, samples or [], captured, recipe, progress)
                plan = planning.make_plan(model, scores, recipe)
            drops = iter(plan.drops)
            rows = []
            for position, block in enumerate(calibration.steps(stack, "prune", progress)):
                names = models.linears(block)
                with watch("calibrate"):
                    statistics, kept, dense = collect(block, position, captured, recipe)
                pruned = position + 1
                with watch("prune"):
                    for name, linear in names.items():
                        prune_linear(linear, statistics.get(name), next(drops), recipe)
                with watch("replay"):
                    error = replay(block, position, captured, dense)
                rows += [{"block": position, "linear": name, "kept": kept.get(name), "error": error} for name in names]
        except BaseException as error:
            if pruned:
                error.add_note(
                    f"Pruning stopped at block {pruned} of {len(blocks)}: the model in memory is partly pruned; "
                    "load it again before using it."
                )
            raise
    zeros = [(linear.weight == 0).sum().item() for linear in linears.values()]
    return Report(
        recipe=recipe,
        plan=plan,
        table=_table(rows, plan, zeros),
        sparsity=sum(zeros) / sum(plan.sizes),
        samples=len(captured),
        seconds=dict(watch.seconds),
        peak_memory=peak_memory(watch.device),
        model=models.name_of(model),
    )


def _under(plan: plans.Plan, recipe: Recipe, model: nn.Module) -> Recipe:
    """Check that a plan, a recipe and a model belong together, and return the recipe with the plan's allocation."""
    plan.check({name: linear.weight.numel() for name, linear in models.all_linears(model).items()})
    if (plan.target, plan.pattern) != (recipe.sparsity, recipe.pattern):
        raise UserError(
            f"The plan is for {plan.pattern or f'a sparsity of {plan.target:g}'} and the recipe asks for "
            f"{recipe.pattern or f'{recipe.sparsity:g}'}: give the recipe the plan's."
        )
    if plan.fingerprint != models.fingerprint(model):
        log.warning("The plan was made for other weights (%s) than those of this model.", plan.model or "not named")
    return dataclasses.replace(recipe, allocation=plan.allocation)


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


def collect(
    block: nn.Module, position: int, captured: list[calibration.Captured], recipe: Recipe
) -> tuple[dict, dict[str, float], list[Tensor]]:
    """Run a dense block on every sample and gather what its criterion needs.

    Args:
        block: the block, not pruned yet.
        position: its place among the blocks.
        captured: samples as they enter the block.
        recipe: tokens and criterion.

    Returns:
        (accumulator per linear, mean tokens that counted per linear and row, the block's outputs per sample).
    """
    if not captured:
        return {}, {}, []
    linears = models.linears(block)
    accumulator = criteria.Hessian if recipe.criterion == "sparsegpt" else criteria.MeanSquare
    statistics = {name: accumulator(linear.in_features, linear.weight.device) for name, linear in linears.items()}
    dense = []
    waiting: list[tuple] = []  # rows whose tokens AMIA has yet to pick: (inputs of every linear, its set)
    entries = 0
    with contextlib.ExitStack() as context:
        tokens = context.enter_context(calibration.linear_tokens(linears))
        attention = context.enter_context(calibration.attention_row(block)) if recipe.tokens == "amia" else None
        for number, batch in enumerate(captured):
            if attention:
                attention.last = calibration.last_valid(batch.modality)
            dense.append(batch.run(block, position))
            calibration.finite(position, number, tokens, dense[-1])
            for row, codes in enumerate(batch.modality):
                inputs = {name: tokens[name][0][row] for name in linears}
                if attention:
                    outputs = [tokens[name][1][row] for name in linears]
                    waiting.append((inputs, (outputs, attention.value[row], codes)))
                    entries += len(outputs) * len(codes) ** 2
                else:
                    choose = _choose(recipe, codes, batch.hidden[row], dense[-1][row])
                    calibration.add(statistics, inputs, [choose] * len(linears))
            if waiting and (entries >= LOCK_STEP or number == len(captured) - 1):
                chosen = selection.amia_batch(
                    [each for _, each in waiting],
                    neighbours=recipe.amia_neighbours,
                    threshold=recipe.amia_threshold,
                    within=recipe.amia_similarity,
                )
                for (inputs, _), picks in zip(waiting, chosen):
                    calibration.add(statistics, inputs, picks)
                waiting, entries = [], 0
    empty = [name for name, statistic in statistics.items() if not statistic.count]
    if empty:
        raise UserError(
            f"No calibration token counts for {empty[0]} of block {position}: "
            f"tokens={recipe.tokens!r} selected none in any sample."
        )
    rows = sum(len(batch.modality) for batch in captured)
    return statistics, {name: statistic.count / rows for name, statistic in statistics.items()}, dense


def _choose(recipe: Recipe, codes: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Select the tokens of a row that count for all linears of a block, (T,) bool."""
    if recipe.tokens == "atv":
        return selection.atv(before, after, codes, models.TEXT, recipe.atv_alpha)
    return selection.everything(codes) if recipe.tokens == "all" else selection.text(codes, models.TEXT)


def prune_linear(linear: nn.Linear, statistic, drop: int, recipe: Recipe) -> None:
    """Prune one linear in place.

    Args:
        linear: what to prune.
        statistic: its accumulator, None for magnitude.
        drop: how many weights to drop; under a pattern, of every m inputs the share that this is of all weights.
        recipe: criterion and pattern.
    """
    if not drop:
        return
    weight = linear.weight
    m = masks.parse_pattern(recipe.pattern)[1] if recipe.pattern else 0
    n = drop * m // weight.numel()
    if recipe.criterion == "sparsegpt":
        asked = {"pattern": f"{n}:{m}"} if m else {"drop": drop}
        weight.copy_(
            criteria.sparsegpt(weight, statistic.value(), damping=recipe.damping, block=recipe.block_size, **asked)
        )
        return
    metric = (
        criteria.magnitude(weight) if recipe.criterion == "magnitude" else criteria.wanda(weight, statistic.value())
    )
    mask = masks.n_of_m(metric, n, m) if m else masks.unstructured(metric, drop=drop)
    weight.masked_fill_(mask, 0)


def replay(block: nn.Module, position: int, captured: list[calibration.Captured], dense: list[Tensor]) -> float | None:
    """Feed the pruned block's outputs to the next one and measure what pruning changed.

    Returns:
        ``||pruned - dense|| / ||dense - input||`` over all valid tokens: the error relative to what the block adds to its
        input. None without samples.
    """
    if not captured:
        return None
    wrong = added = 0.0
    for batch, before in zip(captured, dense):
        after = batch.run(block, position)
        valid = batch.modality >= 0
        wrong += (after - before)[valid].float().square().sum(dtype=torch.float64)
        added += (before - batch.hidden)[valid].float().square().sum(dtype=torch.float64)
        batch.hidden = after
    return (wrong / added).sqrt().item() if added else 0.0


def _table(rows: list[dict], plan: plans.Plan, zeros: list[int]) -> pd.DataFrame:
    """Put a row per linear: what was asked, what came out, what it cost."""
    table = pd.DataFrame(rows)
    table.insert(2, "weights", plan.sizes)
    table.insert(3, "score", plan.scores if plan.scores else math.nan)
    table.insert(4, "asked", [drop / size for drop, size in zip(plan.drops, plan.sizes)])
    table.insert(5, "got", [zero / size for zero, size in zip(zeros, plan.sizes)])
    return table.astype({"kept": float, "error": float})
