"""Tiny random models of every family that the support table knows, with a few samples each.

A family is a function without arguments that returns ``(model, samples)``: a model of a few thousand weights made from its
configuration, and three processor outputs of different lengths, one of them text alone where the model takes that. No
weights are downloaded and no processor is needed: samples are written the way the family's processor writes them.
"""

import importlib
import pkgutil
from collections.abc import Callable

import torch

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 16,
    "fullatt_block_indexes": [1],
}
QWEN_TEXT = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
IMAGE = 120


def tokens(length: int, seed: int) -> list[int]:
    """Make random text token ids that are no placeholder."""
    return torch.randint(3, 100, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Make random pixels."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sample(ids: list[int], **extra) -> dict:
    """Make a processor output of one row."""
    ids = torch.tensor([ids])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **extra}


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
    """Build a family's tiny model and its samples, see :func:`seeded`."""
    return seeded(rows()[name], dtype)


def seeded(make: Callable, dtype: torch.dtype = torch.float32):
    """Call what makes a model and samples, seeded; the model is in evaluation mode.

    Biases and norms, which begin constant, are made random, so that every weight counts.
    """
    torch.manual_seed(0)
    model, samples = make()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and parameter.is_floating_point():
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.1)
    return model.to(dtype).eval(), samples
