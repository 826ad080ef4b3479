"""Fine-tuning a pruned model so that its zeros stay zero: an update of low rank under the mask, or zeros put back.

LoRA (Hu et al. 2021, arXiv 2106.09685) adds a full matrix of low rank, so merging it fills every zero. Here the update is
``scale * B A`` where the weight is not zero, and nothing elsewhere: the merged matrix has the zeros of the pruned one. The
mask is read off the weight itself, so nothing is stored beside the factors.
"""

import logging
import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from tamp import matrices, models
from tamp.errors import UserError, unknown

LEAST = 0.001
"""Share of zeros below which a model does not count as pruned; dense weights in half precision hold a few."""

BITS = 8
"""Entries of a mask per stored byte."""

log = logging.getLogger(__name__)


def effective(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Compute a pruned weight with its update: ``W + scale * (B A) * (W != 0)``.

    Args:
        weight: W, (out, in), zero where it is pruned.
        down: A, (rank, in).
        up: B, (out, rank).
        scale: of the update.

    Returns:
        (out, in) in the type of ``weight``, zero wherever it is; the sum is taken in the wider of the two types.
    """
    change = (up @ down).mul_(scale).masked_fill_(weight == 0, 0)  # (out, in)
    return torch.add(change, weight).to(weight.dtype)


class _Product(torch.autograd.Function):
    """``x (W + scale * (B A) * (W != 0))^T``; the sum is made again in the backward pass instead of being kept for it."""

    @staticmethod
    def forward(context, inputs: Tensor, weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        context.save_for_backward(inputs, weight, down, up)
        context.scale = scale
        with torch.autocast(inputs.device.type, enabled=False):
            return inputs @ effective(weight, down, up, scale).to(inputs.dtype).T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient: Tensor):
        inputs, weight, down, up = context.saved_tensors
        before = of_down = of_up = None
        with torch.autocast(gradient.device.type, enabled=False):
            if context.needs_input_grad[0]:
                before = gradient @ effective(weight, down, up, context.scale).to(gradient.dtype)
            if any(context.needs_input_grad[2:4]):
                of_weight = gradient.flatten(0, -2).T @ inputs.flatten(0, -2)  # (out, in)
                of_weight = of_weight.to(up.dtype).mul_(context.scale).masked_fill_(weight == 0, 0)
                of_down, of_up = up.T @ of_weight, of_weight @ down.T
        return before, None, of_down, of_up, None


class MaskedLora(nn.Module):
    """A pruned linear with an update of low rank that leaves its zeros alone.

    Attributes:
        base_layer: the linear, frozen.
        down: A, (rank, in); random at first.
        up: B, (out, rank); zero at first, so that training starts from the pruned model.
        scale: alpha / rank.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base_layer = linear.requires_grad_(False)
        weight = linear.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1], dtype=wide, device=weight.device))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, dtype=wide, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.scale = alpha / rank

    @property
    def weight(self) -> Tensor:
        """(out, in), the frozen weight, for code that asks for its type or device."""
        return self.base_layer.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute (..., out) from (..., in)."""
        kind = inputs.device.type
        if torch.is_autocast_enabled(kind):
            inputs = inputs.to(torch.get_autocast_dtype(kind))
        outputs = _Product.apply(inputs, self.weight, self.down, self.up, self.scale)
        bias = self.base_layer.bias
        return outputs if bias is None else outputs + bias.to(outputs.dtype)


def masked_lora(
    model: nn.Module, rank: int = 16, alpha: float = 32.0, targets: Collection[str] | None = None
) -> list[nn.Parameter]:
    """Wrap the linears of a pruned model so that training moves their kept weights alone, in place.

    Everything else is frozen, and stays so after :func:`merge_lora`; ``model.requires_grad_(True)`` undoes that. Factors are
    float32 whatever the type of the model, for a plain training loop or transformers' Trainer. Forward and backward pass
    make the updated weight of one linear at a time.

    Args:
        model: pruned by :func:`tamp.prune`, or loaded with its zeros.
        rank: of the updates.
        alpha: the update is scaled by ``alpha / rank``.
        targets: ends of the names of the linears to train, such as ``("q_proj", "v_proj")``; None for all linears of the
            decoder blocks. Experts that lie in one tensor are not trained.

    Returns:
        The factors, for an optimizer.

    Raises:
        UserError: if the model is not pruned, carries an adapter already, or no linear has one of the names.
    """
    if not (isinstance(rank, int) and rank >= 1 and math.isfinite(alpha) and alpha > 0):
        raise UserError(f"rank must be a whole number from 1 on and alpha above 0, not {rank!r} and {alpha!r}.")
    _check_plain(model)
    found = models.all_linears(model)
    _check_pruned(model, found)
    linears = {name: matrix.module for name, matrix in found.items() if isinstance(matrix.module, nn.Linear)}
    ends = {name: name.rpartition(".")[2] for name in linears}
    for target in targets or ():
        if not any(_ends(name, target) for name in linears):
            raise unknown("linear", target, dict.fromkeys(ends.values()))
    if targets is not None:
        linears = {name: module for name, module in linears.items() if any(_ends(name, target) for target in targets)}
    if not linears:
        raise UserError(
            f"{type(model).__name__} has no linear to train, only experts in one tensor or transposed weights: train it "
            "whole, with KeepZeros."
        )
    if rest := len(found) - sum(isinstance(matrix.module, nn.Linear) for matrix in found.values()):
        log.warning("%d matrices are experts in one tensor, or stored transposed, and are not trained.", rest)
    model.requires_grad_(False)
    factors = []
    for name, linear in linears.items():
        path, _, own = name.rpartition(".")
        wrapped = MaskedLora(linear, rank, alpha).train(linear.training)
        setattr(model.get_submodule(path), own, wrapped)
        factors += [wrapped.down, wrapped.up]
    return factors


@torch.no_grad()
def merge_lora(model: nn.Module) -> float:
    """Add the trained updates to the weights and take the wrappers off; every zero stays zero.

    Args:
        model: changed by :func:`masked_lora`.

    Returns:
        Share of zeros among the weights of the decoder's matrices, counted.

    Raises:
        UserError: if the model has no masked LoRA, or a factor is not finite; nothing is merged then.
    """
    wrapped = {name: module for name, module in model.named_modules() if isinstance(module, MaskedLora)}
    if not wrapped:
        raise UserError(f"This {type(model).__name__} has no masked LoRA to merge: call tamp.masked_lora first.")
    for name, module in wrapped.items():
        if not (module.down.isfinite().all() and module.up.isfinite().all()):
            raise UserError(
                f"The update of {name} is not finite, so training diverged: train again at a lower learning rate."
            )
    for name, module in wrapped.items():
        weight, before = module.weight, int((module.weight == 0).sum())
        weight.copy_(effective(weight, module.down, module.up, module.scale))
        assert int((weight == 0).sum()) >= before, f"{name} lost zeros"
        path, _, own = name.rpartition(".")
        setattr(model.get_submodule(path), own, module.base_layer)
    return sparsity(model)


def sparsity(model: nn.Module) -> float:
    """Return the share of zeros among the weights of the matrices of a model's decoder blocks."""
    return _sparsity(models.all_linears(model))


