"""How much of what pruning lost does fine-tuning bring back, with the zeros kept? Masked LoRA on the calibration pictures.

    python tests/benchmarks/recovery.py [--models mini-llava-next smol-llava-next] [--seeds 0 1 2]

Every model and seed is a cell: prune, ask held-out questions, train :func:`tamp.masked_lora` on questions with answers from
the calibration stream, merge, save, load, ask the same questions again, count zeros. The loss is that of the answers alone.
Finished cells are kept; the same call goes on.
"""

import argparse
import itertools
import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass

import recording
import torch
from torch import Tensor

import tamp
from tamp import conversations, finetuning, records
from tamp.evaluation import scoring
from tamp.worlds import pictures

IGNORED = -100
"""Label of a token that is not predicted."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a model is pruned and trained.

    Attributes:
        benchmark: shipped set of samples and questions.
        sparsity, preset, n_samples: of pruning.
        steps, batch: of training; a conversation has one question, or all about one picture.
        turns: whether a conversation holds all questions about its picture.
        rate, rank, alpha: the largest learning rate, and the update.
        n_questions, question_seed: held-out questions.
    """

    benchmark: str
    sparsity: float
    steps: int
    batch: int
    turns: bool
    rate: float
    n_samples: int
    preset: str = "wanda"
    rank: int = 16
    alpha: float = 32.0
    n_questions: int = 200
    question_seed: int = 5


SETUPS = {
    "mini-llava-next": Setup(
        benchmark="mini-vqa", sparsity=0.7, n_samples=64, steps=80, batch=16, turns=False, rate=3e-3, n_questions=1000
    ),
    "smol-llava-next": Setup(
        benchmark="smol-vqa", sparsity=0.5, n_samples=16, steps=50, batch=2, turns=True, rate=1e-3
    ),
}


def lessons(setup: Setup, n: int, seed: int) -> list[list[records.Question]]:
    """Draw conversations of the calibration stream: one question each, or all that share a picture."""
    if not setup.turns:
        asked = pictures.questions(n, seed=seed, stream="calibration", name=setup.benchmark)
        return [[question] for question in asked]
    asked = pictures.questions(len(pictures.TASKS) * n, seed=seed, stream="calibration", name=setup.benchmark)
    groups = itertools.groupby(asked, key=lambda question: id(question.images))
    return [list(group) for _, group in groups][:n]


def labelled(processor, lesson: list[records.Question]) -> dict[str, Tensor]:
    """Return the processor's output of a conversation, with labels where its answers are."""
    messages, spans = [], []
    for number, question in enumerate(lesson):
        media = question.media if not number else {}
        messages += records.dialogue(question.text, None, **media)
        start = conversations.process(processor, messages, prompt=True)["input_ids"].shape[1]
        messages += records.dialogue("", question.answer)[1:]
        sample = conversations.process(processor, messages)
        spans.append((start, sample["input_ids"].shape[1]))
    labels = torch.full_like(sample["input_ids"], IGNORED)  # (1, T)
    for start, end in spans:
        labels[:, start:end] = sample["input_ids"][:, start:end]
    return {**sample, "labels": labels}


def train(model, processor, setup: Setup, seed: int) -> list[float]:
    """Train a masked LoRA with AdamW, the rate along a half cosine, and merge it.

    Returns:
        The loss of every step, nats per token.
    """
    torch.manual_seed(seed)
    factors = tamp.masked_lora(model, setup.rank, setup.alpha)
    optimizer = torch.optim.AdamW(factors, lr=setup.rate)
    drawn = lessons(setup, setup.steps * setup.batch, seed)
    losses = []
    model.train()
    for step in range(setup.steps):
        for group in optimizer.param_groups:
            group["lr"] = setup.rate * min(1, (step + 1) / 5) * (1 + math.cos(math.pi * step / setup.steps)) / 2
        batch = [labelled(processor, lesson) for lesson in drawn[step * setup.batch : (step + 1) * setup.batch]]
        loss = sum(_backward(model, sample, len(batch)) for sample in batch)
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(loss, 4))
    model.eval()
    tamp.merge_lora(model)
    return losses


