"""The drawings of the book, `book/_static/figures/draw-*.svg`.

python tests/benchmarks/drawings.py
"""

import math
from collections.abc import Callable

import figure_data
import svg

LINEARS = ("q", "k", "v", "o"), ("gate", "up", "down")


def box(x: float, y: float, width: float, height: float, words: str, class_: str = "tf-panel", size: float = 16) -> str:
    """Draw a box with words in its middle."""
    frame = svg.rect(x, y, width, height, rx=6, class_=class_, style="stroke:#9aa1a9")
    return frame + svg.text(x + width / 2, y + height / 2 + size * 0.35, words, size, anchor="middle")


def pruned(x: float, y: float, width: float, height: float, words: str) -> str:
    """Draw a linear that pruning acts on."""
    frame = svg.rect(x, y, width, height, rx=5, class_="tf-accent", fill_opacity=0.16)
    edge = svg.rect(x, y, width, height, rx=5, class_="tf-accent-line", stroke_width=2)
    return frame + edge + svg.text(x + width / 2, y + height / 2 + 6, words, 16, anchor="middle")


def strip(x: float, y: float, counts: dict[str, int], size: float = 13) -> str:
    """Draw tokens in a row, by class of their colour."""
    parts = []
    for class_, count in counts.items():
        for _ in range(count):
            parts.append(svg.rect(x, y, size - 3, size - 3, rx=2, class_=class_))
            x += size
    return "".join(parts)


def architecture() -> str:
    """Where pruning acts: the linear layers of the language model's blocks."""
    data = figure_data.read("drag-to-prune")
    parts = [
        svg.image(20, 24, 62, 124, data["picture"]),
        svg.arrow(86, 86, 106, 86),
        box(108, 56, 92, 60, ""),
        svg.lines(154, 82, ["vision", "tower"], size=16, anchor="middle"),
        svg.arrow(202, 86, 222, 86),
        box(224, 62, 92, 48, "projector"),
        svg.path("M318 86h22v186h-16", stroke_width=1.6),
        svg.lines(20, 196, ["“Is the purple object above", "or below the diamond?”"], size=15),
        svg.arrow(110, 224, 110, 250),
        svg.path("M326 266l-8 6l8 6", stroke_width=1.6),
        strip(20, 266, {"tf-text": 4, "tf-visual": 15, "tf-text tf-more": 4}),
        svg.text(20, 304, "one sequence: words and picture", 15, "tf-soft"),
        svg.path("M170 312v40h194", stroke_width=1.6),
        svg.path("M356 346l8 6l-8 6", stroke_width=1.6),
        svg.rect(384, 30, 240, 346, rx=10, class_="tf-panel"),
        svg.rect(372, 42, 240, 346, rx=10, class_="tf-panel", style="stroke:#9aa1a9"),
        svg.text(388, 70, "block 1 of 30", 17, font_weight=600),
        svg.text(388, 104, "attention", 16, "tf-soft"),
        svg.text(388, 226, "MLP", 16, "tf-soft"),
    ]
    for place, name in enumerate(LINEARS[0]):
        parts.append(pruned(388 + 53 * place, 116, 46, 60, name))
    for place, name in enumerate(LINEARS[1]):
        parts.append(pruned(388 + 71 * place, 238, 62, 84, name))
    parts.append(svg.text(388, 362, "all else stays as it is", 15, "tf-soft"))
    parts.append(svg.rect(20, 364, 22, 18, rx=4, class_="tf-accent-line", stroke_width=2))
    parts.append(svg.text(50, 379, "linear layers: pruned here", 16, font_weight=600))
    return svg.drawing(640, 404, *parts)


