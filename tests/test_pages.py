"""Pages that run: their code prints what they say, their commands parse, their claims are the recorded numbers."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import method_tables
import pages
import pytest

from tamp import cli
from tamp.evaluation import results
from tamp.recipe import METHODS, PRESETS, options

ROOT = Path(__file__).parents[1]
BOOK = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "book").glob("[!_]*/*.md"))]
BOOK += [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "book").glob("*.md"))]
READ = ["README.md", "data/README.md", *BOOK]
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str) -> list[tuple[str, str]]:
    """List the code blocks of a page with what it says they print; empty if it says nothing."""
    return re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", text_of(page), re.M | re.S)


def check_printed(printed: str, shown: str) -> None:
    """Compare word for word; numbers may differ in the last digit, as on another machine."""
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown)
    for here, there in zip(NUMBER.findall(printed), NUMBER.findall(shown)):
        assert float(here) == pytest.approx(float(there), rel=0.01, abs=0.011), printed


@pytest.mark.parametrize("page", [page for page in READ if blocks(page)])
def test_code_on_a_page_prints_what_the_page_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = {"__name__": "page"}
    for code, shown in blocks(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), known)
        check_printed(printed.getvalue(), shown)


@pytest.mark.parametrize(("printed", "right"), [("NLL 0.13\n", True), ("NLL 0.9\n", False), ("nll 0.12\n", False)])
def test_what_a_page_shows_is_compared(printed, right):
    with contextlib.nullcontext() if right else pytest.raises(AssertionError):
        check_printed(printed, "NLL 0.12\n")


def commands() -> list[tuple[str, str]]:
    """List the commands of the package on the pages."""
    return [(page, line) for page in READ for line in re.findall(r"^tamp .*$", text_of(page), re.M) if "`" not in line]


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_on_a_page_parse(page, line):
    assert cli.parse(shlex.split(line, comments=True)[1:]).debug is False


def test_the_readme_is_short_and_names_no_other_project():
    readme = text_of("README.md")
    assert len(readme.encode()) <= 9000
    assert len(blocks("README.md")) == 1 and blocks("README.md")[0][1]
    for page in READ:
        assert not re.search(r"pip install ['\"]?tamp(?!\[\w+\] @)", text_of(page)), page


@pytest.mark.parametrize("page", READ)
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", text_of(page)):
        if not target.startswith(("http:", "https:")):
            assert ((ROOT / page).parent / target).exists(), target
    for name in re.findall(r"\]\(#([^)]+)\)", text_of(page)):
        headings = re.findall(r"^#+ (.*)$", text_of(page), re.M)
        assert name in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, name


def test_every_method_and_every_option_is_listed():
    page = text_of("book/methods.md")
    for name in [*PRESETS, *options(), *(name for table in METHODS.values() for name in table)]:
        assert f"| `{name}` |" in page, name
    assert all(f"| `{name}` |" in text_of("README.md") for name in PRESETS)


def test_every_module_has_its_place_in_the_description_of_the_house():
    page = text_of("book/contributing.md")
    parts = {path.stem if path.suffix else f"{path.name}/" for path in (ROOT / "tamp").iterdir()}
    for name in parts - {"__init__", "__pycache__/"}:
        assert f"`{name}`" in page, name


def test_a_source_becomes_a_link():
    assert method_tables.source_link("Lu et al. 2024, arXiv 2410.10912") == (
        "[Lu et al. 2024](https://arxiv.org/abs/2410.10912)"
    )
    assert method_tables.source_link("arXiv 2603.16001") == "[arXiv 2603.16001](https://arxiv.org/abs/2603.16001)"
    assert method_tables.source_link("") == "–"


SMOL, MINI, SOUND = "smol_quality", "mini_quality", "smol_av_quality"
CLAIMS = {
    "README.md": {SMOL: {0.5: [("text", "tamp"), ("atv", "tamp"), ("sparsegpt", "tamp")]}},
    "book/results.md": {
        SMOL: {
            0.5: [
                ("sparsegpt", "tamp"),
                ("tamp", "wanda"),
                ("amia", "wanda"),
                ("das", "wanda"),
                ("tamp", "amia"),
                ("text", "tamp"),
                ("atv", "tamp"),
                ("ecoflap", "das"),
                ("alphapruning", "wanda"),
                ("owl", "wanda"),
                ("das:das_granularity=block", "das"),
            ],
            0.6: [("sparsegpt", "tamp")],
            "4:8": [("tamp", "amia")],
        },
        MINI: {
            0.6: [("tamp", "wanda"), ("amia", "wanda")],
            0.7: [
                ("tamp", "wanda"),
                ("das", "wanda"),
                ("amia", "wanda"),
                ("sparsegpt", "tamp"),
                ("text", "amia"),
                ("atv", "amia"),
                ("magnitude", "tamp"),
                ("owl", "das"),
                ("alphapruning", "wanda"),
                ("ecoflap", "wanda"),
            ],
            0.8: [("tamp", "wanda"), ("sparsegpt", "tamp"), ("tamp", "text"), ("ecoflap", "tamp")],
            "2:4": [("sparsegpt", "tamp"), ("tamp", "amia")],
            "4:8": [("tamp", "amia")],
        },
        SOUND: {
            0.4: [("tamp", "wanda"), ("amia", "wanda"), ("text", "wanda"), ("atv", "wanda"), ("sparsegpt", "atv")],
            0.5: [
                ("tamp", "wanda"),
                ("amia", "wanda"),
                ("tamp", "amia"),
                ("das", "wanda"),
                ("ecoflap", "wanda"),
                ("owl", "wanda"),
                ("alphapruning", "wanda"),
                ("sparsegpt", "tamp"),
            ],
        },
    },
}
"""Differences that the prose of a page gives: page, grid and level to (method, baseline)."""


@pytest.mark.parametrize("page", CLAIMS)
def test_every_difference_in_the_prose_is_the_recorded_one(page):
    prose = " ".join(re.sub(r"<!-- \w+ -->.*?<!-- end -->", "", text_of(page), flags=re.S).split())
    said = re.findall(r"([+-]?\d+\.\d)(?: [\w %,]*?)? \[([+-]?\d+\.\d), ([+-]?\d+\.\d)\]", prose)
    said = [tuple(map(float, numbers)) for numbers in said]
    true = [
        tuple(round(float(value), 1) for value in results.interval(*cells))
        for name, levels in CLAIMS[page].items()
        for level, gains in levels.items()
        for gain in gains
        for grid in [results.recorded(name)]
        for cells in [[results.cells_of(grid, method, level) for method in gain]]
    ]
    assert not set(said) - set(true), "not recorded, or not in CLAIMS"
    assert not set(true) - set(said), "in CLAIMS, but not on the page"


def test_every_generated_part_has_a_writer():
    for page in READ:
        marks = set(re.findall(r"^<!-- (\w+) -->$", text_of(page), re.M)) - {"end"}
        assert marks == set(pages.PAGES.get(page, {})), page