class KeepZeros(TrainerCallback):
    """Puts the zeros of a pruned model back after every step of an optimizer, for training that moves all weights.

    Give it to transformers' Trainer (``Trainer(..., callbacks=[KeepZeros(model)])``), or call :meth:`step` after
    ``optimizer.step()`` in a loop of your own. It remembers which weights are zero when it is made, one bit per weight.
    Weights must lie whole on their device: it does not work with FSDP or with stage 3 of DeepSpeed.

    Args:
        model: pruned, and the one that is trained.

    Raises:
        UserError: if the model is not pruned.
    """

    def __init__(self, model: nn.Module):
        self.found = models.all_linears(model)
        _check_pruned(model, self.found)
        self.masks = {name: _packed(matrix.weight == 0) for name, matrix in self.found.items()}

    @torch.no_grad()
    def step(self) -> None:
        """Put the zeros back."""
        for name, matrix in self.found.items():
            mask = _unpacked(self.masks[name].to(matrix.weight.device), matrix.weight.shape)
            matrix.weight.masked_fill_(mask, 0)

    @property
    def sparsity(self) -> float:
        """Share of zeros now among the weights of the decoder's matrices, counted."""
        return _sparsity(self.found)

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        """Put the zeros back, called by the Trainer before anything is saved or evaluated."""
        self.step()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Put the zeros back a last time, and log how many there are."""
        self.step()
        log.info("after training, %.4f %% of the decoder's weights are zero", 100 * self.sparsity)


def _check_plain(model: nn.Module) -> None:
    """Check that a model carries no adapter."""
    if any(isinstance(module, MaskedLora) for module in model.modules()):
        raise UserError("The model has a masked LoRA already: merge it with tamp.merge_lora before adding another.")
    if hasattr(model, "peft_config") or matrices.adapters(model):
        raise UserError(
            "The model carries a PEFT adapter: use model.unload() to take it off, and tamp.masked_lora instead of it; "
            "merging a PEFT adapter would fill the zeros."
        )


def _check_pruned(model: nn.Module, found: dict[str, matrices.Matrix]) -> None:
    """Check that some weights of a model are zero."""
    if _sparsity(found) < LEAST:
        raise UserError(
            f"This {type(model).__name__} is not pruned: less than {LEAST:.1%} of its weights are zero. Prune it "
            "first, with tamp.prune."
        )


def _sparsity(found: dict[str, matrices.Matrix]) -> float:
    zeros = sum(int((matrix.weight == 0).sum()) for matrix in found.values())
    return zeros / sum(matrix.weight.numel() for matrix in found.values())


def _ends(name: str, target: str) -> bool:
    """Return whether a name ends with the parts of another."""
    return f".{name}".endswith(f".{target}")


def _packed(mask: Tensor) -> Tensor:
    """Store a mask (out, in) in (ceil(out * in / 8),) bytes."""
    flat = nn.functional.pad(mask.flatten(), (0, -mask.numel() % BITS)).view(-1, BITS)
    powers = 2 ** torch.arange(BITS, dtype=torch.uint8, device=mask.device)
    return (flat * powers).sum(1, dtype=torch.uint8)


def _unpacked(stored: Tensor, shape: torch.Size) -> Tensor:
    """Read a mask (out, in) back from its bytes."""
    bits = stored[:, None] >> torch.arange(BITS, device=stored.device, dtype=torch.uint8) & 1
    return bits.flatten()[: shape.numel()].view(shape).bool()
