"""The book: it builds without a warning, its links lead somewhere, and one file says where the project lives."""

import re
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book"))

import explorable  # noqa: E402
import stamp  # noqa: E402


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of HTML pages."""
    out = tmp_path_factory.mktemp("book")
    jupyter_book = Path(sys.executable).parent / "jupyter-book"
    command = [jupyter_book, "build", ".", "--toc", "book/_toc.yml", "-W", "--keep-going", "--path-output", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out / "_build" / "html"


def pages(built: Path) -> list[Path]:
    """List the pages of the book, without the source code of the package."""
    return [*built.glob("book/**/*.html"), *built.glob("notebooks/*.html")]


def test_every_chapter_is_in_the_table_of_contents_and_built(built):
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    files = [toc["root"], *(each["file"] for chapter in chapters for each in (chapter, *chapter.get("sections", [])))]
    assert {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")} <= set(files)
    pages = {path.relative_to(ROOT).with_suffix("").as_posix() for path in (ROOT / "book").rglob("*.md")}
    assert {name for name in pages if "_static" not in name} <= set(files)
    assert all((built / f"{name}.html").is_file() for name in files)


def test_links_within_the_book_lead_somewhere(built):
    for page in pages(built):
        html = page.read_text()
        for target in re.findall(r'(?:href|src)="([^"]+)"', html):
            path, _, fragment = urllib.parse.unquote(target).partition("#")
            if re.match(r"[a-z]+:|//", path):
                continue
            found = (page.parent / path.split("?")[0]).resolve() if path else page
            assert found.exists(), f"{page.name}: {target}"
            if fragment and found.suffix == ".html" and "/_modules/" not in str(found):
                assert f'id="{fragment}"' in found.read_text(), f"{page.name}: {target}"


def test_pages_can_be_opened_on_colab_and_found_by_search(built):
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        html = (built / "notebooks" / f"{path.stem}.html").read_text()
        assert f"https://colab.research.google.com/github/{stamp.home()}/blob/main/notebooks/{path.name}" in html
    index = (built / "searchindex.js").read_text()
    assert "notebooks/03_token_selection" in index
    assert all(f'"{word}":' in index for word in ("mmd", "atv", "sink"))
    assert '"2:4":' in index, "a word of digits is found only as an entry of the index"


LOADING = re.compile(
    r'<(?:script|img|iframe|source|audio|video|embed|image)\b[^>]*?\b(?:src|href)="((?:https?:)?//[^"]*)"'
)
STYLED = re.compile(r'<link\b(?=[^>]*rel="(?:stylesheet|icon|preload|shortcut icon)")[^>]*href="((?:https?:)?//[^"]*)"')
IMPORTED = re.compile(r'(?:@import\s+|url\()["\']?((?:https?:)?//[^"\')]*)')


@pytest.mark.parametrize(
    "markup",
    [
        '<script src="https://cdn.example/x.js">',
        '<img alt="a" src="//x.example/a.png">',
        '<image href="http://x.example/a">',
    ],
)
def test_what_a_page_would_load_from_outside_is_seen(markup):
    assert LOADING.search(markup) and STYLED.search('<link rel="stylesheet" href="https://x.example/a.css">')
    assert IMPORTED.search("a{background:url(https://x.example/a.png)}")


def test_no_page_asks_for_anything_outside_the_book(built):
    for page in built.rglob("*.html"):
        html = page.read_text()
        assert not [*LOADING.findall(html), *STYLED.findall(html)], page
    for path in [*built.rglob("*.css")]:
        assert not IMPORTED.findall(path.read_text(errors="replace")), path
    assert (built / "_static/mathjax/tex-mml-chtml.js").is_file() and list(built.glob("_static/mathjax/**/*.woff"))
    assert "cdn" not in "".join(re.findall(r'<script[^>]*src="[^"]*"', (built / "book/method.html").read_text()))


def test_columns_of_numbers_are_marked_and_others_are_not():
    rows = (
        ("m", "accuracy %", "answer"),
        ("a", "92.2 [89.5, 94.2]", "2"),
        ("b", "–", "yes"),
        ("c", "-0.5 (1.20)", "3"),
    )
    html = "".join(
        f"<tr>{''.join(f'<{kind}><p>{text}</p></{kind}>' for text in row)}</tr>"
        for kind, row in zip(("th", "td", "td", "td"), rows)
    )
    marked = explorable.aligned(f"before <table>{html}</table> after")
    assert re.findall(r"data-number[^>]*><p>(.*?)</p>", marked) == [row[1] for row in rows]
    assert marked.replace(' data-number="1"', "") == f"before <table>{html}</table> after"


def test_a_cell_that_spans_rows_does_not_move_the_columns():
    rows = '<th rowspan="2">a</th><th>x</th><td>1.0</td><td>NaN</td>', "<th>y</th><td>22.0</td><td>3</td>"
    head = "<tr><th></th><th></th><th>n</th><th>m</th></tr>"
    marked = explorable.aligned(f"<table>{head}{''.join(f'<tr>{row}</tr>' for row in rows)}</table>")
    assert re.findall(r"data-number[^>]*>(.*?)<", marked) == ["n", "m", "1.0", "NaN", "22.0", "3"]


def test_a_plot_is_described_by_its_section_and_what_is_printed_under_it():
    body = (
        '<h2>All <em>linears</em><a class="headerlink" href="#x">#</a></h2>'
        '<div class="cell docutils"><img alt="../_images/0a.png" src="../_images/0a.png"/>'
        "<pre><span></span>12 &lt; 13\nx</pre></div>"
        '<div class="cell docutils"><img alt="../_images/0b.png" src="../_images/0b.png"/></div>'
        '<div class="cell "><pre>y\n</pre>'
    )
    assert re.findall('alt="(.*?)"', explorable.described(body)) == [
        "Plot, All linears: 12 &lt; 13",
        "Plot, All linears",
    ]


def test_a_page_weighs_less_than_a_megabyte(built):
    """Its text, pictures, sounds and figures; not the theme and the maths, which pages share."""
    for page in pages(built):
        html = page.read_text()
        own = {
            target for target in re.findall(r'src="([^"?]+)', html) if "_images" in target or "tamp-figures" in target
        }
        assert len(html) + sum((page.parent / name).resolve().stat().st_size for name in own) < 1_000_000, page


def test_no_picture_is_described_by_the_name_of_its_file(built):
    for page in pages(built):
        for alt in re.findall(r'<img\b[^>]*?\balt="([^"]*)"', page.read_text()):
            assert alt.strip() and not re.search(r"\.(png|svg|jpe?g)$|_images|[0-9a-f]{32}", alt), f"{page.name}: {alt}"


def test_every_figure_stands_in_its_page_with_data_and_description(built):
    shown = set()
    for page in pages(built):
        html = page.read_text()
        for name, figure in re.findall(r'<figure class="tamp-figure" id="([\w-]+)"(.*?)</figure>', html, re.S):
            shown.add(name)
            assert re.search(r'<svg class="tamp-still" role="img" aria-label="[^"]{20,}"', figure), name
            assert ("data-figure" in figure) == (f'data-for="{name}"' in figure), name
            assert re.search(r"<figcaption>.{20,}", figure, re.S), name
        assert "_static/figures/" not in html, page
    assert "drag-to-prune" in shown
    head = (built / "book/intro.html").read_text()
    assert all(f'"{key}"' in head for key in ("description", "og:title", "og:description", "og:image"))
    assert (
        'rel="icon"' in head and (built / "_static/favicon.svg").is_file() and (built / "_static/shared.png").is_file()
    )


def test_one_file_says_where_the_project_lives_and_a_stamp_moves_it(tmp_path):
    copied = [tmp_path / path.relative_to(ROOT) for path in stamp.places()]
    for path, copy in zip(stamp.places(), copied):
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    stamp.stamp("someone/elsewhere", tmp_path)
    assert stamp.home(tmp_path) == "someone/elsewhere"
    for path, copy in zip(stamp.places(), copied):
        assert stamp.home() not in copy.read_text()
        linked = re.findall(r"(?:github\.com|com/github)/([\w.-]+/tamp)\b", path.read_text())
        assert set(linked) <= {stamp.home()}, path
    stamp.stamp(stamp.home(), tmp_path)
    assert all(path.read_text() == copy.read_text() for path, copy in zip(stamp.places(), copied))
    with pytest.raises(ValueError, match="owner/name"):
        stamp.stamp("nonsense", tmp_path)
