"""What README.md and book/methods.md show of the package's tables of methods."""

import re

from tamp import recipe
from tamp.methods import Option

NEEDS = {
    "nothing": "nothing",
    "weights": "weights",
    "activations": "activations",
    "loss": "loss",
    "modality": "which modality a token has",
    "attention": "activations and attention",
}


def source_link(source: str) -> str:
    """Write a source as a link to its paper."""
    number = re.search(r"arXiv (\d{4}\.\d{5})", source)
    if not number:
        return source or "–"
    return f"[{source.removesuffix(f', {number[0]}')}](https://arxiv.org/abs/{number[1]})"


def preset_table() -> str:
    """Write what every preset chooses, and the paper it is from; a method is explained where it is first named."""
    axes = [axis for axis in recipe.METHODS if any(axis in chosen for chosen in recipe.PRESETS.values())]
    lines = [f"| preset | {' | '.join(axes)} | paper |", "|---" * (len(axes) + 2) + "|"]
    explained = set()
    for name, chosen in recipe.PRESETS.items():
        cells, papers = [], []
        for axis in axes:
            table = recipe.METHODS[axis]
            method = chosen.get(axis, "none")
            row = table[method]
            cells.append(f"`{method}`" if (axis, method) in explained else f"`{method}`: {row.summary}")
            explained.add((axis, method))
            papers += [row.source] if row.source else []
        named = [papers[0], *([papers[-1]] if chosen.get("update") else [])] if papers else []
        paper = "; ".join(map(source_link, named)) or "–"
        lines.append(f"| `{name}` | {' | '.join(cells)} | {paper} |")
    return "\n".join(lines)


def needs(row) -> str:
    """Say what a method looks at."""
    if hasattr(row, "looks_at"):
        return NEEDS[row.looks_at]
    statistic = getattr(row.statistic, "func", row.statistic)
    return f"weights and `{statistic.__name__}` of their inputs" if statistic else "weights"


def axis_table(axis: str) -> str:
    """Write every method of one axis, and every option of it."""
    table = recipe.METHODS[axis]
    lines = ["| name | what it does | looks at | source |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {row.summary} | {needs(row)} | {source_link(row.source)} |" for name, row in table.items()]
    options = {option: each for row in table.values() for option, each in row.options.items()}
    if options:
        lines += ["", "| option | of | default | allowed | meaning |", "|---|---|---|---|---|"]
    for option, each in options.items():
        users = ", ".join(f"`{name}`" for name, row in table.items() if option in row.options)
        lines.append(f"| `{option}` | {users} | {default(each)} | {allowed(each)} | {each.meaning} |")
    return "\n".join(lines)


def default(option: Option) -> str:
    """Write the default of an option."""
    return f"`{option.default!r}`"


def allowed(option: Option) -> str:
    """Write the values that an option takes."""
    if option.choices:
        return " or ".join(f"`{choice!r}`" for choice in option.choices)
    return f"at least {option.least:g}" if option.most is None else f"{option.least:g} to {option.most:g}"
