"""The stills of the book's explorable figures: what shows where no script runs, with the same message.

    python tests/benchmarks/stills.py

They are drawn from the data in `book/_static/figures/`, which `tests/benchmarks/figure_data.py` writes.
"""

from collections.abc import Callable

import figure_data
import svg

from tamp import allocation


def drag_to_prune(data: dict) -> str:
    """Draw the picture beside the number of right answers of every method at every level."""
    names, levels, n = list(data["methods"]), data["levels"], len(data["questions"])
    left, top, width, height = 284, 92, 68, 40
    parts = [
        svg.text(150, 30, f"Right answers, of {n}, to questions about this", 20, font_weight=600),
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
            flags = data["right"][name][levels.index(level)] if level else data["right"]["dense"][0]
            if flags is None:  # not recorded
                continue
            right = sum(flags)
            x = left + column * width
            parts.append(
                svg.rect(
                    x + 2, y, width - 4, height - 4, rx=5, class_="tf-good", fill_opacity=0.06 + 0.5 * (right / n) ** 2
                )
            )
            parts.append(svg.text(x + width / 2, y + height / 2 + 4, str(right), 18, anchor="middle"))
    bottom = top + len(names) * height
    return svg.drawing(left + (len(levels) + 1) * width + 16, bottom + 16, *parts)


def ranking(data: dict) -> str:
    """Draw every method's place on the three models; those that the text speaks of stand out."""
    strong = ("magnitude", "wanda", "tamp", "sparsegpt")

    def x(column: int) -> float:
        return 170 + column * 200

    def y(rank: int) -> float:
        return 62 + 34 * rank

    parts = [
        svg.text(x(column), 28, each["name"], 17, anchor="middle")
        + svg.text(x(column), 50, f"{each['level']} dropped", 14, "tf-soft", "middle")
        for column, each in enumerate(data["columns"])
    ]
    for name, method in sorted(data["methods"].items(), key=lambda each: each[0] in strong):
        shown = {"stroke_width": 5 if name in strong else 2, "opacity": 1 if name in strong else 0.45}
        points = " ".join(f"{x(column)},{y(rank)}" for column, rank in enumerate(method["ranks"]))
        parts.append(svg.tag("polyline", points=points, fill="none", stroke=method["color"], **shown))
        for column, rank in enumerate(method["ranks"]):
            parts.append(
                svg.tag("circle", cx=x(column), cy=y(rank), r=7 if name in strong else 5, fill=method["color"])
            )
        weight = 700 if name in strong else None
        parts.append(
            svg.text(x(0) - 16, y(method["ranks"][0]) + 6, method["label"], 17, anchor="end", font_weight=weight)
        )
        last = method["ranks"][-1]
        parts.append(svg.text(x(2) + 16, y(last) + 6, f"{last}", 17, "tf-soft"))
    return svg.drawing(668, y(len(data["methods"])) + 26, *parts)


def plan_sliders(data: dict) -> str:
    """Draw two plans of one model below each other: with the scores of DAS, and with equal scores."""
    name = next(iter(data["models"]))
    model, target, room = data["models"][name], data["start"]["target"], data["start"]["room"]
    parts = []
    for place, (title, scores) in enumerate(
        (("scores of DAS", model["scores"]), ("equal scores", [1.0] * len(model["sizes"])))
    ):
        drops = allocation.allocate(scores, model["sizes"], target / 100, (target + room) / 100)
        left = 56 + 300 * place

        def y(share: float) -> float:
            return 270 - 210 * share

        parts.append(svg.text(left, 30, title, 19, font_weight=600))
        for share in (0, 0.5, 1):
            parts.append(svg.line(left, y(share), left + 264, y(share)))
            if not place:
                parts.append(svg.text(left - 8, y(share) + 5, f"{share:.0%}".replace("%", " %"), 15, "tf-soft", "end"))
        parts.append(
            svg.line(left, y(target / 100), left + 264, y(target / 100), "tf-accent-line", stroke_dasharray="5 4")
        )
        for number, (drop, size) in enumerate(zip(drops, model["sizes"])):
            parts.append(
                svg.tag(
                    "circle",
                    cx=left + 264 * (number + 0.5) / len(drops),
                    cy=y(drop / size),
                    r=3.4,
                    fill=data["colors"][number % len(model["kinds"])],
                )
            )
    parts.append(svg.text(56, 54, f"dropped of each linear of {name}, {target} % on average", 15, "tf-soft"))
    for number, kind in enumerate(model["kinds"]):
        x, y = 56 + 82 * number, 296
        parts.append(svg.tag("circle", cx=x + 5, cy=y - 5, r=5, fill=data["colors"][number]))
        parts.append(svg.text(x + 14, y, kind.removesuffix("_proj"), 15))
    return svg.drawing(640, 310, *parts)


def one_row(data: dict) -> str:
    """Draw the row before, and after each method."""
    parts, step, left = [], 38, 168
    most = max(abs(weight) for each in data["methods"].values() for weight in (*each["weight"], *data["weight"]))
    for place, each in enumerate(
        [{"label": "before", "weight": data["weight"], "moves": False}, *data["methods"].values()]
    ):
        middle = 52 + 92 * place
        parts.append(svg.text(16, middle, each["label"], 18, font_weight=600))
        if "error" in each:
            parts.append(svg.text(16, middle + 22, f"error {each['error']:.0%}".replace("%", " %"), 15, "tf-soft"))
        parts.append(svg.line(left, middle, left + 12 * step, middle))
        for j, (weight, before) in enumerate(zip(each["weight"], data["weight"])):
            shape = {"x": left + j * step + 5, "width": step - 10, "rx": 2}
            for value, more in (
                (before, {"class_": "tf-line"}),
                (weight, {"class_": "tf-text" if each["moves"] else "tf-ink"}),
            ):
                height = 40 * abs(value) / most
                parts.append(svg.rect(y=middle - height if value > 0 else middle, height=height, **shape, **more))
            if weight == 0:
                x = left + (j + 0.5) * step
                parts.append(svg.path(f"M{x - 6} {middle - 6}l12 12m0 -12l-12 12", "tf-accent-line", stroke_width=2.5))
    return svg.drawing(640, 52 + 92 * len(data["methods"]) + 56, *parts)


def tokens(
    data: dict, shade: Callable[[int], dict | None], words_on: Callable[[int], bool], width: float = 640
) -> tuple[str, float]:
    """Draw the words of a sample beside its picture in full and shrunk, some tokens marked; return it and its height."""
    cell, small, top = 22, 15, 52
    (down, across), (rows, columns) = data["base"], data["full"]
    second = 16 + columns * cell + 40
    parts = [
        svg.text(16, top - 12, "full view, newlines", 15, "tf-soft"),
        svg.image(16, top, columns * cell, rows * cell, data["picture"]),
        svg.text(second, top - 12, "base view", 15, "tf-soft"),
        svg.image(second, top, across * small, down * small, data["picture"]).replace(
            "<image ", '<image preserveAspectRatio="none" '
        ),
    ]
    for i in range(down * across):
        if more := shade(data["first"] + i):
            parts.append(svg.rect(second + i % across * small, top + i // across * small, small, small, **more))
    for i in range(rows * (columns + 1)):
        row, column = divmod(i, columns + 1)
        more = shade(data["first"] + down * across + i)
        if column == columns:
            more = more or {"class_": "tf-line"}
            parts.append(svg.rect(16 + columns * cell + 5, top + row * cell + 3, 9, cell - 6, rx=2, **more))
        elif more:
            parts.append(svg.rect(16 + column * cell, top + row * cell, cell, cell, **more))
    x, y, left = second + across * small + 24, top, second + across * small + 24
    visual = down * across + rows * (columns + 1)
    for number, word in enumerate(data["words"]):
        index = number if number < data["first"] else number + visual
        wide = 8.2 * len(word) + 10
        if x + wide > width - 12 or number == data["first"]:
            x, y = left, y + (30 if number != data["first"] else 46)
        parts.append(
            svg.rect(x, y - 2, wide, 24, rx=4, fill="#ffd54f" if words_on(index) else "none", class_="tf-line").replace(
                'class="tf-line"', 'style="stroke:#9aa1a9"'
            )
        )
        parts.append(svg.text(x + 5, y + 15, word, 14, "" if words_on(index) else "tf-ink"))
        x += wide + 5
    return "".join(parts), max(top + rows * cell, y + 30)


STILLS: dict[str, Callable[[dict], str]] = {
    "drag-to-prune": drag_to_prune,
    "ranking": ranking,
    "plan-sliders": plan_sliders,
    "one-row": one_row,
}
"""Name of a figure to what draws its still from its data."""


def main() -> None:
    """Draw all."""
    for name, draw in STILLS.items():
        (figure_data.FOLDER / f"{name}.svg").write_text(draw(figure_data.read(name)))


if __name__ == "__main__":
    main()
