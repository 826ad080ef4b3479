"""The table of published benchmarks on their page, from the rows of the package."""

import math

import method_tables

from tamp.evaluation.benchmarks import TABLE


def table() -> str:
    """List every published benchmark: where it lies, what it asks, chance and licence."""
    lines = [
        "| name | benchmark | about | repository, split | questions | chance % | protocols | licence |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in TABLE.items():
        size = f"{row.size:,}" if row.size else "–"
        chance = "–" if math.isnan(row.chance) else f"{100 * row.chance:.1f}"
        source = method_tables.source_link(row.source)
        where = f"[{row.hub}](https://huggingface.co/datasets/{row.hub}), `{row.split}`"
        kinds = len(row.configurations)
        where += f" of {kinds} configurations" if kinds > 1 else ""
        protocols = ", ".join(f"`{each}`" for each in row.protocols)
        licence = f"[{row.licence}]({row.stated})" if row.stated else row.licence
        cells = (f"`{name}`", f"{row.title}, {source}", row.kind, where, size, chance, protocols, licence)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
