"""What makes real language models hard to prune: channels far larger than others, and tokens that draw attention.

python tests/benchmarks/outliers.py

Per linear, the norm over all tokens of each input channel: the largest in units of the median. Per block, the norm of the
first token's hidden state in units of the other tokens' median, and the share of the last token's attention that goes to it.
On the small model trained from nothing and on the one over a pretrained language model, with the pictures made for each.
"""

import argparse
import statistics

import recording
import torch
from matplotlib.figure import Figure

import tamp
from tamp import criteria, walk, zoo
from tamp.evaluation.figures import MODALITIES

NAME = "outliers"
MODELS = ("mini-llava-next", "smol-llava-next")


@torch.no_grad()
def measure(model, samples: list[dict]) -> dict:
    """Measure channel norms and attention in every block.

    Returns:
        ``linears`` ``{short name: [largest over median channel, per block]}``, ``first_norm`` and ``first_attention``, each
        a number per block, medians over samples.
    """
    largest: dict[str, list[float]] = {}
    first_norm, first_attention = [], []
    for step in walk.walk(model, walk.capture(model, samples, progress=False), attention=True):
        squares = {name: criteria.MeanSquare(linear.in_features) for name, linear in step.linears.items()}
        norms, shares = [], []
        for row in step:
            tokens = row.before.float().norm(dim=-1)  # (T,)
            norms.append((tokens[0] / tokens[1:].median()).item())
            shares.append(row.attention[0].item())
            for name, inputs in row.inputs.items():
                squares[name].add(inputs)
        for name, square in squares.items():
            norm = square.value().sqrt()
            largest.setdefault(name.split(".")[-1], []).append(round((norm.max() / norm.median()).item(), 2))
        first_norm.append(round(statistics.median(norms), 3))
        first_attention.append(round(statistics.median(shares), 4))
    return {"linears": largest, "first_norm": first_norm, "first_attention": first_attention}


def draw(result: dict, path) -> None:
    """Draw the models beside each other: largest channels, norm of the first token, attention to it."""
    figure = Figure(figsize=(10, 3.3), layout="constrained", facecolor="white")
    left, middle, right = figure.subplots(1, 3)
    for (name, found), color in zip(result["models"].items(), MODALITIES.values()):
        depth = len(found["first_norm"])
        blocks = [100 * place / max(1, depth - 1) for place in range(depth)]
        for linear, line in (("q_proj", "-"), ("down_proj", ":")):
            left.plot(
                blocks, found["linears"][linear], color=color, ls=line, marker=".", ms=4, label=f"{name}, {linear}"
            )
        middle.plot(blocks, found["first_norm"], color=color, marker=".", ms=4)
        right.plot(blocks, [100 * share for share in found["first_attention"]], color=color, marker=".", ms=4)
    left.set(xlabel="depth (% of blocks)", ylabel="norm of the largest channel / median", yscale="log")
    left.set_title("input channels of two linears", fontsize=9)
    middle.set(xlabel="depth (% of blocks)", ylabel="norm of the first token / median", yscale="log")
    middle.set_title("hidden state of the first token", fontsize=9)
    right.set(xlabel="depth (% of blocks)", ylabel="attention to the first token (%)", ylim=(0, None))
    right.set_title("attention of the last token", fontsize=9)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None, load=tamp.load) -> dict:
    """Measure every model, record, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--n-samples", type=int, default=16)
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    result = {"n_samples": options.n_samples, "models": {}}
    for name in options.models:
        model, processor = load(name, device="cpu")
        samples = tamp.calibration_set(zoo.MODELS[name].questions, processor, options.n_samples, seed=0)
        result["models"][name] = measure(model, samples)
    recording.write(NAME, result, options.out)
    draw(result, options.out / f"{NAME}.png")
    return result


if __name__ == "__main__":
    main()
