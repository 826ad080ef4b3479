"""The stills of the book's explorable figures: what shows where no script runs, with the same message.

    python tests/benchmarks/stills.py

They are drawn from the data in `book/_static/figures/`, which `tests/benchmarks/figure_data.py` writes.
"""

from collections.abc import Callable

import figure_data
import svg


def drag_to_prune(data: dict) -> str:
    """Draw the picture beside the number of right answers of every method at every level."""
    names, levels, n = list(data["methods"]), data["levels"], len(data["questions"])
    left, top, width, height = 262, 96, 70, 40
    parts = [
        svg.text(150, 30, f"Right answers to {n} questions about this picture", 20, font_weight=600),
        svg.image(16, 20, 116, 232, data["picture"]),
    ]
    for column, level in enumerate((0, *levels)):
        parts.append(svg.text(left + (column + 0.5) * width, top - 10, f"{level} %", 17, "tf-soft", "middle"))
    parts.append(svg.text(150, top - 34, "weights at zero", 17, "tf-soft"))
    for row, name in enumerate(names):
        method, y = data["methods"][name], top + row * height
        parts.append(svg.tag("circle", cx=156, cy=y + height / 2 - 2, r=6, fill=method["color"]))
        parts.append(svg.text(168, y + height / 2 + 4, method["label"], 18))
        for column, level in enumerate((0, *levels)):
            given = data["answers"][name][levels.index(level)] if level else data["answers"]["dense"][0]
            if given is None:  # not recorded
                continue
            right = sum(said == each["answer"] for said, each in zip(given, data["questions"]))
            x = left + column * width
            parts.append(
                svg.rect(x + 2, y, width - 4, height - 4, rx=5, class_="tf-good", fill_opacity=0.06 + 0.5 * (right / n) ** 2)
            )
            parts.append(svg.text(x + width / 2, y + height / 2 + 4, str(right), 18, anchor="middle"))
    bottom = top + len(names) * height
    return svg.drawing(left + (len(levels) + 1) * width + 16, bottom + 16, *parts)


STILLS: dict[str, Callable[[dict], str]] = {"drag-to-prune": drag_to_prune}
"""Name of a figure to what draws its still from its data."""


def main() -> None:
    """Draw all."""
    for name, draw in STILLS.items():
        (figure_data.FOLDER / f"{name}.svg").write_text(draw(figure_data.read(name)))


if __name__ == "__main__":
    main()