def row() -> str:
    """What one row of a weight matrix loses: the smallest products of weight and input."""
    data = figure_data.read("one-row")
    weight, norm, dropped = data["weight"], data["norm"], data["methods"]["wanda"]["dropped"]
    left, step = 150, 40
    products = [abs(w) * n for w, n in zip(weight, norm)]
    parts = [
        svg.lines(16, 50, ["inputs: norm", "over tokens"], size=15, class_="tf-soft"),
        svg.lines(16, 160, ["one row of", "weights: size"], size=15, class_="tf-soft"),
        svg.lines(16, 270, ["product"], size=15, font_weight=600),
        svg.lines(16, 350, ["what stays"], size=15, font_weight=600),
    ]
    for values, bottom, class_ in (
        (norm, 90, "tf-visual"),
        (map(abs, weight), 200, "tf-ink"),
        (products, 300, "tf-text"),
    ):
        values = list(values)
        for j, value in enumerate(values):
            height = max(1.5, 70 * value / max(values))
            faint = 0.35 if class_ == "tf-text" and dropped[j] else None
            parts.append(
                svg.rect(left + j * step + 7, bottom - height, step - 14, height, rx=2, class_=class_, opacity=faint)
            )
        parts.append(svg.line(left, bottom, left + 12 * step, bottom))
    for j, gone in enumerate(dropped):
        x = left + j * step
        parts.append(
            svg.rect(x + 4, 326, step - 8, step - 8, rx=4, class_="tf-line" if gone else "tf-ink", stroke_width=1.5)
        )
        if gone:
            parts.append(svg.path(f"M{x + 12} {334}l16 16m0 -16l-16 16", "tf-accent-line", stroke_width=2.5))
    parts.append(svg.text(left, 392, "In every row, the half with the smallest products goes.", 16))
    return svg.drawing(640, 410, *parts)


def walk() -> str:
    """Block by block: look at the inputs, prune, run again, and hand on what the pruned block gives."""
    parts = []
    for place, (title, state) in enumerate((("block 1", "done"), ("block 2", "now"), ("block 3", "waits"))):
        x = 84 + 186 * place
        class_ = "tf-accent-line" if state == "now" else "tf-line"
        parts.append(svg.rect(x, 60, 130, 120, rx=8, class_="tf-panel"))
        parts.append(svg.rect(x, 60, 130, 120, rx=8, class_=class_, stroke_width=2.5))
        parts.append(svg.text(x + 65, 48, title, 17, anchor="middle", font_weight=600))
        for i in range(5):
            for j in range(6):
                gone = state == "done" and (5 * i + 3 * j + i * j * j) % 4 in (0, 3)
                look = {"class_": "tf-line"} if gone else {"class_": "tf-ink", "fill_opacity": 0.75}
                parts.append(svg.rect(x + 14 + 18 * j, 74 + 18 * i, 13, 13, rx=2, **look))
        parts.append(svg.arrow(x - 42, 120, x - 6, 120))
        words = {"done": "half are zero", "now": "dense, watched", "waits": "dense"}[state]
        parts.append(svg.text(x + 65, 202, words, 15, "tf-soft", "middle"))
    for place in range(3):
        parts.append(strip(42 + 186 * place, 98, {"tf-text": 1, "tf-visual": 2}, 11))
    said = (
        ("1", "Run the dense block. Watch what enters each linear."),
        ("2", "Choose the weights that go, from those inputs. Set them to zero."),
        ("3", "Run the pruned block again. What it gives enters the next block."),
    )
    for place, (number, words) in enumerate(said):
        y = 246 + 34 * place
        parts.append(svg.tag("circle", cx=30, cy=y - 5, r=13, class_="tf-accent", fill_opacity=0.2))
        parts.append(svg.text(30, y, number, 16, anchor="middle", font_weight=600))
        parts.append(svg.text(54, y, words, 17))
    return svg.drawing(640, 334, *parts)