def _backward(model, sample: dict, n: int) -> float:
    loss = model(**sample, use_cache=False).loss / n
    loss.backward()
    return loss.item()


def run(name: str, setup: Setup, seed: int) -> dict:
    """Prune, train and measure one cell."""
    model, processor = tamp.load(name, device="cpu")
    ready = scoring.prepare(processor, setup.benchmark, setup.n_questions, setup.question_seed)
    samples = tamp.calibration_set(setup.benchmark, processor, setup.n_samples, seed)
    report = tamp.prune(model, samples, tamp.Recipe.preset(setup.preset, sparsity=setup.sparsity), progress=False)
    found = {"pruned": asked(model, processor, ready)}
    start = time.process_time()  # of one thread: the machine may be shared
    losses = train(model, processor, setup, seed)
    spent = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        tamp.save(model, processor, folder + "/tuned", report=report)
        tuned, _ = tamp.load(folder + "/tuned", device="cpu")
    found["tuned"] = asked(tuned, processor, ready)
    zeros = {"pruned": report.sparsity, "tuned": finetuning.sparsity(tuned)}
    return {"seed": seed, **found, "zeros": zeros, "seconds": round(spent), "loss": [losses[0], losses[-1]]}


def asked(model, processor, ready: scoring.Benchmark) -> dict:
    """Return accuracy and likelihood on the held-out questions."""
    table = scoring.answers(model, processor, ready, progress=False)
    return {"accuracy": round(float(table["correct"].mean()), 4), "nll": round(float(table["nll"].mean()), 4)}


def table(recorded: dict) -> str:
    """Write accuracy before and after, and the zeros, per model; seeds side by side."""
    lines = [
        "| model | zeros | dense | pruned | after masked LoRA | zeros after | minutes on a core |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in recorded["models"].items():
        cells, setup = found["cells"], found["setup"]
        shown = {
            part: ", ".join(f"{100 * cell[part]['accuracy']:.1f}" for cell in cells) for part in ("pruned", "tuned")
        }
        after = sorted({f"{cell['zeros']['tuned']:.2%}" for cell in cells})
        minutes = ", ".join(f"{cell['seconds'] / 60:.0f}" for cell in cells)
        lines.append(
            f"| `{name}` | {setup['sparsity']:.0%} | {100 * found['dense']['accuracy']:.1f} | {shown['pruned']} | "
            f"{shown['tuned']} | {', '.join(after)} | {minutes} |"
        )
    questions = " and ".join(
        f"{found['setup']['n_questions']:,} (`{name}`)" for name, found in recorded["models"].items()
    )
    note = (
        f"Accuracy in %, a number per seed of calibration set and training. Pruned by Wanda; {questions} held-out "
        "questions, the same before and after."
    )
    return "\n".join([*lines, "", note])


def main(arguments: list[str] | None = None) -> dict:
    """Run what is missing, and record every cell as it is finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(SETUPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--n-questions", type=int)
    parser.add_argument("--n-samples", type=int)
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = options.out / "recovery.json"
    for name in options.models:
        changes = {
            key: value for key in ("steps", "n_questions", "n_samples") if (value := getattr(options, key)) is not None
        }
        setup = Setup(**{**asdict(SETUPS[name]), **changes})
        for seed in options.seeds:
            done = json.loads(path.read_text())["models"] if path.exists() else {}  # other models may run beside it
            found = done.get(name, {"setup": asdict(setup), "cells": []})
            if found["setup"] != asdict(setup):
                raise SystemExit(f"{path} holds {name} with another setup: move it away")
            if any(cell["seed"] == seed for cell in found["cells"]):
                continue
            if "dense" not in found:
                model, processor = tamp.load(name, device="cpu")
                ready = scoring.prepare(processor, setup.benchmark, setup.n_questions, setup.question_seed)
                found["dense"] = asked(model, processor, ready)
                del model
            cell = run(name, setup, seed)
            done = json.loads(path.read_text())["models"] if path.exists() else {}
            found["cells"] = sorted([*found["cells"], cell], key=lambda each: each["seed"])
            recording.write("recovery", {"models": {**done, name: found}}, options.out)
    return json.loads(path.read_text())


if __name__ == "__main__":
    print(table(main()))
