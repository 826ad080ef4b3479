"""Prose that comes with every Python: docstrings to train on, documentation and the licence to measure on."""

import ast
import functools
import sysconfig
from pathlib import Path
from pydoc_data import topics

from tamp.files import data_folder


@functools.cache
def docstrings() -> tuple[str, ...]:
    """Read the docstrings of Python's own modules, classes and functions, the longer ones."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):
            continue
        nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef))
        found += [text for text in map(ast.get_docstring, nodes) if text and len(text) > 500]
    return tuple(found)


def texts() -> dict[str, str]:
    """Return documentation to calibrate on, other documentation, and licence prose.

    The licence is Python's or, where Python came without it, this project's.
    """
    pages = [topics.topics[name] for name in sorted(topics.topics)]
    licences = (Path(sysconfig.get_path("stdlib"), "LICENSE.txt"), data_folder().parent / "LICENSE")
    return {
        "calibration": "\n".join(pages[::2]),
        "documentation": "\n".join(pages[1::2]),
        "licence": next(path for path in licences if path.is_file()).read_text(encoding="utf-8"),
    }
