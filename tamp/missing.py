"""Packages that a model needs and that are not there, or do not fit."""

import importlib
import importlib.metadata
import importlib.util


def named(error: ImportError) -> str:
    """Describe which package an import error of transformers is about, and how to get it.

    Args:
        error: from transformers, whose own message may name a class that needs the package instead of the package.

    Returns:
        The sentence: torchvision does not fit torch, an extra of tamp brings what is missing, or the error's first line.
    """
    if misfit := torchvision():
        return misfit
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    for package in ("num2words", "torchvision"):
        if importlib.util.find_spec(package) is None and package in str(error).lower():
            return f"its processor needs {package}, which is not installed: pip install {package}"
    return lines[0]


def torchvision() -> str:
    """Say that the torchvision that is installed does not fit torch; empty if it does, or none is."""
    if importlib.util.find_spec("torchvision"):
        try:
            importlib.import_module("torchvision")
        except Exception as fault:
            versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torchvision", "torch")]
            return (
                f"{versions[0]} does not fit {versions[1]} (importing it fails: {fault}). Install the torchvision "
                "release made for this torch, or uninstall torchvision."
            )
    return ""
