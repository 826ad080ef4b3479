"""What the inputs of a matrix add up to over calibration tokens: squares, variances, outer products."""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

FEW = 32
"""Tokens below which an expert's own statistic says too little: the norm of an input is then known to about an eighth."""


STRIP = 512  # rows of an outer product that a GPU computes at a time: no second matrix of its size is needed


class _Sum:
    """Adds up, in ``total`` (..., width), what a statistic is the mean of over ``count`` tokens."""

    count = 0

    def __init__(self, *shape: int, device: torch.device | str, dtype: torch.dtype = torch.float64):
        self.total = torch.zeros(shape, dtype=dtype, device=device)

    def add(self, inputs: Tensor, mass: Tensor | None = None) -> Tensor | None:
        """Add tokens, (tokens, width), perhaps with a mass each, (tokens,); return what they add, unless it is large."""
        if inputs.ndim != 2 or inputs.shape[1] != self.total.shape[-1]:
            raise ValueError(f"inputs are (tokens, {self.total.shape[-1]}), not {tuple(inputs.shape)}")
        part = self._part(inputs, mass)
        if part is not None:
            self.total += part
        self.count += len(inputs)
        return part


class MeanSquare(_Sum):
    """Accumulates the mean over tokens of the squared inputs of a linear."""

    def __init__(self, width: int, device: torch.device | str = "cpu"):
        super().__init__(width, device=device)

    def _part(self, inputs: Tensor, mass: Tensor | None) -> Tensor:
        squares = inputs.float()
        squares = squares.square() if squares is inputs else squares.square_()  # a copy of half precision
        return (squares if mass is None else squares * mass[:, None]).sum(0, dtype=torch.float64)

    def value(self) -> Tensor:
        """Return the mean square of every input, (width,) float32."""
        return (self.total / max(self.count, 1)).float()


class Variance(_Sum):
    """Accumulates the variance over tokens of the inputs of a linear."""

    def __init__(self, width: int, device: torch.device | str = "cpu"):
        super().__init__(2, width, device=device)  # sums of squares, of values

    def _part(self, inputs: Tensor, mass: Tensor | None) -> Tensor:
        values = inputs.double()
        weighted = values if mass is None else values * mass[:, None]
        return torch.stack([(weighted * values).sum(0), weighted.sum(0)])

    def value(self) -> Tensor:
        """Return the variance of every input, (width,) float32."""
        square, mean = self.total / max(self.count, 1)
        return (square - mean.square()).clamp(min=0).float()


class Hessian(_Sum):
    """Accumulates the mean over tokens of ``x x^T``, the Hessian of a linear's squared error up to a factor."""

    made: tuple | None = None  # of the sums, by :meth:`give`

    def __init__(self, width: int, device: torch.device | str = "cpu", dtype: torch.dtype | None = None):
        super().__init__(width, width, device=device, dtype=dtype or exact_type(device))

    def _part(self, inputs: Tensor, mass: Tensor | None) -> None:
        left = (inputs if mass is None else inputs * mass[:, None]).T
        strip = len(left) if left.device.type == "cpu" else STRIP
        for start in range(0, len(left), strip):
            self.total[start : start + strip] += product(left[start : start + strip], inputs)

    def value(self) -> Tensor:
        """Return the mean outer product, (width, width) float32."""
        return (self.total / max(self.count, 1)).float()

    def give(self, make: Callable[[Tensor], tuple]) -> tuple:
        """Return what a function makes of the value, in whose memory it may write: made once, in place of the sums."""
        if self.made is None:
            value, self.total = self.value(), None
            self.made = make(value)
        return self.made


class Covariance(Hessian):
    """Accumulates the mean over tokens of ``x x^T`` less that of the mean input with itself."""

    def __init__(self, width: int, device: torch.device | str = "cpu", dtype: torch.dtype | None = None):
        _Sum.__init__(self, width + 1, width, device=device, dtype=dtype or exact_type(device))  # last: sums of inputs

    def _part(self, inputs: Tensor, mass: Tensor | None) -> None:
        inputs = inputs.float()
        super()._part(inputs, mass)
        self.total[-1] += (inputs if mass is None else inputs * mass[:, None]).sum(0)

    def value(self) -> Tensor:
        """Return the covariance, (width, width) float32; an input that hardly varies about a large mean has none."""
        moments = self.total / max(self.count, 1)
        square, mean = moments[:-1], moments[-1:]
        found = square - mean.T @ mean
        varies = found.diagonal() > 1e-6 * square.diagonal()  # below that it is rounding
        return (found * varies * varies[:, None]).float()


