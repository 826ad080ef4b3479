"""Write the table of shipped files in data/README.md: `python tests/list_data.py`."""

import re
from pathlib import Path

from tamp.checkpoint import sha256

DATA = Path(__file__).parents[1] / "data"


def main() -> None:
    """List every shipped file but the recorded results, with size and SHA-256."""
    rows = [
        f"| `{path.relative_to(DATA).as_posix()}` | {path.stat().st_size:,} | `{sha256(path)}` |"
        for path in sorted(DATA.rglob("*"))
        if path.is_file() and path.name != "README.md" and "results" not in path.parts
    ]
    page = DATA / "README.md"
    table = "\n".join(["| file | bytes | sha256 |", "|---|---|---|", *rows])
    page.write_text(
        re.sub(r"(<!-- files -->\n).*?(\n<!-- end -->)", lambda m: m[1] + table + m[2], page.read_text(), flags=re.S)
    )


if __name__ == "__main__":
    main()
