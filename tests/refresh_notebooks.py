"""Run the notebooks and store their outputs: the only writer of outputs.

    python tests/refresh_notebooks.py [00_quickstart ...]

Two runs give identical files: metadata and widgets are left out, and a cell tagged ``nbval-ignore-output`` (times, versions,
sliders) keeps the output it has, unless its own code or anything compared has changed.
"""

import argparse
import os
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
IGNORED = "nbval-ignore-output"
DRAWING = "image/svg+xml"
WIDGET = "application/vnd.jupyter.widget-view+json"
KEPT = ("cellView", "tags", "mystnb")  # of a cell's metadata; the last one holds what stands in a figure's place
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def kept(output: dict) -> bool:
    """Whether an output belongs on a page: no warnings, no widgets, which a page without a kernel cannot show."""
    return output.get("name") != "stderr" and WIDGET not in output.get("data", {})


def ignored(cell: dict) -> bool:
    """Whether a cell's output is not compared."""
    return IGNORED in cell.metadata.get("tags", [])


def refreshed(notebook: nbformat.NotebookNode, folder: Path, timeout: int = 600) -> nbformat.NotebookNode:
    """Run a notebook in a folder and return it with its outputs and nothing else that a run leaves behind."""
    fresh = nbformat.from_dict(notebook)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(
        fresh, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    fresh.metadata = nbformat.from_dict(METADATA)
    for cell in fresh.cells:
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in KEPT if key in cell.metadata})
        if cell.cell_type == "code":
            cell.outputs = joined([bare(output) for output in cell.outputs if kept(output)])
    old = {cell.id: cell for cell in notebook.cells}
    code = [cell for cell in fresh.cells if cell.cell_type == "code"]
    unchanged = all(
        cell.source == old[cell.id].source and (ignored(cell) or cell.outputs == old[cell.id].outputs) for cell in code
    )
    for number, cell in enumerate(code, start=1):
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
        if unchanged and ignored(cell) and old[cell.id].outputs:
            cell.outputs = old[cell.id].outputs
    return fresh


def bare(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop an output's metadata, and put a drawing on one line."""
    if "metadata" in output:
        output.metadata = nbformat.from_dict({})
    if DRAWING in output.get("data", {}):
        output.data[DRAWING] = one_line(output.data[DRAWING])
    return output


def one_line(drawing: str) -> str:
    """Return an SVG file from its first tag on, on one line, without descriptions, paths to a hundredth of a point."""
    drawing = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", drawing[drawing.index("<svg") :], flags=re.S)
    drawing = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), drawing)
    return " ".join(drawing.split())


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join printed outputs that follow each other: how a kernel splits them depends on its timing."""
    whole: list[nbformat.NotebookNode] = []
    for output in outputs:
        if whole and output.get("name") == whole[-1].get("name") == "stdout":
            whole[-1].text += output.text
        else:
            whole.append(output)
    return whole


def main(arguments: list[str] | None = None) -> None:
    """Refresh the notebooks named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="stems, such as 00_quickstart; all by default")
    options = parser.parse_args(arguments)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not options.names or path.stem in options.names:
            fresh = refreshed(nbformat.read(path, as_version=4), NOTEBOOKS)
            nbformat.validate(fresh)
            text = nbformat.writes(fresh, version=4)
            path.write_text(text if text.endswith("\n") else text + "\n")


if __name__ == "__main__":
    main()
