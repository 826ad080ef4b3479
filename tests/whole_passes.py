"""Wanda by the definition: before every block the whole model runs on every sample. It knows nothing of walks."""

import contextlib
from collections import defaultdict

import torch
from torch.overrides import TorchFunctionMode

from tamp import accumulators, masks, models


def pointer(tensor: torch.Tensor) -> int | None:
    """Return where a tensor lies in memory; None for one of torch.func, which lies nowhere."""
    with contextlib.suppress(RuntimeError):
        return tensor.data_ptr()


class Products(TorchFunctionMode):
    """Adds up the squares of what is multiplied with some weights, wherever in a forward pass that happens."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        super().__init__()
        self.weights = {weight.data_ptr(): (name, weight) for name, weight in weights.items()}
        self.squares, self.counts = defaultdict(float), defaultdict(int)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        for operand in args:
            if isinstance(operand, torch.Tensor) and operand.ndim in (2, 3) and pointer(operand) in self.weights:
                others = [other for other in args if isinstance(other, torch.Tensor) and other is not operand]
                others += [other for other in (kwargs or {}).values() if isinstance(other, torch.Tensor)]
                self.note(function.__name__, operand, others)
        return function(*args, **(kwargs or {}))

    def note(self, function: str, operand: torch.Tensor, others: list[torch.Tensor]) -> None:
        if function not in ("linear", "matmul", "__matmul__", "mm", "bmm", "addmm"):
            return
        name, weight = self.weights[operand.data_ptr()]
        names = [name] if operand.ndim == 2 else [n for n in self.names() if n.startswith(f"{name.partition('[')[0]}[")]
        inputs = next(o for o in others if o.ndim > 1 and o.shape[-1] == weight.shape[1])
        inputs = [inputs.reshape(-1, inputs.shape[-1])] if operand.ndim == 2 else inputs
        for each, rows in zip(names, inputs):
            self.squares[each] = self.squares[each] + rows.float().square().sum(0, dtype=torch.float64)
            self.counts[each] += int((rows != 0).any(-1).sum())

    def names(self) -> list[str]:
        return [name for name, _ in self.weights.values()]


def wanda_by_whole_passes(model, samples: list[dict], sparsity: float) -> dict[str, torch.Tensor]:
    """Prune as the definition says: before every block the whole model, its earlier blocks pruned, runs on every sample."""
    with contextlib.suppress(AttributeError, ValueError, KeyError):
        model.set_experts_implementation("eager")
    found = {}
    for prefix, block in models.blocks(model).items():
        matrices = models.linears(block)
        products = Products({name: matrix.weight for name, matrix in matrices.items()})
        with torch.no_grad(), products:
            for sample in samples:
                models.speaker(model)(**models.to_model(model, sample), use_cache=False)
        for name, matrix in matrices.items():
            square, few = products.squares[name], products.counts[name] < accumulators.FEW
            if "[" in name and few:
                like = [each for each in matrices if each.partition("[")[0] == name.partition("[")[0]]
                square = sum(products.squares[each] for each in like)
            if isinstance(square, float):
                continue  # never called
            metric = matrix.weight.float().abs() * square.float().sqrt()
            drop = round(matrix.weight.numel() * sparsity)
            found[f"{prefix}.{name}"] = mask = masks.unstructured(metric, drop=drop)
            with torch.no_grad():
                matrix.weight.masked_fill_(mask, 0)
    return found
