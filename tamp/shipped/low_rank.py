"""Low-rank updates of a frozen language model (LoRA, Hu et al. 2021), and models that ship as nothing but what was trained.

Such a model is merged once with the language model that it was trained over, into a plain transformers folder.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tamp.checkpoint import sha256
from tamp.errors import UserError
from tamp.shipped.places import data_folder, made_once

ADAPTER = "adapter.safetensors"
DECODER = "model.language_model."
SCALE = 2.0


class _Updated(torch.autograd.Function):
    """`x (W + SCALE B A)^T`, where W has no gradient: half the products of computing the update beside the linear."""

    @staticmethod
    def forward(context, inputs, weight, down, up):
        total = torch.addmm(weight, up, down, alpha=SCALE)  # (out, in)
        context.save_for_backward(inputs, total, down, up)
        return inputs @ total.T

    @staticmethod
    def backward(context, gradient):
        inputs, total, down, up = context.saved_tensors
        flat, rows = gradient.flatten(0, -2), inputs.flatten(0, -2)
        return (
            gradient @ total,
            None,
            SCALE * (flat @ up).T @ rows,
            SCALE * flat.T @ (rows @ down.T),
        )


class LowRank(nn.Module):
    """A frozen linear plus a trained update of low rank (LoRA, Hu et al. 2021): `W x + SCALE B A x`."""

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.empty(rank, linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.on = True

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute `(..., out)` from `(..., in)`."""
        if not self.on:
            return self.linear(inputs)
        made = _Updated.apply(inputs, self.linear.weight, self.down, self.up)
        return made if self.linear.bias is None else made + self.linear.bias


def add_low_rank(model: PreTrainedModel, rank: int) -> None:
    """Freeze the language model and put a low-rank update beside every linear of its decoder blocks."""
    model.model.language_model.requires_grad_(False)
    for block in model.model.language_model.layers:
        for part in (block.self_attn, block.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(part, name, LowRank(linear, rank))


def adapter(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return what was trained: all that is around the language model, and its low-rank updates, by name in the model."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith("model.") and (not name.startswith(DECODER) or name.endswith((".down", ".up")))
    }


def merge(model: PreTrainedModel, trained: dict[str, Tensor]) -> None:
    """Put trained weights into an assembled model without low-rank parts, adding the updates to the decoder's linears.

    Raises:
        UserError: if a weight does not belong to the model or is missing.
    """
    state = {}
    for name, tensor in trained.items():
        if name.endswith(".down"):
            linear = name.removesuffix("down") + "weight"
            update = SCALE * trained[name.removesuffix("down") + "up"].float() @ tensor.float()
            state[linear] = model.get_parameter(linear) + update
        elif not name.endswith(".up"):
            state[name] = tensor.float()
    missing, unexpected = model.load_state_dict(state, strict=False)
    left = [name for name in missing if not name.startswith((DECODER, "lm_head."))]
    if left or unexpected:
        raise UserError(f"{ADAPTER} does not fit the model: it lacks {left} and has {list(unexpected)} beside.")


def folder(name: str, assemble: Callable, build_processor: Callable, language_model: Callable) -> Path:
    """Return the folder of a merged model, making it if it is not in the cache.

    Args:
        name: of the model.
        assemble: makes the untrained model from the language model.
        build_processor: makes its processor from the language model's tokenizer.
        language_model: loads the two, fetching them if need be.

    Raises:
        UserError: if the trained weights are missing, or the language model cannot be fetched.
    """
    trained = data_folder() / name / ADAPTER
    if not trained.is_file():
        raise UserError(f"{trained} is missing: install tamp from its repository.")

    def make(scratch: Path, made: Path) -> None:
        base, tokenizer = language_model()
        model = assemble(base)
        merge(model, load_file(trained))
        model.bfloat16().save_pretrained(made)
        build_processor(tokenizer).save_pretrained(made)

    return made_once(f"{name}-{sha256(trained)[:12]}", make)
