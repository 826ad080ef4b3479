"""Post-training pruning of multimodal large language models: TAMP, Wanda, SparseGPT and their parts."""

import importlib

from tamp.errors import UserError

__version__ = "0.1.0"

_HOMES = {
    "KeepZeros": "finetuning",
    "PRESETS": "recipe",
    "Plan": "plans",
    "Recipe": "recipe",
    "Report": "report",
    "Settings": "evaluation.compare",
    "calibration_set": "calibration",
    "compare": "evaluation.compare",
    "drop_experts": "experts",
    "evaluate": "evaluation",
    "expand": "compact",
    "load": "loading",
    "masked_lora": "finetuning",
    "merge_lora": "finetuning",
    "plan": "planning",
    "prune": "streaming",
    "save": "compact",
    "verify": "verifying",
}
"""Where each public name lives; it is imported when it is first asked for."""

__all__ = ["UserError", *_HOMES]


def __getattr__(name: str):
    """Import a public name, or a module of the package."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"tamp.{_HOMES[name]}"), name)
    try:
        return importlib.import_module(f"tamp.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"tamp.{name}":
            raise
        raise AttributeError(f"module 'tamp' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
