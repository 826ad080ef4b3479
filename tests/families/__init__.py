"""Tiny random models of every family that the support table knows, with a few samples each.

A family is a function without arguments that returns ``(model, samples)``: a model of a few thousand weights made from its
configuration, and three processor outputs of different lengths, one of them text alone where the model takes that. No
weights are downloaded and no processor is needed: samples are written the way the family's processor writes them.
"""

import importlib
import pkgutil
from collections.abc import Callable

import torch


def rows() -> dict[str, Callable]:
    """Return the families by name, from all modules of this package: every public function defined in one."""
    found = {}
    for part in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{part.name}")
        for name, make in vars(module).items():
            if callable(make) and getattr(make, "__module__", "") == module.__name__ and not name.startswith("_"):
                found[name] = make
    return found


def build(name: str, dtype: torch.dtype = torch.float32):
    """Build a family's tiny model, seeded, in evaluation mode, and its samples.

    Biases and norms, which begin constant, are made random, so that every weight counts.
    """
    torch.manual_seed(0)
    model, samples = rows()[name]()
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim == 1 and parameter.is_floating_point():
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in parameter_name else 0.0, std=0.1)
    return model.to(dtype).eval(), samples
