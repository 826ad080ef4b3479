"""Post-training pruning of multimodal large language models: TAMP, Wanda, SparseGPT and their parts."""

from tamp.errors import UserError, missing_package

try:
    from tamp import allocation, criteria, diversity, masks, selection
    from tamp.checkpoint import save, verify
    from tamp.conversations import calibration_set
    from tamp.evaluation import evaluate
    from tamp.grid import Settings, compare
    from tamp.models import load
    from tamp.planning import plan
    from tamp.plans import Plan
    from tamp.pruning import prune
    from tamp.recipe import PRESETS, Recipe
    from tamp.report import Report
except ImportError as error:  # transformers names a class of its own, not the package at fault
    raise ImportError(f"tamp cannot be imported: {missing_package(error)}") from error

__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "Plan",
    "Recipe",
    "Report",
    "Settings",
    "UserError",
    "allocation",
    "calibration_set",
    "compare",
    "criteria",
    "diversity",
    "evaluate",
    "load",
    "masks",
    "plan",
    "prune",
    "save",
    "selection",
    "verify",
]
