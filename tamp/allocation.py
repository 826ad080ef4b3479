"""From scores to a plan: how many weights each linear drops, exact to one weight.

:func:`allocate` is ECoFLaP's rule (arXiv 2310.02998), which the paper inherits: every linear first keeps what the cap
demands, and the rest of the budget is shared in proportion to the scores. :func:`banded` is OWL's, :func:`stepped` rounds to
the steps of an N:M pattern, :func:`dense_or` to dense or N:M. Counts are whole numbers throughout.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

from tamp import masks

REACH = 8
"""How many steps of a pattern linears of one size may take together beyond what they ask for, to meet the total."""


def uniform(sizes: Sequence[int], sparsity: float) -> list[int]:
    """Drop the same share everywhere.

    Args:
        sizes: weights per linear.
        sparsity: share to drop, in [0, 1).

    Returns:
        Weights to drop per linear; the total is ``round(sum(sizes) * sparsity)``, each within one weight of its share.
    """
    share = masks.exact(sparsity)
    sizes = _whole(sizes)
    return _round([size * share for size in sizes], round(sum(sizes) * share))


def spread(sizes: Sequence[int], total: int, whole: bool = True) -> list[int] | list[Fraction]:
    """Drop ``total`` weights at the same share everywhere, each linear within one weight of it; or exactly, not whole."""
    shares = [Fraction(size * total, sum(sizes)) if total else Fraction(0) for size in sizes]
    return _round(shares, total) if whole else shares


def allocate(
    scores: Sequence[float], sizes: Sequence[int], sparsity: float, max_sparsity: float | None = None
) -> list[int]:
    """Share the weights that stay in proportion to the scores: a higher score keeps more.

    Every linear keeps at least ``ceil(size * (1 - max_sparsity))``. What is left of the budget is shared in proportion to
    the scores, clamped at the linear's size, and shared again until it is spent. Shares are per linear, not per weight:
    with equal scores a small linear keeps a larger fraction than a large one.

    Args:
        scores: one per linear, finite and not negative; all zero means equal shares.
        sizes: weights per linear.
        sparsity: share of all weights to drop, in [0, 1).
        max_sparsity: cap on the sparsity of a linear, ``min(1, sparsity + 0.1)`` if None.

    Returns:
        Weights to drop per linear; the total is exactly ``round(sum(sizes) * sparsity)``.

    Raises:
        ValueError: if the lengths differ, a score is negative or not finite, or the cap is below the target or above 1.
    """
    if len(scores) != len(sizes):
        raise ValueError(f"{len(scores)} scores for {len(sizes)} linears")
    for position, score in enumerate(scores):
        if not (math.isfinite(score) and score >= 0):
            raise ValueError(f"scores are finite and not negative; score {position} is {score}")
    share = masks.exact(sparsity)
    sizes = _whole(sizes)
    finite = max_sparsity is not None and math.isfinite(max_sparsity)
    cap = Fraction(str(float(max_sparsity))) if finite else min(Fraction(1), share + Fraction(1, 10))
    if not share <= cap <= 1 or (max_sparsity is not None and not finite):
        raise ValueError(f"max_sparsity must lie between the sparsity {sparsity} and 1, not {max_sparsity}")

    keep = sum(sizes) - round(sum(sizes) * share)
    floors = [math.ceil(size * (1 - cap)) for size in sizes]
    for position in sorted(range(len(sizes)), key=lambda i: (scores[i], i)):  # rounding up may ask for too much
        if sum(floors) <= keep:
            break
        floors[position] = math.floor(sizes[position] * (1 - cap))

    weights = [Fraction(float(score)) for score in scores]
    shares = [Fraction(floor) for floor in floors]
    left = Fraction(keep - sum(floors))
    open_linears = {position for position in range(len(sizes)) if floors[position] < sizes[position]}
    while left:
        total = sum(weights[i] for i in open_linears)
        wanted = {i: left * weights[i] / total if total else left / len(open_linears) for i in open_linears}
        full = {i for i in open_linears if shares[i] + wanted[i] >= sizes[i]}
        for i in full or open_linears:
            grant = sizes[i] - shares[i] if full else wanted[i]
            shares[i] += grant
            left -= grant
        open_linears -= full
    return [size - kept for size, kept in zip(sizes, _round(shares, keep, sizes))]


def banded(scores: Sequence[float], sizes: Sequence[int], sparsity: float, half_width: float = 0.08) -> list[int]:
    """Spread sparsity over a band around the target: a higher score drops less.

    OWL's rule (arXiv 2310.05175, section 3.2): scores are scaled to a band as wide as ``2 * half_width`` and shifted so that
    the mean over all weights is the target.

    Args:
        scores: one per block, finite; all equal means the same sparsity everywhere.
        sizes: weights per block.
        sparsity: share of all weights to drop, in [0, 1).
        half_width: OWL's lambda; made smaller where a block would drop fewer than none of its weights or more than all.

    Returns:
        Weights to drop per block; the total is exactly ``round(sum(sizes) * sparsity)``.

    Raises:
        ValueError: if the lengths differ, a score is not finite, or ``half_width`` is negative.
    """
    if len(scores) != len(sizes):
        raise ValueError(f"{len(scores)} scores for {len(sizes)} blocks")
    if not all(math.isfinite(score) for score in scores) or not half_width >= 0:
        raise ValueError(f"scores must be finite and half_width at least 0, not {list(scores)} and {half_width}")
    share, sizes, total = masks.exact(sparsity), _whole(sizes), sum(sizes)
    low, high = Fraction(float(min(scores))), Fraction(float(max(scores)))
    scaled = [(Fraction(float(score)) - low) / (high - low) if high > low else Fraction(0) for score in scores]
    centre = sum(size * place for size, place in zip(sizes, scaled)) / total
    width = min([2 * Fraction(str(float(half_width))), *_room(scaled, centre, share)])
    return _round(
        [size * (share - width * (place - centre)) for size, place in zip(sizes, scaled)], round(total * share)
    )


def stepped(drops: Sequence[int], sizes: Sequence[int], m: int, most: int | None = None) -> list[int]:
    """Round a plan to whole steps of an N:M pattern: of every m consecutive inputs, n are dropped, n chosen per linear.

    Args:
        drops: weights to drop per linear, in [0, size].
        sizes: weights per linear, divisible by m.
        m: the size of a group.
        most: largest n allowed, m - 1 if None.

    Returns:
        Weights to drop per linear, each a multiple of ``size / m``. Linears of one size are rounded by largest remainder to
        a number of steps that lies within ``REACH`` of what they ask for together; among these numbers are taken those
        whose total comes closest to that of ``drops``, and of such, those nearest to what was asked.
    """
    most = m - 1 if most is None else most
    steps = [size // m for size in _whole(sizes)]
    wanted = [min(Fraction(drop, step), Fraction(most)) for drop, step in zip(drops, steps)]
    alike = {step: [i for i, each in enumerate(steps) if each == step] for step in dict.fromkeys(steps)}
    reachable: dict[int, tuple[Fraction, tuple[int, ...]]] = {0: (Fraction(0), ())}  # total: (moved, steps per size)
    for step, members in alike.items():
        asked = sum(wanted[i] for i in members)
        near = range(max(0, math.floor(asked) - REACH), min(most * len(members), math.ceil(asked) + REACH) + 1)
        grown: dict[int, tuple[Fraction, tuple[int, ...]]] = {}
        for total, (moved, taken) in reachable.items():
            for number in near:
                candidate = moved + step * abs(number - asked), (*taken, number)
                place = total + number * step
                grown[place] = min(grown.get(place, candidate), candidate)
        # The cheapest suffice: a model has few sizes of linears, and their steps many common divisors.
        reachable = dict(sorted(grown.items(), key=lambda item: item[1])[:4096])
    _, numbers = reachable[min(reachable, key=lambda total: (abs(total - sum(drops)), reachable[total]))]
    chosen = [0] * len(steps)
    for number, members in zip(numbers, alike.values()):
        for i, n in zip(members, _round([wanted[i] for i in members], number, [most] * len(members))):
            chosen[i] = n * steps[i]
    return chosen


def dense_or(drops: Sequence[Fraction], sizes: Sequence[int], n: int, m: int) -> list[int]:
    """Turn a plan into one where every linear is dense or n:m, for hardware that runs nothing between.

    Args:
        drops: weights to drop per linear, in [0, size]; best not rounded, so that equal shares are a tie.
        sizes: weights per linear, divisible by m.
        n: weights of every m that an n:m linear drops.
        m: the size of a group.

    Returns:
        Weights to drop per linear, 0 or ``size * n / m``. In the order of the shares in ``drops``, largest first, then
        earlier ones, a linear takes the pattern if that brings the total nearer to that of ``drops``. The total comes within
        half of what the largest linear would drop.
    """
    left, chosen = sum(drops), [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: (-Fraction(drops[i], sizes[i]), i)):
        taken = sizes[i] * n // m
        if abs(left - taken) < left:
            chosen[i] = taken
            left -= taken
    return chosen


def _room(scaled: list[Fraction], centre: Fraction, share: Fraction) -> list[Fraction]:
    """List the widths at which a block would drop none or all of its weights."""
    return [(share if place > centre else share - 1) / (place - centre) for place in scaled if place != centre]


def _whole(sizes: Sequence[int]) -> list[int]:
    """Return sizes as Python's own whole numbers, which JSON can write; check that none is negative."""
    if any(size < 0 for size in sizes):
        raise ValueError(f"sizes are numbers of weights, none below 0: {list(sizes)}")
    return [int(size) for size in sizes]


def _round(shares: Sequence[Fraction], total: int, limits: Sequence[int] | None = None) -> list[int]:
    """Round shares to whole numbers with the given total, by largest remainder, earlier ones first in a tie."""
    whole = [math.floor(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda i: (whole[i] - shares[i], i))
    while missing := total - sum(whole):
        step = 1 if missing > 0 else -1
        for i in order if missing > 0 else reversed(order):
            if missing and (limits is None or whole[i] + step <= limits[i]) and whole[i] + step >= 0:
                whole[i] += step
                missing -= step
    return whole