def neighbours() -> str:
    """The graph on the picture: patches of the full view, joined to those of their three neighbours that are in it too."""
    data = figure_data.read("step-through-picks")
    (down, across), (rows, columns), cell = data["base"], data["full"], 26
    first = data["first"] + down * across

    def place(token: int) -> tuple[float, float] | None:
        at, column = divmod(token - first, columns + 1)
        if not 0 <= at < rows or column == columns:
            return None
        return 16 + (column + 0.5) * cell, 16 + (at + 0.5) * cell

    visual = range(data["first"], first + rows * (columns + 1))
    edges = [(i, j) for i, joined in enumerate(data["neighbours"]) for j in joined]
    within = sum((i in visual) == (j in visual) for i, j in edges) / len(edges)
    parts = [svg.image(16, 16, columns * cell, rows * cell, data["picture"])]
    drawn = {tuple(sorted((place(i), place(j)))) for i, j in edges if place(i) and place(j)}
    for (x1, y1), (x2, y2) in sorted(drawn):
        parts.append(svg.tag("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke="#ffd54f", stroke_width=1.3, opacity=0.75))
    heat = data["attention"]
    for token in visual:
        if at := place(token):
            parts.append(svg.tag("circle", cx=at[0], cy=at[1], r=2.2 + heat[token] / 14, fill="#fff"))
    x = 16 + columns * cell + 30
    parts += [
        svg.lines(
            x,
            60,
            ["A dot is a patch of the picture.", "Its size is the attention that the", "last token pays to it."],
            24,
            size=17,
        ),
        svg.lines(x, 164, ["A line joins a patch to one of the", "three tokens most like it."], 24, size=17),
        svg.lines(
            x,
            244,
            [f"{within:.0%} of all lines join two picture".replace("%", " %"), "tokens, or two words."],
            24,
            size=17,
        ),
        svg.lines(
            x,
            324,
            ["Attention is passed along the lines:", "patches that look like attended ones", "gain too."],
            24,
            size=17,
        ),
    ]
    return svg.drawing(640, 32 + rows * cell, *parts)


def update() -> str:
    """Why updating helps: what remains of a row can do part of what a dropped weight did."""
    parts = []
    panels = (
        ("two weights", "two inputs add up"),
        ("second is dropped", "error: all that it did"),
        ("first is updated", "error: at a right angle"),
    )
    for place, (title, words) in enumerate(panels):
        x, y = 30 + 208 * place, 214
        one, both = (96, -22), (150, -112)
        parts.append(svg.text(x - 14, 30, title, 17, font_weight=600))
        parts.append(svg.text(x - 14, 268, words, 15, "tf-soft"))
        end = (x + both[0], y + both[1])
        scale = (one[0] * both[0] + one[1] * both[1]) / (one[0] ** 2 + one[1] ** 2)
        reach = scale if place == 2 else 1
        tip = (x + reach * one[0], y + reach * one[1])
        parts.append(svg.arrow(x, y, *tip, "tf-text-line", 9, stroke_width=3.5))
        if place == 0:
            parts.append(svg.arrow(*tip, *end, "tf-visual-line", 9, stroke_width=3.5))
        else:
            parts.append(svg.line(*tip, *end, "tf-accent-line", stroke_width=2.5, stroke_dasharray="5 4"))
            parts.append(
                svg.text(
                    (tip[0] + end[0]) / 2 + (8 if place == 1 else -10),
                    (tip[1] + end[1]) / 2 + 4,
                    "error",
                    15,
                    "tf-accent",
                    None if place == 1 else "end",
                )
            )
        parts.append(svg.arrow(x, y, *end, "tf-stroke", 9, stroke_width=2))
        parts.append(svg.text(end[0] - 22, end[1] - 8, "output", 15))
        parts.append(
            svg.text(
                x + reach * one[0] * 0.5 - 6,
                y + reach * one[1] * 0.5 + 24,
                "first" if place < 2 else "first, longer",
                15,
                "tf-text",
            )
        )
        if place == 0:
            parts.append(svg.text(tip[0] + 34, tip[1] - 34, "second", 15, "tf-visual"))
    return svg.drawing(640, 288, *parts)


def experts() -> str:
    """Experts: each sees only the tokens that the router sends to it, and whole ones can go."""
    names = [
        (110, "tf-text", 3),
        (214, "tf-visual", 6),
        (318, "tf-visual", 1),
        (422, "tf-text", 2),
        (526, "tf-visual", 4),
    ]
    parts = [
        strip(110, 24, {"tf-text": 6, "tf-visual": 18, "tf-text tf-more": 4}, 18),
        svg.text(16, 38, "tokens", 16),
        box(250, 66, 130, 40, "router"),
        svg.arrow(315, 44, 315, 64),
        svg.text(16, 176, "experts", 16),
        svg.text(16, 278, "tokens", 15, "tf-soft"),
        svg.text(16, 296, "seen", 15, "tf-soft"),
    ]
    for x, class_, count in names:
        gone = count == 1
        parts.append(svg.arrow(315, 108, x + 42, 138, "tf-line" if gone else "tf-stroke"))
        parts.append(
            pruned(x, 142, 84, 90, "")
            if not gone
            else svg.rect(x, 142, 84, 90, rx=5, class_="tf-line", stroke_dasharray="5 4", stroke_width=2)
        )
        for line, label in enumerate(("gate", "up", "down")):
            parts.append(svg.text(x + 42, 168 + 25 * line, label, 16, "tf-soft" if gone else "tf-ink", "middle"))
        if gone:
            parts.append(svg.path(f"M{x + 8} 150l68 74m0 -74l-68 74", "tf-accent-line", stroke_width=2.5))
        parts.append(strip(x + 4, 274, {class_: count}, 13))
    parts.append(svg.text(16, 334, "An expert's inputs are the tokens sent to it: few tokens, little evidence.", 17))
    parts.append(svg.text(16, 360, "An expert that matters little can go as a whole.", 17))
    return svg.drawing(640, 378, *parts)


def coding() -> str:
    """A pruned row as a compact file holds it: a bit per weight, and codes of the kept ones."""
    data = figure_data.read("one-row")
    weight, dropped = data["weight"], data["methods"]["wanda"]["dropped"]
    left, step, most = 112, 42, max(map(abs, weight))
    exponents = [math.frexp(value)[1] for value, gone in zip(weight, dropped) if not gone]
    frequent = sorted(set(exponents), key=lambda each: (-exponents.count(each), -each))
    codes = ["0", "10", "110", "111"] if len(frequent) > 2 else ["0", "1"]
    parts = [
        svg.lines(16, 40, ["one row,", "pruned"], size=16),
        svg.text(16, 146, "kept?", 16),
        svg.lines(16, 216, ["the kept", "ones"], size=16),
    ]
    kept = 0
    for j, (value, gone) in enumerate(zip(weight, dropped)):
        x = left + j * step
        look = {"class_": "tf-line"} if gone else {"class_": "tf-ink"}
        height = 3 if gone else 52 * abs(value) / most
        parts.append(svg.rect(x + 8, 56 - height if value > 0 or gone else 56, step - 16, height, rx=2, **look))
        parts.append(svg.text(x + step / 2, 146, "01"[not gone], 19, "tf-soft" if gone else "tf-ink", "middle"))
        if gone:
            continue
        at, short = left + 86 * kept, codes[min(frequent.index(math.frexp(value)[1]), len(codes) - 1)]
        parts.append(svg.path(f"M{x + step / 2} 156L{at + 39} 194", "tf-line", stroke_width=1.6))
        parts.append(svg.rect(at, 198, 12 * len(short) + 6, 30, rx=4, class_="tf-accent", fill_opacity=0.25))
        parts.append(svg.text(at + 6 * len(short) + 3, 219, short, 16, anchor="middle"))
        parts.append(svg.rect(at + 12 * len(short) + 8, 198, 32, 30, rx=4, class_="tf-text", fill_opacity=0.25))
        parts.append(svg.text(at + 12 * len(short) + 24, 219, "8", 16, anchor="middle"))
        kept += 1
    parts.append(svg.line(left, 56, left + 12 * step, 56))
    said = (
        (None, "one bit per weight says which are kept"),
        ("tf-accent", "code of the exponent: the more frequent, the shorter"),
        ("tf-text", "sign and mantissa: eight bits, as they are"),
    )
    for place, (class_, words) in enumerate(said):
        y = 270 + 30 * place
        if class_:
            parts.append(svg.rect(left, y - 14, 24, 18, rx=4, class_=class_, fill_opacity=0.25))
        else:
            parts.append(svg.text(left + 12, y, "01", 16, anchor="middle"))
        parts.append(svg.text(left + 36, y, words, 17))
    return svg.drawing(640, 346, *parts)


def onload() -> str:
    """One block at a time: all blocks in the host's memory, one on the GPU, the next one on its way, the states beside."""
    parts = [
        svg.rect(16, 38, 306, 222, rx=10, class_="tf-panel"),
        svg.text(30, 28, "host memory", 17, font_weight=600),
        svg.rect(404, 38, 220, 222, rx=10, class_="tf-panel"),
        svg.text(418, 28, "GPU", 17, font_weight=600),
        svg.text(30, 62, "weights of all blocks", 15, "tf-soft"),
        svg.text(30, 204, "states of all samples", 15, "tf-soft"),
    ]
    for place in range(8):
        x, y = 30 + 72 * (place % 4), 74 + 54 * (place // 4)
        class_ = "tf-accent-line" if place in (3, 4) else "tf-line"
        parts.append(svg.rect(x, y, 62, 44, rx=5, class_="tf-ground"))
        parts.append(svg.rect(x, y, 62, 44, rx=5, class_=class_, stroke_width=2))
        parts.append(svg.text(x + 31, y + 28, f"{place + 1}", 17, anchor="middle"))
        if place < 3:  # zeros
            parts += [svg.rect(x + 5 + 11 * i, y + 34, 8, 6, rx=1, class_="tf-line") for i in range(5)]
    for row in range(2):
        parts.append(strip(30, 216 + 16 * row, {"tf-text": 3, "tf-visual": 13, "tf-text tf-more": 4}, 13))
    parts += [
        svg.path("M312 96h106", "tf-accent-line", stroke_width=1.6),
        svg.path("M412 90l8 6l-8 6", "tf-accent-line", stroke_width=1.6),
        svg.rect(424, 74, 180, 44, rx=5, class_="tf-ground"),
        svg.rect(424, 74, 180, 44, rx=5, class_="tf-accent-line", stroke_width=2.5),
        svg.text(514, 102, "block 4, computed", 16, anchor="middle"),
        svg.path("M92 172v10h320v-32h6", "tf-accent-line", stroke_width=1.6, stroke_dasharray="5 4"),
        svg.path("M412 144l8 6l-8 6", "tf-accent-line", stroke_width=1.6),
        svg.rect(424, 128, 180, 44, rx=5, class_="tf-accent-line", stroke_width=1.6, stroke_dasharray="5 4"),
        svg.text(514, 156, "block 5, on its way", 16, anchor="middle"),
        svg.text(424, 204, "states of one sample", 15, "tf-soft"),
        strip(424, 224, {"tf-text": 2, "tf-visual": 9, "tf-text tf-more": 3}, 13),
        svg.arrow(330, 222, 396, 222),
        svg.arrow(396, 238, 330, 238),
    ]
    parts.append(svg.text(16, 296, "Blocks 1 to 3 are pruned and on disk, so a stopped run can go on.", 17))
    parts.append(svg.text(16, 322, "If the GPU has room, the states of all samples wait there.", 17))
    return svg.drawing(640, 340, *parts)


DRAWINGS: dict[str, Callable[[], str]] = {
    "draw-architecture": architecture,
    "draw-row": row,
    "draw-walk": walk,
    "draw-neighbours": neighbours,
    "draw-update": update,
    "draw-experts": experts,
    "draw-coding": coding,
    "draw-onload": onload,
}
"""Name to what draws it."""


def main() -> None:
    """Draw all."""
    for name, draw in DRAWINGS.items():
        (figure_data.FOLDER / f"{name}.svg").write_text(draw())


if __name__ == "__main__":
    main()
