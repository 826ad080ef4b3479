"""Drawings in SVG: a few shapes in the book's colours, which follow the theme of a page, or of the reader's system."""

import base64
import io
import re
from html import escape

STYLE = """
text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif}
.tf-ink{fill:#1f2328}.tf-soft{fill:#5c636b}.tf-panel{fill:#f3f4f6}.tf-ground{fill:#fff}.tf-line{stroke:#c9ced4;fill:none}
.tf-stroke{stroke:#1f2328;fill:none}.tf-good{fill:#1a7f37}.tf-bad{fill:#b3261e}.tf-accent{fill:#c2373d}
.tf-accent-line{stroke:#c2373d;fill:none}.tf-visual{fill:#d1813f}.tf-text{fill:#3d7ea6}.tf-audio{fill:#8a5a9e}
.tf-visual-line{stroke:#d1813f;fill:none}.tf-text-line{stroke:#3d7ea6;fill:none}
@media(prefers-color-scheme:dark){
.tf-ink{fill:#e6e8ea}.tf-soft{fill:#a9b0b8}.tf-panel{fill:#262b32}.tf-ground{fill:#121212}.tf-line{stroke:#454c55}
.tf-stroke{stroke:#e6e8ea}.tf-good{fill:#57c070}.tf-bad{fill:#ff8a80}.tf-accent{fill:#f0767b}.tf-accent-line{stroke:#f0767b}
.tf-visual{fill:#e39a5b}.tf-text{fill:#6cb0d8}.tf-audio{fill:#b58ac9}.tf-visual-line{stroke:#e39a5b}
.tf-text-line{stroke:#6cb0d8}}
""".replace("\n", "")
"""Colours of a drawing that stands alone; on a page of the book those of `book/_static/tamp.css` replace them."""


def number(value: float) -> str:
    """Write a coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def tag(name: str, content: str = "", **attributes) -> str:
    """Return an element; ``class_`` is ``class``, ``_`` is ``-``, floats are rounded, and None is left out."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(number(value) if isinstance(value, int | float) else value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{said}>{content}</{name}>" if content else f"<{name}{said}/>"


def text(
    x: float, y: float, words: str, size: float = 15, class_: str = "tf-ink", anchor: str | None = None, **more
) -> str:
    """Write a line of text, its baseline at y."""
    return tag("text", escape(words), x=x, y=y, font_size=size, class_=class_, text_anchor=anchor, **more)


def lines(x: float, y: float, words: list[str], step: float = 20, **more) -> str:
    """Write lines of text below each other."""
    return "".join(text(x, y + step * place, line, **more) for place, line in enumerate(words))


def rect(x: float, y: float, width: float, height: float, **more) -> str:
    """Draw a rectangle."""
    return tag("rect", x=x, y=y, width=width, height=height, **more)


def line(x1: float, y1: float, x2: float, y2: float, class_: str = "tf-line", **more) -> str:
    """Draw a line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_, **more)


def path(points: str, class_: str = "tf-stroke", **more) -> str:
    """Draw a path."""
    return tag("path", d=points, class_=class_, **more)


def arrow(x1: float, y1: float, x2: float, y2: float, class_: str = "tf-stroke", head: float = 6, **more) -> str:
    """Draw a line with a head at its end."""
    length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
    dx, dy = head * (x2 - x1) / length, head * (y2 - y1) / length
    tip = (
        f"M{number(x2 - dx - dy * 0.6)} {number(y2 - dy + dx * 0.6)}L{number(x2)} {number(y2)}"
        f"L{number(x2 - dx + dy * 0.6)} {number(y2 - dy - dx * 0.6)}"
    )
    settings = {"stroke_width": 1.6, "stroke_linecap": "round", **more}
    return line(x1, y1, x2, y2, class_=class_, **settings) + path(tip, class_=class_, **settings)


def picture_uri(image, colours: int = 32) -> str:
    """Return a picture as a data URI: PNG of few colours, lossless in space."""
    held = io.BytesIO()
    image.convert("RGB").quantize(colours, dither=0).save(held, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"


def image(x: float, y: float, width: float, height: float, uri: str) -> str:
    """Show a picture with its pixels as they are."""
    return tag("image", x=x, y=y, width=width, height=height, href=uri, style="image-rendering:pixelated")


def drawing(width: float, height: float, *parts: str) -> str:
    """Return a whole drawing."""
    ground = rect(0, 0, width, height, rx=8, class_="tf-ground")
    body = re.sub(r"(?<=>)(?=<(?:text|rect|g|image)[ >])", "\n", "".join(parts))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {number(width)} {number(height)}">'
        f"<style>{STYLE}</style>\n{ground}\n{body}\n</svg>\n"
    )
