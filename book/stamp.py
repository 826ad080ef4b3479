"""Move the project: write the repository's owner/name wherever a page links to it or clones it.

    python book/stamp.py owner/name

`_config.yml` says where the project lives (`repository.url`); what stands there now is replaced in it, in the README, the
book's pages and the notebooks.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
URL = re.compile(r"^ +url: https://github\.com/([\w.-]+/[\w.-]+)$", re.M)


def places(root: Path = ROOT) -> list[Path]:
    """List the files that say where the project lives."""
    return [
        root / "_config.yml",
        root / "README.md",
        *sorted((root / "book").glob("*.md")),
        *sorted((root / "notebooks").glob("*.ipynb")),
    ]


def home(root: Path = ROOT) -> str:
    """Read the owner/name from the configuration of the book."""
    return URL.search((root / "_config.yml").read_text())[1]


def stamp(name: str, root: Path = ROOT) -> None:
    """Replace the owner/name in all of them.

    Raises:
        ValueError: if it is not of the form owner/name.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"a repository is named owner/name, not {name!r}")
    old = home(root)
    for path in places(root):
        path.write_text(
            path.read_text()
            .replace(f"github.com/{old}", f"github.com/{name}")
            .replace(f"github/{old}/", f"github/{name}/")
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    stamp(sys.argv[1])
