"""Sphinx extension: pages carry their figures, so that no page asks a network for anything and figures work from a disk.

* The still of a figure (`_static/README.md` has its form) becomes part of the page, so its colours follow
  the page's theme.
* The data of an explorable figure follow it, for `tamp-figures.js`.
* The badges of Colab and the picture of a shared link come from `_static/`.
"""

import html
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

STATIC = Path(__file__).parent / "_static"
FIGURE = re.compile(r'<img\s+src="[^"]*_static/figures/([\w-]+)\.svg"\s+alt="([^"]*)"\s*/?>')
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


def carry(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Put figures into a page, badges beside it, and what a shared link shows into its head."""
    if "body" not in context:
        return
    here = context["pathto"]("_static/colab-badge.svg", resource=True)
    body = context["body"].replace(BADGE, here)
    context["body"] = FIGURE.sub(lambda match: still(match, body), body)
    title = html.escape(re.sub(r"<[^>]+>", "", context.get("title") or app.config.html_title), quote=True)
    picture = f"{app.config.html_baseurl.rstrip('/')}/_static/shared.png" if app.config.html_baseurl else ""
    context["metatags"] = context.get("metatags", "") + "".join(
        f'\n<meta {key} content="{value}">'
        for key, value in (
            ('name="description"', DESCRIPTION),
            ('property="og:title"', title),
            ('property="og:description"', DESCRIPTION),
            ('property="og:type"', "article"),
            ('property="og:image"', picture or context["pathto"]("_static/shared.png", resource=True)),
            ('name="twitter:card"', "summary_large_image"),
        )
    )


def setup(app: Sphinx) -> dict:
    """Register with Sphinx."""
    app.connect("html-page-context", carry)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
