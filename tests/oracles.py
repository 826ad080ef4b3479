"""Slow, plain versions of everything the package computes, to compare it with.

They follow the formulas word by word, in float64 or in exact fractions, recompute everything at every step and share
no code with the package. Tensors of any float type are taken, NumPy arrays or Python numbers are returned.
"""

import math
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch


def golden(name: str) -> dict[str, dict[str, torch.Tensor]]:
    """Read `golden/<name>.npz` as {case: {field: tensor}}."""
    cases: dict[str, dict[str, torch.Tensor]] = {}
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as archive:
        for key in archive.files:
            case, field = key.split("__")
            cases.setdefault(case, {})[field] = torch.from_numpy(archive[key])
    return cases


def exact(number: float) -> Fraction:
    """Take a number as the decimal it prints as: 0.29 is 29/100."""
    return Fraction(str(number))


def array(values: torch.Tensor) -> np.ndarray:
    """Bring a tensor of any float type to a float64 array."""
    return values.detach().to(torch.float64).cpu().numpy()


# Masks ---------------------------------------------------------------------------------------------------------------


def smallest(values: list[float], count: int) -> list[int]:
    """Find the positions of the `count` smallest values, the earlier one first among equals."""
    return sorted(range(len(values)), key=lambda place: (values[place], place))[:count]


def unstructured(metric: torch.Tensor, sparsity: float) -> np.ndarray:
    """Mark the floor(in * sparsity) smallest of every row."""
    rows = array(metric).tolist()
    mask = np.zeros(metric.shape, dtype=bool)
    for i, row in enumerate(rows):
        mask[i, smallest(row, math.floor(len(row) * exact(sparsity)))] = True
    return mask


def unstructured_count(metric: torch.Tensor, drop: int) -> np.ndarray:
    """Mark exactly `drop` weights: as many in every row, then one more in the rows whose next one is the least."""
    rows = array(metric).tolist()
    each, more = divmod(drop, len(rows))
    mask = np.zeros(metric.shape, dtype=bool)
    for i, row in enumerate(rows):
        mask[i, smallest(row, each)] = True
    if more:
        following = [smallest(row, each + 1)[-1] for row in rows]
        for i in smallest([row[column] for row, column in zip(rows, following)], more):
            mask[i, following[i]] = True
    return mask


def n_of_m(metric: torch.Tensor, n: int, m: int) -> np.ndarray:
    """Mark the n smallest in every run of m consecutive columns."""
    rows = array(metric).tolist()
    mask = np.zeros(metric.shape, dtype=bool)
    for i, row in enumerate(rows):
        for start in range(0, len(row), m):
            for offset in smallest(row[start : start + m], n):
                mask[i, start + offset] = True
    return mask


# SparseGPT -----------------------------------------------------------------------------------------------------------


class Pruned(NamedTuple):
    weight: np.ndarray  # (out, in)
    margin: float  # least relative distance between a weight that was kept and one that was dropped in its stead


def gap(values: np.ndarray, count: int) -> float:
    """Measure how clearly the `count` smallest values differ from the rest, relative to the largest of the small."""
    ordered = np.sort(values.ravel())
    if count == 0 or count == ordered.size:
        return math.inf
    return (ordered[count] - ordered[count - 1]) / max(ordered[count], 1e-300)


def sparsegpt(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    drop: int = 0,
    pattern: tuple[int, int] | None = None,
    damping: float = 0.01,
    block: int = 128,
) -> Pruned:
    """Remove weights column after column, the columns still to come making up for each loss (SparseGPT, algorithm 1).

    The inverse Hessian of the columns not yet passed is computed anew for every column, where the paper reads it off
    one Cholesky factor.
    """
    w, h = array(weight).copy(), array(hessian).copy()
    rows, columns = w.shape
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += damping * np.diag(h).mean() * np.eye(columns)
    inverses = [np.linalg.inv(h[j:, j:]) for j in range(columns)]
    cost = np.array([inverse[0, 0] for inverse in inverses])  # loss of removing w_j is w_j^2 / cost_j
    mask, margin = np.zeros(w.shape, dtype=bool), math.inf
    for j in range(columns):
        if pattern is None and j % block == 0:  # choose for a whole block of columns, in one pool of all rows
            end = min(j + block, columns)
            count = drop * end // columns - drop * j // columns
            loss = w[:, j:end] ** 2 / cost[j:end]
            chosen = np.zeros(loss.size, dtype=bool)
            chosen[smallest(loss.ravel().tolist(), count)] = True
            mask[:, j:end] = chosen.reshape(loss.shape)
            margin = min(margin, gap(loss, count))
        if pattern is not None and j % pattern[1] == 0:  # choose for the next m columns, in every row
            n, m = pattern
            loss = w[:, j : j + m] ** 2 / cost[j : j + m]
            for i in range(rows):
                mask[i, [j + offset for offset in smallest(loss[i].tolist(), n)]] = True
                margin = min(margin, gap(loss[i], n))
        for i in range(rows):
            if mask[i, j]:
                w[i, j:] -= w[i, j] / inverses[j][0, 0] * inverses[j][0]
                w[i, j] = 0
    return Pruned(w, margin)


