"""Who votes: the words' share of the sum of squares that Wanda computes, and which tokens each choice takes.

    python tests/benchmarks/votes.py

Chapters 1 and 3 show this of ``smol-llava-next`` beside the small model, which they run themselves.
"""

import argparse
from collections import defaultdict

import recording
import torch

import tamp
from tamp import conversations, models, selection, walk
from tamp.evaluation import lessons

NAME = "votes"
MODELS = ("mini-llava-next", "smol-llava-next")
CHOICES = ("text", "atv", "amia")


@torch.no_grad()
def measure(model, samples: list[dict]) -> dict:
    """Measure votes and choices over all samples, on the dense model.

    Returns:
        ``words``, their share of the tokens; ``vote`` ``{kind of linear: the words' share of the squares}``, mean over
        blocks; ``first``, the same of the first token; ``picked`` ``{choice: share of tokens taken}``; ``words_picked``
        ``{choice: share of words among those}``; ``by_block``, the share of words among AMIA's picks.
    """
    options = {name: tamp.Recipe.preset(name).options for name in CHOICES}
    taken = {name: torch.zeros(3) for name in CHOICES}  # taken, words among them, of
    vote, first, by_block, tokens = defaultdict(list), defaultdict(list), [], torch.zeros(2)
    for step in walk.walk(model, walk.capture(model, samples, progress=False), attention=True):
        squares, block = defaultdict(lambda: torch.zeros(3, dtype=torch.float64)), torch.zeros(2)
        for row in step:
            words = row.codes == models.TEXT
            tokens += torch.tensor([words.sum(), len(words)])
            for name, inputs in row.inputs.items():
                each = inputs.float().square().sum(1, dtype=torch.float64)  # (T,)
                squares[name.split(".")[-1]] += torch.stack([each[words].sum(), each[0], each.sum()])
            for name in CHOICES:
                (mask,) = selection.TOKENS[name].choose([row], options[name])
                mask = mask.expand(len(row.outputs), -1)  # (matrices, T)
                counts = torch.tensor([mask.sum(), (mask & words).sum(), mask.numel()])
                taken[name] += counts
                block += counts[:2] if name == "amia" else 0
        for name, (spoken, start, every) in squares.items():
            vote[name].append(spoken / every)
            first[name].append(start / every)
        by_block.append(round(float(block[1] / block[0]), 4))
    return {
        "words": share(tokens[0], tokens[1]),
        "vote": {name: share(sum(each), len(each)) for name, each in vote.items()},
        "first": {name: share(sum(each), len(each)) for name, each in first.items()},
        "picked": {name: share(found[0], found[2]) for name, found in taken.items()},
        "words_picked": {name: share(found[1], found[0]) for name, found in taken.items()},
        "by_block": by_block,
    }


def share(part, whole) -> float:
    """Divide, and round to a hundredth of a per cent."""
    return round(float(part / whole), 4)


def main(arguments: list[str] | None = None) -> dict:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--n-samples", type=int, default=16)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=recording.Path, default=recording.RESULTS)
    options = parser.parse_args(arguments)
    result = {"n_samples": options.n_samples, "calibration_seed": options.seed, "models": {}}
    for name in options.models:
        model, processor, _ = lessons.load(name, "cpu")
        source = conversations.OWN_SETS[name]
        samples = tamp.calibration_set(source, processor, n=options.n_samples, seed=options.seed)
        result["models"][name] = measure(model, samples)
    recording.write(NAME, result, options.out)
    return result


if __name__ == "__main__":
    main()
