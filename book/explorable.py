"""Sphinx extension: pages carry their figures, so that no page asks a network for anything and figures work from a disk.

* The still of a figure (`_static/README.md` has its form) becomes part of the page, so its colours follow
  the page's theme.
* The data of an explorable figure follow it, for `tamp-figures.js`.
* The badges of Colab come from `_static/`. A shared link shows a description and a picture.
* Columns of numbers are aligned at the right.
* A plot is described by the section it stands in and by what its cell prints, not by the name of its file.
"""

import html
import itertools
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

STATIC = Path(__file__).parent / "_static"
FIGURE = re.compile(r'<img\s+src="[^"]*_static/figures/([\w-]+)\.svg"\s+alt="([^"]*)"\s*/?>')
PLOT = re.compile(r'<h[1-4]>(?P<title>.*?)<a class="headerlink"|<img alt="[^"]*_images/[^"]*"')
TABLE = re.compile(r"<table\b.*?</table>", re.S)
ROW = re.compile(r"<tr\b.*?</tr>", re.S)
CELL = re.compile(r"<(t[hd])\b([^>]*)>(.*?)</\1>", re.S)
NUMBER = re.compile(r"|–|NaN|[+−-]?\d[\d,.]*(?: ?(?:%|x|s|min|kB|MB|GB))?(?: [\[(][^a-z]*[\])])?(?: / [\d,.]+)?")
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
DESCRIPTION = "Prune multimodal language models: a book of notebooks, and the package behind it."

log = logging.getLogger(__name__)


def still(match: re.Match, explorable: str) -> str:
    """Return a figure's drawing, to stand in the page, and its data if it is explorable."""
    name, alt = match[1], match[2]
    path = STATIC / "figures" / f"{name}.svg"
    if not path.exists():
        log.warning("there is no figure %s", path.name)
        return match[0]
    drawing = re.sub(r"<style>.*?</style>", "", path.read_text(), flags=re.S)
    drawing = drawing.replace("<svg ", f'<svg class="tamp-still" role="img" aria-label="{alt}" ', 1)
    data = path.with_suffix(".json")
    if f'data-figure="{name}"' not in explorable or not data.exists():
        return drawing
    text = data.read_text().strip().replace("</", "<\\/")
    return f'{drawing}<script type="application/json" data-for="{name}">{text}</script>'


def plain(text: str) -> str:
    """Return HTML without its tags, fit for an attribute."""
    return " ".join(html.escape(html.unescape(re.sub(r"<[^>]+>", "", text)), quote=True).split())


def described(body: str) -> str:
    """Give plots an alternative text: their section, and the first line that their cell prints after them."""
    section = ""

    def alt(match: re.Match) -> str:
        nonlocal section
        if match["title"] is not None:
            section = plain(match["title"])
            return match[0]
        rest = body[match.end() :].partition('<div class="cell ')[0].partition("<section")[0]
        printed = re.search(r"<pre>(.*?)\n", rest)
        said = f": {plain(printed[1])}" if printed else ""
        return f'<img alt="Plot, {section}{said}"'

    return PLOT.sub(alt, body)


def aligned(body: str) -> str:
    """Mark the cells of columns that hold only numbers, in every table, for the style sheet to align."""
    return TABLE.sub(lambda table: _aligned(table[0]), body)


def _aligned(table: str) -> str:
    rows = [[(kind, plain(text)) for kind, _, text in CELL.findall(row)] for row in ROW.findall(table)]
    body = [row for row in rows if any(kind == "td" for kind, _ in row)]
    columns = range(-min(map(len, body), default=0), 0)  # from the right: at the left a cell may span rows
    numbers = {
        j
        for j in columns
        if all(NUMBER.fullmatch(row[j][1]) for row in body) and any(row[j][1][-1:] not in ("", "–") for row in body)
    }

    def marked(row: re.Match) -> str:
        places = itertools.count(-len(CELL.findall(row[0])))

        def cell(match: re.Match) -> str:
            mark = ' data-number="1"' if next(places) in numbers else ""
            return f"<{match[1]}{match[2]}{mark}>{match[3]}</{match[1]}>"

        return CELL.sub(cell, row[0])

    return ROW.sub(marked, table)


def carry(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Put figures into a page, badges beside it, and what a shared link shows into its head."""
    if "body" not in context:
        return
    here = context["pathto"]("_static/colab-badge.svg", resource=True)
    body = context["body"].replace(BADGE, here)
    context["body"] = FIGURE.sub(lambda match: still(match, body), aligned(described(body)))
    title = plain(context.get("title") or app.config.html_title)
    home = app.config.html_theme_options["repository_url"].replace("github.com", "raw.githubusercontent.com")
    context["metatags"] = context.get("metatags", "") + "".join(
        f'\n<meta {key} content="{value}">'
        for key, value in (
            ('name="description"', DESCRIPTION),
            ('property="og:title"', title),
            ('property="og:description"', DESCRIPTION),
            ('property="og:type"', "article"),
            ('property="og:image"', f"{home}/main/book/_static/shared.png"),
            ('name="twitter:card"', "summary_large_image"),
        )
    )


def setup(app: Sphinx) -> dict:
    """Register with Sphinx."""
    app.connect("html-page-context", carry)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
