"""Low-rank updates of a frozen language model (LoRA, Hu et al. 2021), and the files that ship of a model with them."""

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from tamp.zoo import ADAPTER, DECODER, LORA_SCALE

MACHINE = ("_name_or_path", "_model_name_or_path", "is_local", "local_files_only")
"""Keys that transformers writes about the machine rather than about the model."""


class _Updated(torch.autograd.Function):
    """`x (W + LORA_SCALE B A)^T`, where W has no gradient: half the products of computing the update beside the linear."""

    @staticmethod
    def forward(context, inputs, weight, down, up):
        total = torch.addmm(weight, up, down, alpha=LORA_SCALE)  # (out, in)
        context.save_for_backward(inputs, total, down, up)
        return inputs @ total.T

    @staticmethod
    def backward(context, gradient):
        inputs, total, down, up = context.saved_tensors
        flat, rows = gradient.flatten(0, -2), inputs.flatten(0, -2)
        return (
            gradient @ total,
            None,
            LORA_SCALE * (flat @ up).T @ rows,
            LORA_SCALE * flat.T @ (rows @ down.T),
        )


class LowRank(nn.Module):
    """A frozen linear plus a trained update of low rank (LoRA, Hu et al. 2021): `W x + LORA_SCALE B A x`."""

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
    """Freeze the language model and add a low-rank update to every linear of its decoder blocks."""
    model.model.language_model.requires_grad_(False)
    for block in model.model.language_model.layers:
        for part in (block.self_attn, block.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(part, name, LowRank(linear, rank))


def adapter(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the trained tensors by name: all parts around the language model, and its low-rank updates."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith("model.") and (not name.startswith(DECODER) or name.endswith((".down", ".up")))
    }


def write(model: PreTrainedModel, processor: ProcessorMixin, folder: str | Path) -> None:
    """Write the files from which :func:`tamp.zoo.merged` makes the model: trained tensors in bfloat16, and configuration."""
    save_file({name: tensor.bfloat16() for name, tensor in adapter(model).items()}, Path(folder, ADAPTER))
    write_configuration(model, processor, folder)


def write_configuration(model: PreTrainedModel, processor: ProcessorMixin, folder: str | Path) -> None:
    """Write the configuration of the merged model and its processor, without :data:`MACHINE` and with sorted keys."""
    config = copy.deepcopy(model.config)
    config.dtype, config.architectures = "bfloat16", [type(model).__name__]
    for part in (config, model.generation_config, processor):
        part.save_pretrained(folder)
    Path(folder, "tokenizer.json").unlink()  # comes with the language model
    for path in Path(folder).glob("*config.json"):
        read = json.loads(path.read_text(), object_hook=_without_machine)
        path.write_text(json.dumps(read, indent=2, sort_keys=True) + "\n")


def _without_machine(settings: dict) -> dict:
    """Return settings without the keys of :data:`MACHINE`."""
    return {key: value for key, value in settings.items() if key not in MACHINE}
