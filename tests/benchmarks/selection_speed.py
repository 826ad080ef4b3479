"""How fast AMIA picks at full size: against its floor, and against the loop as the paper's authors released it.

    python tests/benchmarks/selection_speed.py [--tokens 2900] [--width 1024] [--rounds 7]

The floor is what any implementation must do: normalise, one u @ u.T, one topk, one exp. The released loop evaluates the
kernel between all tokens and the picked ones anew after every pick.
"""

import argparse
import math
import statistics

import recording
import torch

from tamp import diversity, selection


def example(tokens: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make clustered tokens, a peaked attention row, and a modality: 19 of 20 tokens visual, the rest text."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(8, width, generator=generator)
    outputs = centres[torch.randint(0, 8, (tokens,), generator=generator)] + torch.randn(
        tokens, width, generator=generator
    )
    attention = torch.rand(tokens, generator=generator).pow(4)
    return outputs, attention / attention.sum(), (torch.arange(tokens) >= tokens * 19 // 20).long() * 2


def floor(outputs: torch.Tensor) -> torch.Tensor:
    """Compute what every implementation has to compute."""
    units = torch.nn.functional.normalize(outputs, dim=-1)
    cosine = units @ units.T
    cosine.topk(3, dim=1)
    return cosine.exp()


def released(outputs: torch.Tensor, graph: selection.Graph, at_least: int) -> torch.Tensor:
    """Compute the picks of the released loop from a finished graph: MMD from scratch after every pick."""
    units = diversity.unit(outputs)
    gain = graph.gain[0].clone()
    whole = (graph.cosine[0] - 1).exp().fill_diagonal_(1).double().mean().item()
    picked: list[int] = []
    while len(picked) < len(gain):
        left = gain.clone()
        left[picked] = -math.inf
        best = int(left.argmax())
        picked.append(best)
        gain[graph.neighbours[0, best]] -= graph.inhibition[0, best] * gain[best].clamp(min=0)
        chosen = units[picked]
        among = (chosen @ chosen.T - 1).exp().double().mean().item()
        across = (units @ chosen.T - 1).exp().double().mean().item()
        if len(picked) >= at_least and whole + among - 2 * across < graph.bound[0]:
            break
    mask = torch.zeros(len(gain), dtype=torch.bool)
    mask[picked] = True
    return mask


def main(arguments: list[str] | None = None) -> dict:
    """Measure, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2900)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    outputs, attention, modality = example(options.tokens, options.width)
    forced = options.tokens // 5
    graph = selection.token_graph([outputs], attention, modality)
    times = recording.side_by_side(
        {
            "floor": lambda: floor(outputs),
            "amia": lambda: selection.amia(outputs, attention, modality),
            "picking 20 %": lambda: selection.pick([graph], at_least=forced),
        },
        options.rounds,
    )
    slow: list[torch.Tensor] = []
    times["released, picking 20 %"] = [recording.seconds(lambda: slow.append(released(outputs, graph, forced)))]
    fast = selection.pick([graph], at_least=forced)[0][0]
    median = {name: statistics.median(spent) for name, spent in times.items()}
    result = {
        "tokens": options.tokens,
        "width": options.width,
        "rounds": options.rounds,
        "seconds": {name: round(spent, 4) for name, spent in median.items()},
        "amia_over_floor": recording.ratio(times, "amia", "floor"),
        "released_over_picking": round(median["released, picking 20 %"] / median["picking 20 %"], 1),
        "released_over_whole": round(
            (median["floor"] + median["released, picking 20 %"]) / (median["floor"] + median["picking 20 %"]), 1
        ),
        "picked": {"stopping rule": int(selection.amia(outputs, attention, modality).sum()), "forced": int(fast.sum())},
        "same_picks": bool(torch.equal(fast, slow[0])),
        "same_picks_at_the_stopping_rule": bool(
            torch.equal(selection.amia(outputs, attention, modality), released(outputs, graph, 0))
        ),
    }
    recording.write("selection_speed", result, options.out)
    return result


if __name__ == "__main__":
    print(main())
