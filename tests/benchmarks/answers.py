"""What pruned models answer in words: one picture, eight questions, every method and level of the figure "drag to prune".

    python tests/benchmarks/answers.py

Same model, samples and questions as in `smol_quality.json`, so the right and wrong answers are those of that grid. Finished
cells are not run again, so the command can be stopped and given again. `tests/benchmarks/figure_data.py` makes the figure.
"""

import argparse
import copy
from collections.abc import Sequence

import recording
import torch

import tamp
from tamp import conversations, models

MODEL, BENCHMARK = "smol-llava-next", "smol-vqa"
REPAIR = "atv:update=admm,update_damping=0.01"
METHODS = ("magnitude", "wanda", "tamp", "sparsegpt", REPAIR)
LEVELS = (0.5, 0.6, 0.4, 0.3)
"""The most informative first."""
N_SAMPLES, CALIBRATION_SEED = 16, 0
N_QUESTIONS, QUESTION_SEED = 8, 7


def asked(n: int = N_QUESTIONS) -> list[conversations.Question]:
    """Return the example of the book: the questions about the first picture of the evaluation set."""
    return conversations.questions(BENCHMARK, n, seed=QUESTION_SEED)


@torch.no_grad()
def ask(model, processor, question: conversations.Question) -> str:
    """Let a model answer in its own words, greedily."""
    messages = conversations.dialogue(question.text, None, **question.media)
    prompt = models.to_model(model, conversations.process(processor, messages, prompt=True))
    written = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    return processor.batch_decode(written[:, prompt["input_ids"].shape[1] :], skip_special_tokens=True)[0]


def answers_of(recorded: dict, method: str, level: float) -> list[str] | None:
    """Return what a method answered at a level; None if that is not recorded."""
    found = (cell for cell in recorded["cells"] if (cell["method"], cell["level"]) == (method, level))
    return next((cell["answers"] for cell in found), None)


def right(recorded: dict, given: Sequence[str]) -> list[bool]:
    """Check answers as evaluation does: exactly right or wrong."""
    return [said == each["answer"] for said, each in zip(given, recorded["questions"], strict=True)]


def main(arguments: list[str] | None = None) -> dict:
    """Run the cells that are missing, and return all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-questions", type=int, default=N_QUESTIONS, help="number of questions")
    parser.add_argument("--n-samples", type=int, default=N_SAMPLES, help="number of calibration samples")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--levels", nargs="+", type=float, default=LEVELS)
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path, help="folder to write to")
    options = parser.parse_args(arguments)
    questions = asked(options.n_questions)
    recorded = {
        "model": MODEL,
        "benchmark": BENCHMARK,
        "n_samples": options.n_samples,
        "calibration_seed": CALIBRATION_SEED,
        "question_seed": QUESTION_SEED,
        "dtype": "bfloat16",
        "questions": [{"task": each.task, "question": each.text, "answer": each.answer} for each in questions],
        "cells": recording.cells(options.out / "answers.json"),
    }
    wanted = [("dense", 0.0), *((method, level) for level in options.levels for method in options.methods)]
    missing = [key for key in wanted if answers_of(recorded, *key) is None]
    if missing:
        model, processor = tamp.load(MODEL, device="cpu", dtype="bfloat16")
        samples = tamp.calibration_set(BENCHMARK, processor, options.n_samples, CALIBRATION_SEED)
    for method, level in missing:
        pruned = copy.deepcopy(model)
        if method != "dense":
            tamp.prune(pruned, samples, tamp.Recipe.spelled(method, level), progress=False)
        given = [ask(pruned, processor, question) for question in questions]
        recorded["cells"].append({"method": method, "level": level, "answers": given})
        recording.write("answers", recorded, options.out)
    return recorded


if __name__ == "__main__":
    main()