def product(first: Tensor, second: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply matrices of any float type, the result in float32: (A, B) and (B, C) to (A, C).

    A GPU takes half precision as it is: its products are exact in float32, in which they are added up.
    """
    half = first.dtype in (torch.float16, torch.bfloat16) and first.dtype == second.dtype
    if half and first.device.type == "cuda" and hasattr(torch.ops.aten.mm, "dtype"):  # from PyTorch 2.8 on
        return torch.mm(first, second, out_dtype=torch.float32, **({} if out is None else {"out": out}))
    return torch.mm(first.float(), second.float(), out=out)


def exact_type(device: torch.device | str) -> torch.dtype:
    """Return the type in which outer products are added up: float64 on a CPU, float32 where that would take long."""
    return torch.float64 if torch.device(device).type == "cpu" else torch.float32


def add(statistics: dict, inputs: dict[str, Tensor], chosen: Mapping[str, Tensor | None]) -> None:
    """Add the chosen tokens of every matrix's inputs (T, in) to its accumulator.

    Matrices that read the same tensor and the same tokens (query, key and value, say) share the work.

    Args:
        statistics: accumulator per matrix.
        inputs: (T, in) per matrix.
        chosen: per matrix (T,) bool, (T,) a mass for each token, or (n,) int64 positions; None for every token.
    """
    readers: dict[tuple, list[str]] = defaultdict(list)
    for name, tensor in inputs.items():
        readers[tensor.data_ptr(), tensor.shape, id(chosen[name])].append(name)
    places: dict[int, Tensor | None] = {}
    for first, *others in readers.values():
        if isinstance(statistics[first], Hessian):  # of the size of a weight: those that always read the same have one
            _share(statistics, [first, *others])
        counting = _counting(inputs[first], chosen[first], places)
        part = statistics[first].add(*counting)
        apart = {id(each): each for name in others if (each := statistics[name]) is not statistics[first]}
        for other in apart.values():
            if part is None:
                other.add(*counting)
            else:
                other.total += part
                other.count += len(counting[0])


def _share(statistics: dict, readers: list[str]) -> None:
    """Let matrices have one accumulator together while it is empty; one shared with others too is copied for them."""
    first = statistics[readers[0]]
    owners = {name for name, statistic in statistics.items() if statistic is first}
    if not owners <= set(readers):
        first = copy.deepcopy(first)
        statistics.update(dict.fromkeys(owners & set(readers), first))
    if not any(statistics[name].count for name in readers):
        statistics.update(dict.fromkeys(readers, first))


def _counting(tensor: Tensor, chosen: Tensor | None, places: dict[int, Tensor | None]) -> tuple[Tensor, ...]:
    """Take the tokens that count, (T, in) to (n, in), and their masses (n,) if they have any.

    Args:
        tensor: the tokens.
        chosen: which of them, see :func:`add`.
        places: positions by mask, filled here: a GPU is waited for once per mask.
    """
    if chosen is None:
        return (tensor,)
    if chosen.dtype == torch.long:
        return (tensor.index_select(0, chosen),)
    mass = chosen.dtype != torch.bool
    if id(chosen) not in places:
        index = (chosen > 0).nonzero().flatten()
        places[id(chosen)] = None if len(index) == len(chosen) else index
    index = places[id(chosen)]
    parts = (tensor, chosen) if mass else (tensor,)
    return parts if index is None else tuple(part.index_select(0, index) for part in parts)


def add_shared(
    statistics: dict, make: Callable, inputs: dict[str, Tensor], chosen: Mapping[str, Tensor | None]
) -> None:
    """Add the chosen tokens of every matrix's inputs to accumulators; matrices with the same input have one together.

    Args:
        statistics: accumulator per matrix, filled with the first tokens.
        make: ``(width, device) -> accumulator``.
        inputs: (T, in) per matrix.
        chosen: (T,) bool per matrix, None for every token.
    """
    seen: dict[tuple, str] = {}
    places: dict[int, Tensor | None] = {}
    for name, tensor in inputs.items():
        first = seen.setdefault((tensor.data_ptr(), tensor.shape), name)
        if name not in statistics:
            known = statistics.get(first)
            statistics[name] = known if known is not None else make(tensor.shape[1], tensor.device)
        if first == name or statistics[name] is not statistics[first]:
            statistics[name].add(*_counting(tensor, chosen[name], places))


def pool(statistics: dict) -> list[str]:
    """Give experts that fewer than ``FEW`` tokens reached the statistic of all experts in their tensor.

    Args:
        statistics: accumulator per matrix; experts are called ``tensor[number]``.

    Returns:
        The names of those experts.
    """
    tensors: dict[str, list[str]] = defaultdict(list)
    for name in statistics:
        if "[" in name:
            tensors[name.partition("[")[0]].append(name)
    pooled = []
    for names in tensors.values():
        few = [name for name in names if statistics[name].count < FEW]
        if few:
            whole = copy.copy(statistics[few[0]])  # it may be shared
            whole.total = sum(statistics[name].total for name in names)
            whole.count = sum(statistics[name].count for name in names)
            statistics.update(dict.fromkeys(few, whole))
            pooled += few
    return pooled
