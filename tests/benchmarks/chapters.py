"""Run the chapters of the book on a real language model and keep what each records, for the default runs to show.

    python tests/benchmarks/chapters.py [01_token_diversity ...]

Every chapter writes its results to ``results/`` in its working folder; that file is kept as it is.
"""

import argparse
import shutil
import tempfile

import papermill
import recording

PARAMETERS = {"MODEL": "smol-llava-next", "SPARSITY": 0.5, "N_SAMPLES": 16}
QUESTIONS = {  # by chapter
    "01_token_diversity": 100,
    "02_sparsity_allocation": 100,
    "04_pruning": 200,
}


def run(notebook: recording.Path, parameters: dict, folder: recording.Path) -> recording.Path:
    """Run a chapter in a folder and return the file it wrote; parameters it does not have are left out."""
    known = papermill.inspect_notebook(str(notebook))
    papermill.execute_notebook(
        str(notebook),
        str(folder / notebook.name),
        {name: value for name, value in parameters.items() if name in known},
        cwd=str(folder),
        progress_bar=False,
    )
    return folder / "results" / f"{notebook.stem}.json"


def main(arguments: list[str] | None = None) -> None:
    """Run and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chapters", nargs="*", default=list(QUESTIONS))
    for chapter in parser.parse_args(arguments).chapters:
        with tempfile.TemporaryDirectory() as folder:
            notebook = recording.ROOT / "notebooks" / f"{chapter}.ipynb"
            made = run(notebook, PARAMETERS | {"N_QUESTIONS": QUESTIONS[chapter]}, recording.Path(folder))
            target = recording.RESULTS / "chapters" / made.name
            target.parent.mkdir(exist_ok=True)
            shutil.copy(made, target)


if __name__ == "__main__":
    main()
