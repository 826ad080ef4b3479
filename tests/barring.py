"""A whole model whose routers cannot choose some of its experts: what a model without them must compute."""

import contextlib

import families
import torch

from tamp import models

GROUPED = ("deepseek_v3", "kimi_k25")
"""Families whose router chooses a group of experts first."""


def logits(model, sample: dict) -> torch.Tensor:
    """Run a model on one sample."""
    with torch.no_grad():
        return models.speaker(model)(**models.to_model(model, sample), use_cache=False).logits


def gone(report) -> dict[str, list[int]]:
    """Return the dropped experts by the name of the module that holds them."""
    return {
        name: [row["expert"] for row in report.rows if row["experts"] == name and not row["kept"]]
        for name in {row["experts"] for row in report.rows}
    }


@contextlib.contextmanager
def barred(model, dropped: dict[str, list[int]]):
    """Give experts router logits, and corrections of them, of minus infinity; the model's buffers stay changed."""
    routers = {}
    for name, numbers in dropped.items():
        holder = model.get_submodule(name.rpartition(".")[0])
        count = len(model.get_submodule(name).down_proj)
        for part, tensor in [*holder.named_parameters(), *holder.named_buffers()]:
            inside = part.split(".")[0] in ("gate", "router")
            if inside and part.endswith("weight") and tensor.ndim == 2 and len(tensor) == count:
                routers[tensor.data_ptr()] = numbers
            if inside and part.endswith("correction_bias"):
                tensor.data[..., numbers] = -torch.inf
    assert len(routers) == len(dropped)
    plain = torch.nn.functional.linear

    def linear(inputs, weight, bias=None):
        output = plain(inputs, weight, bias)
        if weight.data_ptr() in routers:
            output[..., routers[weight.data_ptr()]] = -torch.inf
        return output

    torch.nn.functional.linear = linear
    try:
        yield
    finally:
        torch.nn.functional.linear = plain


def build(family: str):
    """Make a family whose experts weigh, with corrections of the router; of a grouped router, 8 experts in two groups."""
    model, samples = families.build(family)
    if family in GROUPED:
        models.text_config(model).n_routed_experts = 8
        torch.manual_seed(0)
        model = type(model)(model.config).eval()
    random = torch.Generator().manual_seed(1)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("correction_bias"):
            tensor.data.normal_(std=0.01, generator=random)
        elif name.endswith("experts.down_proj"):
            tensor.data *= 20
    return model, samples
