"""Self-contained HTML pages of tables, figures and text."""

import base64
import html
import io
from pathlib import Path
from typing import Any

import pandas as pd

from tamp import files
from tamp.evaluation import figures, results
from tamp.report import Report


def write_html(path: str | Path, title: str, parts: list[tuple[str, Any]]) -> Path:
    """Write one self-contained page.

    Args:
        path: file to write.
        title: of the page.
        parts: (heading, content) pairs; content is a DataFrame, a matplotlib figure, a :class:`Report` or text.

    Returns:
        The path.
    """
    body = "\n".join(f"<h2>{html.escape(heading)}</h2>\n{_content(content)}" for heading, content in parts)
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
        "table{border-collapse:collapse;font-size:14px}td,th{padding:.25rem .7rem;text-align:right;"
        "border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}div.wide{overflow-x:auto}"
        "img{max-width:100%}pre{overflow-x:auto;background:#f6f6f6;padding:1rem;font-size:13px}"
    )
    return files.write_text(
        path,
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{style}</style><h1>{html.escape(title)}</h1>\n{body}\n</html>\n",
    )


def write_comparison(path: str | Path, grid: dict[str, Any]) -> Path:
    """Write the page of a comparison: its figures, then its tables.

    Args:
        path: file to write.
        grid: what :func:`tamp.compare` returns.
    """
    levels = results.levels(grid)
    drawn = [figures.grid_figure(grid)] if any(isinstance(level, float) for level in levels) else []
    if grid["differences"]:
        drawn.append(figures.difference_figure(grid, levels, grid["baseline"]))
    parts = [*(("", figure) for figure in drawn), *results.tables(grid)]
    return write_html(path, f"tamp: methods compared on {grid['model']}", parts)


def _content(content: Any) -> str:
    if isinstance(content, pd.DataFrame):
        if not isinstance(content.index, pd.RangeIndex):
            content = content.rename_axis(index=content.index.name or "", columns=None).reset_index()
        table = content.to_html(border=0, float_format="{:g}".format, na_rep="–", index=False, justify="inherit")
        return f"<div class=wide>{table}</div>"
    if isinstance(content, Report):
        return f"<pre>{html.escape(str(content))}</pre>{_content(figures.report_figure(content))}"
    if hasattr(content, "savefig"):
        buffer = io.BytesIO()
        content.savefig(buffer, format="png", dpi=150)
        return f"<img alt='' src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"
    return f"<p>{html.escape(str(content))}</p>"
