"""The matrices of a decoder block that pruning concerns: linears, and experts that lie in one tensor.

Nothing here is a table of families: a matrix is known by the type of its module and the shape of its weight.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

ROUTERS = ("gate", "router", "shared_expert_gate", "moe_gate", "wg")
"""Parts of the names of modules that choose experts."""

NARROW = 8
"""Inputs or outputs below which a matrix is not pruned."""

BY_RULE = ("router", "narrow", "convolution", "embedding", "adapter", "recurrence", "never called")
"""Why a parameter of a block stays dense on purpose."""


@dataclass(frozen=True)
class Matrix:
    """One linear map of a block, ``y = W x + b``.

    Attributes:
        module: what holds its weight.
        parameter: name of the weight in the module.
        expert: its place in a weight that holds several experts, (experts, ., .); None if the weight is one matrix.
        transposed: whether the weight is stored as (in, out).
    """

    module: nn.Module
    parameter: str = "weight"
    expert: int | None = None
    transposed: bool = False

    @property
    def weight(self) -> Tensor:
        """(out, in), a view: what is written into it is written into the model."""
        stored = getattr(self.module, self.parameter)
        part = stored if self.expert is None else stored[self.expert]
        return part.mT if self.transposed else part

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self.weight.shape[1]


def of(block: nn.Module) -> dict[str, Matrix]:
    """Find the matrices of a block by their name in it, in order of definition.

    An expert's matrix is called as Python would: ``mlp.experts.gate_up_proj[17]``. Adapters, and what :func:`by_rule` names,
    are left out.
    """
    found = {}
    sides = adapters(block)
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and name not in sides:
            matrix = Matrix(module, transposed=isinstance(module, Conv1D))
            if by_rule(name, matrix.weight.shape) is None:
                found[name] = matrix
        elif experts(module):
            transposed = stored_transposed(module)
            for parameter in parameters_of(module):
                for expert in range(len(getattr(module, parameter))):
                    found[f"{name}.{parameter}[{expert}]"] = Matrix(module, parameter, expert, transposed)
    return found


def by_rule(name: str, shape: tuple[int, ...]) -> str | None:
    """Say why a matrix (out, in) stays dense though it could be pruned, as one of ``BY_RULE``; None if it is pruned.

    Routers choose experts, and what has fewer than ``NARROW`` inputs or outputs is a gate or a mixing of streams: pruning
    them saves nothing, and nobody does it.
    """
    if len(shape) != 2:
        return None
    if any(part in ROUTERS for part in name.split(".")) and shape[0] < shape[1]:
        return "router"
    return "narrow" if min(shape) < NARROW else None


def in_a_list(name: str) -> bool:
    """Return whether a matrix is in one of a list of modules, as experts that are modules of their own are."""
    return any(part.isdigit() for part in name.split("."))


def adapters(block: nn.Module) -> set[str]:
    """Find the modules that adapt a layer from beside (LoRA and its kin, as PEFT wraps them): names in the block."""
    found = set()
    for name, module in block.named_modules():
        if isinstance(getattr(module, "base_layer", None), nn.Module):
            beside = {part for part, _ in module.named_modules() if part and part.split(".")[0] != "base_layer"}
            found |= {f"{name}.{part}" if name else part for part in beside}
    return found


def experts(module: nn.Module) -> bool:
    """Return whether a module holds experts in one tensor per matrix and says how they are to be run.

    These are the modules of transformers' experts interface, and Llama 4's, which get the routed tokens laid out by expert.
    """
    own = parameters_of(module)
    return len(own) == 2 and (hasattr(module, "is_transposed") or _laid_out(module))


def parameters_of(module: nn.Module) -> list[str]:
    """Return the names of a module's weights that hold several experts, the one that is applied first in front."""
    own = module._parameters
    first = [name for name in ("gate_up_proj", "up_proj") if getattr(own.get(name), "ndim", 0) == 3]
    return [*first[:1], "down_proj"] if first and getattr(own.get("down_proj"), "ndim", 0) == 3 else []


def stored_transposed(module: nn.Module) -> bool:
    """Return whether a module's experts are stored as (experts, in, out)."""
    return getattr(module, "is_transposed", True)


def _laid_out(module: nn.Module) -> bool:
    """Return whether experts are run on tokens laid out by expert, (experts * tokens, in), zero where not routed."""
    first, down = (getattr(module, name) for name in parameters_of(module))
    shapes = first.shape[1] == down.shape[2] and first.shape[2] == 2 * down.shape[1]
    return shapes and hasattr(module, "act_fn") and len(inspect.signature(module.forward).parameters) == 1


def dense(block: nn.Module) -> Iterator[tuple[str, int, str]]:
    """List the parameters of a block with two or more axes that are none of its matrices.

    Yields:
        (name in the block, weights, reason): one of ``BY_RULE``, or else why pruning does not reach it.
    """
    reached = {id(getattr(matrix.module, matrix.parameter)) for matrix in of(block).values()}
    sides = adapters(block)
    for name, parameter in block.named_parameters():
        path, _, own = name.rpartition(".")
        if parameter.ndim < 2 or id(parameter) in reached or own.endswith("bias"):
            continue
        owner = block.get_submodule(path)
        if path in sides:
            reason = "adapter"
        elif (rule := by_rule(path, parameter.shape)) is not None:
            reason = rule
        elif isinstance(owner, nn.modules.conv._ConvNd) or "conv" in type(owner).__name__.lower():
            reason = "convolution"
        elif isinstance(owner, nn.Embedding):
            reason = "embedding"
        elif own == "A_log" or own.endswith("gate_weight"):  # of a recurrence: numbers per channel or head, no map
            reason = "recurrence"
        else:
            reason = "fused experts" if parameter.ndim == 3 else "not a linear"
        yield name, parameter.numel(), reason
