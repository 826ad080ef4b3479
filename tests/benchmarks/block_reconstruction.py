"""What more training of each block would add to an update, and what it costs: an experiment, not a method of the package.

    python tests/benchmarks/block_reconstruction.py

The mask stays as it is. Block by block, Adam moves the kept weights so that the block's output, from what the pruned blocks
before it feed it, comes near to the dense model's output of that block (as arXiv 2510.14444 does).
"""

import argparse
import contextlib
import copy
import time

import quality
import recording
import torch
import update_search
from torch import nn

import tamp
from tamp import models, passes
from tamp.evaluation import compare, results, scoring

NAME = "smol_update_reconstruction"
MODEL = "smol-llava-next"
LEVEL = 0.6


@torch.enable_grad()
def reconstruct(block: nn.Module, calls: list[tuple], targets: list[torch.Tensor], epochs: int, rate: float) -> None:
    """Move the kept weights of a block's matrices, in place, until its outputs come near to what they should be.

    Args:
        block: pruned; its zeros stay.
        calls: positional and keyword arguments per sample.
        targets: per sample, (1, T, d).
        epochs: how often each sample is seen.
        rate: of Adam.
    """
    before = {name: parameter.data for name, parameter in block.named_parameters()}
    block.float()
    pruned = [matrix.weight for matrix in models.linears(block).values()]
    owners = [each for each in block.parameters() if any(each.data_ptr() == weight.data_ptr() for weight in pruned)]
    kept = [owner != 0 for owner in owners]
    block.requires_grad_(False)
    for owner in owners:
        owner.requires_grad_(True)
    optimizer = torch.optim.Adam(owners, lr=rate)
    total = epochs * len(calls)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for number in torch.randperm(len(calls), generator=order).tolist():
            arguments, keywords = calls[number]
            output = block(*map(_float, arguments), **{name: _float(value) for name, value in keywords.items()})
            output = output[0] if isinstance(output, tuple) else output
            target = targets[number].float()
            ((output - target).square().mean() / target.square().mean()).backward()
            for owner, mask in zip(owners, kept):
                owner.grad.mul_(mask)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
    block.requires_grad_(False)
    for name, parameter in block.named_parameters():
        parameter.data = before[name].copy_(parameter.data)


def _float(value):
    if isinstance(value, tuple):
        return tuple(map(_float, value))
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def calls_of(model: nn.Module, block: nn.Module, samples: list[dict]) -> list[tuple]:
    """Return what a block is called with for every sample: positional and keyword arguments."""
    found = []

    def keep(module, arguments, keywords):
        found.append((arguments, keywords))
        raise passes.Done

    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        for sample in samples:
            with contextlib.suppress(passes.Done):
                model(**sample, use_cache=False)
    finally:
        handle.remove()
    return found


@torch.no_grad()
def main(arguments: list[str] | None = None) -> dict:
    """Prune, score, reconstruct, score again; return what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--method")
    parser.add_argument("--level", type=float, default=LEVEL)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--n-questions", type=int, default=200)
    parser.add_argument("--n-samples", type=int, help="number of calibration samples")
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    usual, *_ = quality.GRIDS[options.model]
    sought = update_search.SEARCHES["least_squares"].records["choose"]
    method = options.method or update_search.chosen(results.recorded(quality.name(options.model, sought)))
    seed = update_search.CONFIRM["calibration_seeds"][0]
    dense, processor = tamp.load(options.model, "cpu", usual.dtype)
    samples = tamp.calibration_set(usual.calibration, processor, options.n_samples or usual.n_samples, seed)
    asked = scoring.prepare(processor, usual.benchmark, options.n_questions, update_search.CONFIRM["question_seed"])
    facts = scoring.prepare(processor, "facts", compare.FACTS) if usual.text else None

    def scored(model: nn.Module) -> dict:
        found = compare.score(scoring.answers(model, processor, asked, progress=False))
        return found | (compare.text_scores(model, processor, facts) if facts else {})

    pruned = copy.deepcopy(dense)
    start = time.perf_counter()
    tamp.prune(pruned, samples, tamp.Recipe.spelled(method, options.level), progress=False)
    cells = [{"step": "update", "seconds": round(time.perf_counter() - start, 1), **scored(pruned)}]
    start = time.perf_counter()
    for name, block in models.blocks(pruned).items():
        whole = models.blocks(dense)[name]
        outputs = (whole(*given, **keywords) for given, keywords in calls_of(dense, whole, samples))
        targets = [output[0] if isinstance(output, tuple) else output for output in outputs]
        reconstruct(block, calls_of(pruned, block, samples), targets, options.epochs, options.rate)
    cells.append({"step": "reconstruction", "seconds": round(time.perf_counter() - start, 1), **scored(pruned)})
    sparsity = sum(int((m.weight == 0).sum()) for m in models.all_linears(pruned).values())
    result = {
        "model": options.model,
        "method": method,
        "level": options.level,
        "n_samples": len(samples),
        "epochs": options.epochs,
        "rate": options.rate,
        "n_questions": options.n_questions,
        "exact_sparsity": sparsity / sum(m.weight.numel() for m in models.all_linears(pruned).values()),
        "cells": cells,
    }
    recording.write(NAME, result, options.out)
    return result


def table(record: dict) -> str:
    """Write scores and seconds before and after."""
    lines = ["| | accuracy % | answer NLL | perplexity | seconds |", "|---|---|---|---|---|"]
    for cell, name in zip(record["cells"], (f"`{record['method']}`", "then reconstruction")):
        lines.append(
            f"| {name} | {100 * cell['accuracy']:.1f} | {cell['nll']:.2f} | {cell['documentation']:.0f} | "
            f"{cell['seconds']:.0f} |"
        )
    note = (
        f"`{record['model']}` at {100 * record['level']:.0f} %, {record['n_questions']} questions, {record['n_samples']} "
        f"samples, {record['epochs']} epochs, one run."
    )
    return "\n".join([*lines, "", note])


if __name__ == "__main__":
    for cell in main()["cells"]:
        print({name: value for name, value in cell.items() if name != "correct"})