# Diversity -----------------------------------------------------------------------------------------------------------


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Compute the cosine of two vectors, zero if one of them is zero."""
    length = math.sqrt((x * x).sum()) * math.sqrt((y * y).sum())
    return float((x * y).sum() / length) if length > 0 else 0.0


def similarities(outputs: torch.Tensor, modality: torch.Tensor, within: str = "mean") -> dict[tuple[int, int], float]:
    """Average the cosine over pairs of tokens, pair by pair, for every two modalities that are present."""
    x, codes = array(outputs), modality.tolist()
    present = sorted({code for code in codes if code >= 0})
    result = {}
    for a in present:
        for b in present:
            if a > b:
                continue
            of_a = [i for i, code in enumerate(codes) if code == a]
            of_b = [i for i, code in enumerate(codes) if code == b]
            pairs = [cosine(x[i], x[j]) for i in of_a for j in of_b if a != b or i < j]
            if a == b and within == "positive":
                pairs = [value for value in pairs if value > 0]
            if pairs:
                result[a, b] = sum(pairs) / len(pairs)
    return result


# Token selection -----------------------------------------------------------------------------------------------------


class Selected(NamedTuple):
    mask: np.ndarray  # (T,) bool
    rho: float  # mean of the defined similarities; nan where none is
    discrepancy: float  # squared MMD between all tokens and the selected ones
    limit: float  # the squared MMD below which selection stops; nan where one pick is enough
    margin: float  # least distance of any decision from going the other way


def kernel(outputs: torch.Tensor) -> np.ndarray:
    """Compute K = exp(-(1 - cosine)), one on the diagonal."""
    x = array(outputs)
    k = np.ones((len(x), len(x)))
    for i in range(len(x)):
        for j in range(i):
            k[i, j] = k[j, i] = math.exp(cosine(x[i], x[j]) - 1)
    return k


def discrepancy(k: np.ndarray, picked: list[int]) -> float:
    """Compute the squared maximum mean discrepancy between all tokens and the picked ones."""
    return k.mean() + k[np.ix_(picked, picked)].mean() - 2 * k[:, picked].mean()


def amia(
    outputs: torch.Tensor,
    attention: torch.Tensor,
    modality: torch.Tensor,
    neighbours: int = 3,
    threshold: float = 0.1,
    within: str = "positive",
    at_least: int = 0,
) -> Selected:
    """Pick tokens one at a time until they stand for all, the discrepancy recomputed from scratch after every pick."""
    places = [place for place, code in enumerate(modality.tolist()) if code >= 0]  # padding takes no part at all
    x, codes = outputs[places], modality[places]
    tokens = len(places)
    k = kernel(x)
    far = -np.log(k)  # D = 1 - cosine
    g0 = array(attention)[places]
    margin = math.inf

    count = min(neighbours, tokens - 1)
    near = []
    for i in range(tokens):
        others = sorted((j for j in range(tokens) if j != i), key=lambda j: (far[i, j], j))
        near.append(others[:count])
        if 0 < count < len(others):
            margin = min(margin, far[i, others[count]] - far[i, others[count - 1]])
    g = [g0[i] + sum(math.exp(-far[i, j]) * g0[j] for j in near[i]) for i in range(tokens)]
    scale = max(abs(value) for value in g) or 1.0

    terms = list(similarities(x, codes, within).values())
    if within == "positive":
        some = [i for i in range(tokens) if x[i].any()]  # the cosine of a zero vector is beyond doubt
        alike = [abs(1 - far[i, j]) for i in some for j in some if j < i and codes[i] == codes[j]]
        margin = min([margin, *alike])
    rho = sum(terms) / len(terms) if terms else math.nan
    limit = threshold * math.sqrt(1 - rho) if rho < 1 else math.nan

    picked: list[int] = []
    while len(picked) < tokens:
        left = [i for i in range(tokens) if i not in picked]
        best = max(left, key=lambda i: (g[i], -i))
        margin = min([margin, *((g[best] - g[i]) / scale for i in left if i != best)])
        picked.append(best)
        for j in near[best]:
            g[j] -= math.exp(-0.2 * far[best, j]) * max(g[best], 0)
        if len(picked) < at_least:
            continue
        if math.isnan(limit):
            break
        margin = min(margin, abs(discrepancy(k, picked) - limit))
        if discrepancy(k, picked) < limit:
            break
    mask = np.zeros(len(modality), dtype=bool)
    mask[[places[i] for i in picked]] = True
    return Selected(mask, rho, discrepancy(k, picked), limit, margin)


# Allocation ----------------------------------------------------------------------------------------------------------


def cap(sparsity: float, max_sparsity: float | None) -> Fraction:
    """Find the largest share that a linear may lose."""
    return min(Fraction(1), exact(sparsity) + Fraction(1, 10)) if max_sparsity is None else exact(max_sparsity)


def share(budget: Fraction, room: list[Fraction], scores: list[Fraction]) -> list[Fraction]:
    """Share a budget in proportion to scores, no one taking more than its room, until it is spent.

    Where only scores of zero are left, they share equally.
    """
    given = [Fraction(0)] * len(room)
    while budget > 0:
        open_ = [i for i in range(len(room)) if given[i] < room[i]]
        claims = {i: scores[i] for i in open_ if scores[i] > 0} or {i: Fraction(1) for i in open_}
        whole, left = sum(claims.values()), Fraction(0)
        for i, claim in claims.items():
            part = budget * claim / whole
            taken = min(part, room[i] - given[i])
            given[i] += taken
            left += part - taken
        budget = left
    return given


def kept(
    scores: list[float], sizes: list[int], sparsity: float, dropped: int, max_sparsity: float | None = None
) -> list[Fraction] | None:
    """Find how many weights each linear keeps, before rounding.

    None where the least that each must keep, rounded up to whole numbers, is over the budget already.
    """
    keep = Fraction(sum(sizes) - dropped)
    least = [Fraction(math.ceil(n * (1 - cap(sparsity, max_sparsity)))) for n in sizes]
    if sum(least) > keep:
        return None
    extra = share(keep - sum(least), [n - low for n, low in zip(sizes, least)], [Fraction(score) for score in scores])
    return [low + more for low, more in zip(least, extra)]
