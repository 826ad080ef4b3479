"""The stills of the book's explorable figures: what shows where no script runs, with the same message.

    python tests/benchmarks/stills.py [--shared]

They are drawn from the data in `book/_static/figures/`, which `tests/benchmarks/figure_data.py` writes. With ``--shared``
the picture that a shared link shows is made too, by chromium.
"""

import argparse
import base64
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import figure_data
import numpy as np
import svg

from tamp import allocation


def drag_to_prune(data: dict) -> str:
    """Draw the picture beside the number of right answers of every method at every level."""
    names, levels, n = list(data["methods"]), data["levels"], len(data["questions"])
    left, top, width, height = 284, 92, 68, 40
    parts = [
        svg.text(150, 30, f"Right answers, of {n}", 20, font_weight=600),
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
                parts.append(svg.text(left + (column + 0.5) * width, y + height / 2 + 4, "–", 18, "tf-soft", "middle"))
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
        + svg.text(x(column), 50, f"{each['level']} dropped", 15, "tf-soft", "middle")
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
    parts, step, left = [], 37, 182
    most = max(abs(weight) for each in data["methods"].values() for weight in (*each["weight"], *data["weight"]))
    for place, each in enumerate(
        [{"label": "before", "weight": data["weight"], "moves": False}, *data["methods"].values()]
    ):
        middle = 52 + 92 * place
        parts.append(svg.text(16, middle, each["label"], 17, font_weight=600))
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
    cell, small, top = 22, 15, 64
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
        wide = 8.4 * len(word) + 11
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


def who_votes(data: dict) -> str:
    """Draw the tokens that resemble one patch of the background, and the words' share of the vote."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(data["alike"]), np.uint8))
    (down, across), (rows, columns) = data["base"], data["full"]
    n = len(data["words"]) + down * across + rows * (columns + 1)
    alike = bits[: n * n].reshape(n, n)[data["start"]]

    def shade(token: int) -> dict | None:
        if token == data["start"]:
            return {"fill": "#ffd54f", "stroke": "#ff3d00", "stroke_width": 3}
        return {"fill": "#ffd54f", "fill_opacity": 0.6} if alike[token] else None

    drawn, bottom = tokens(data, shade, lambda token: bool(alike[token]))
    parts = [svg.text(16, 24, f"{alike.sum() - 1} of {n - 1} tokens resemble this patch", 19, font_weight=600), drawn]
    y = bottom + 34
    parts.append(svg.text(16, y, "what the words have", 17, "tf-soft"))
    bars = [
        ("of the tokens", data["tokens"]),
        *((f"of the vote: {', '.join(each['linears'])}", each["share"]) for each in data["shares"]),
    ]
    for place, (label, share) in enumerate(bars):
        top = y + 14 + 28 * place
        parts.append(svg.text(16, top + 16, label, 17))
        parts.append(svg.rect(230, top, 320, 20, rx=4, class_="tf-visual"))
        parts.append(svg.rect(230, top, 320 * share, 20, rx=4, class_="tf-text"))
        parts.append(svg.text(562, top + 16, f"{100 * share:.1f} %", 17))
    return svg.drawing(640, y + 30 + 28 * len(bars), *parts)


def step_through_picks(data: dict) -> str:
    """Draw all picks, numbered where there is room, and the distance after each."""
    order = {token: place + 1 for place, token in enumerate(data["picks"])}

    def shade(token: int) -> dict | None:
        if token in order:
            return {"fill": "#ffd54f", "fill_opacity": 0.75, "stroke": "#ff3d00", "stroke_width": 1.5}
        heat = data["attention"][token]
        return {"fill": "#fff", "fill_opacity": 0.75 * heat / 100} if heat > 3 else None

    drawn, bottom = tokens(data, shade, lambda token: token in order)
    words = sum(
        not data["first"] <= token < data["first"] + len(data["attention"]) - len(data["words"]) for token in order
    )
    title = f"{len(order)} of {len(data['attention'])} tokens picked, {words} of them words"
    parts = [svg.text(16, 24, title, 19, font_weight=600), drawn]
    top, most = bottom + 40, max(data["mmd"])

    def at(place: int, value: float) -> tuple[float, float]:
        return 40 + 560 * place / max(1, len(data["mmd"]) - 1), top + 110 - 100 * value / most

    parts.append(svg.text(16, top - 12, "distance of the picks to all tokens, after each pick", 17, "tf-soft"))
    bound = at(0, data["bound"])[1]
    parts.append(svg.line(40, bound, 600, bound, "tf-accent-line", stroke_dasharray="5 4", stroke_width=2))
    parts.append(svg.text(604, bound - 6, "enough", 16, anchor="end"))
    points = [at(place, value) for place, value in enumerate(data["mmd"])]
    parts.append(
        svg.tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_="tf-stroke", stroke_width=2)
    )
    parts += [svg.tag("circle", cx=x, cy=y, r=4, class_="tf-ink") for x, y in points]
    return svg.drawing(640, top + 130, *parts)


def clip_picks(data: dict) -> str:
    """Draw the clip's frames and sound with the picks on them, without and with padding."""
    parts, top, width, high = [], 0, 608, 96
    frame = width / data["times"]
    titles = {"plain": "the sound as it is", "paper": "as published: eight pieces of it, then silence up to 30 s"}
    for policy, found in data["policies"].items():
        total = sum(found["picks"].values())
        kinds = [kind for kind in found["picks"] if found["tokens"][kind]]
        said = ", ".join(f"{100 * found['picks'][kind] / total:.0f} % {kind}" for kind in kinds)
        parts.append(svg.text(16, top + 26, titles[policy], 18, font_weight=600))
        parts.append(svg.text(16, top + 48, f"picked: {said}", 16, "tf-soft"))
        most, first = max(*found["seen"], *found["hear"]), top + 58
        marks, second = [], first
        if policy == "plain":
            parts.append(svg.image(16, first, width, frame, data["strip"]))
            second, cell = first + frame + 8, frame / data["edge"]
            for i, picks in enumerate(found["seen"]):
                time, at = divmod(i, data["edge"] ** 2)
                marks.append(
                    (16 + time * frame + at % data["edge"] * cell, first + at // data["edge"] * cell, cell, cell, picks)
                )
        parts.append(svg.image(16, second, width, high, found["sound"]))
        step, band = width * data["heights"] / len(found["hear"]), high / data["heights"]
        for i, picks in enumerate(found["hear"]):
            time, height = divmod(i, data["heights"])
            marks.append((16 + time * step, second + high - (height + 1) * band, step, band, picks))
        for x, y, wide, tall, picks in marks:
            if picks > most / 12:
                parts.append(svg.rect(x, y, wide, tall, fill="#ffd54f", opacity=round(0.9 * picks / most, 1)))
        top = second + high + 10
    return svg.drawing(640, top + 8, "".join(parts).replace("<image ", '<image preserveAspectRatio="none" '))


STILLS: dict[str, Callable[[dict], str]] = {
    "drag-to-prune": drag_to_prune,
    "who-votes": who_votes,
    "plan-sliders": plan_sliders,
    "step-through-picks": step_through_picks,
    "one-row": one_row,
    "ranking": ranking,
    "clip-picks": clip_picks,
}
"""Name of a figure to what draws its still from its data."""


def shared() -> None:
    """Write `shared.png`, 1200 by 630 pixels: the title of the book and its first figure."""
    still = (figure_data.FOLDER / "drag-to-prune.svg").as_uri()
    page = (
        "<body style='margin:0;background:#fff;font:600 44px system-ui,sans-serif;color:#1f2328;display:flex;height:630px;"
        "flex-direction:column;align-items:center;justify-content:center;gap:26px'>Pruning multimodal language models"
        f"<img src='{still}' style='height:440px'></body>"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "page.html")
        path.write_text(page)
        out = f"--screenshot={figure_data.FOLDER.parent / 'shared.png'}"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,630"]
        subprocess.run(["chromium", *flags, out, path.as_uri()], check=True, capture_output=True)


def main(arguments: list[str] | None = None) -> None:
    """Draw all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--shared", action="store_true", help="make the picture of a shared link too, which needs chromium"
    )
    options = parser.parse_args(arguments)
    for name, draw in STILLS.items():
        (figure_data.FOLDER / f"{name}.svg").write_text(draw(figure_data.read(name)))
    if options.shared:
        shared()


if __name__ == "__main__":
    main()
