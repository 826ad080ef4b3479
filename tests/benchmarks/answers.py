"""What pruned models answer: the first picture of the recorded grid's questions, in words.

    python tests/benchmarks/answers.py

Same model, samples, level and questions as in `smol_quality.json`, so its right and wrong answers are those of that grid.
`tests/benchmarks/pages.py` draws them.
"""

import argparse
import copy
import textwrap
from collections.abc import Sequence

import recording
import torch
from matplotlib.figure import Figure

import tamp
from tamp import conversations, models
from tamp.evaluation import figures, results

MODEL, BENCHMARK = "smol-llava-next", "smol-vqa"
METHODS = ("magnitude", "wanda", "tamp", "sparsegpt")
LEVEL, N_SAMPLES, CALIBRATION_SEED = 0.5, 16, 0
N_QUESTIONS, QUESTION_SEED = 8, 7
WRONG = "#b3261e"


@torch.no_grad()
def ask(model, processor, question: conversations.Question) -> str:
    """Let a model answer in its own words, greedily."""
    messages = conversations.dialogue(question.text, None, **question.media)
    prompt = models.to_model(model, conversations.process(processor, messages, prompt=True))
    written = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    return processor.batch_decode(written[:, prompt["input_ids"].shape[1] :], skip_special_tokens=True)[0]


def record(n_questions: int = N_QUESTIONS, n_samples: int = N_SAMPLES, methods: Sequence[str] = METHODS) -> dict:
    """Prune by every method, ask, and return what is recorded."""
    model, processor = tamp.load(MODEL, device="cpu", dtype="bfloat16")
    asked = conversations.questions(BENCHMARK, n_questions, seed=QUESTION_SEED)
    samples = tamp.calibration_set(BENCHMARK, processor, n_samples, CALIBRATION_SEED)
    answers = {"dense": [ask(model, processor, question) for question in asked]}
    for method in methods:
        pruned = copy.deepcopy(model)
        tamp.prune(pruned, samples, tamp.Recipe.preset(method, sparsity=LEVEL), progress=False)
        answers[method] = [ask(pruned, processor, question) for question in asked]
    return {
        "model": MODEL,
        "benchmark": BENCHMARK,
        "level": LEVEL,
        "n_samples": n_samples,
        "calibration_seed": CALIBRATION_SEED,
        "question_seed": QUESTION_SEED,
        "dtype": "bfloat16",
        "questions": [{"task": each.task, "question": each.text, "answer": each.answer} for each in asked],
        "answers": answers,
    }


def right(recorded: dict, method: str) -> list[bool]:
    """Check the answers of a method, as evaluation does: exactly right or wrong."""
    return [given == each["answer"] for given, each in zip(recorded["answers"][method], recorded["questions"])]


def other_sets(recorded: dict, grid: dict, method: str) -> list[int]:
    """Count right answers to the same questions after calibration on the other samples of the recorded grid."""
    cells = results.cells_of(grid, method, recorded["level"])
    others = [cell for cell in cells if cell["calibration_seed"] != recorded["calibration_seed"]]
    return [int(results.unpack(cell)[: len(recorded["questions"])].sum()) for cell in others]


def draw(recorded: dict, grid: dict, path: recording.Path) -> None:
    """Draw the picture beside the answers; wrong ones in red, with a cross.

    Args:
        recorded: what :func:`record` returned.
        grid: the grid that has the same questions.
        path: file to write.
    """
    picture = conversations.questions(recorded["benchmark"], 1, seed=recorded["question_seed"])[0].images[0]
    asked, answers = recorded["questions"], recorded["answers"]
    figure = Figure(figsize=(9.6, 4), layout="constrained", facecolor="white")
    left, table = figure.subplots(1, 2, width_ratios=[1, 4.6])
    left.imshow(picture, interpolation="nearest")
    left.axis("off")
    table.axis("off")
    table.set(xlim=(0, 1), ylim=(len(asked) + 3, 0))
    starts = [0.0, *(0.36 + 0.64 * number / len(answers) for number in range(len(answers)))]

    def write(line: int, column: int, text: str, **style) -> None:
        table.text(starts[column], line + 0.5, text, va="center", fontsize=9, **style)

    write(0, 0, f"answers with {recorded['level']:.0%} of the weights at zero", color="#4d4d4d")
    write(len(asked) + 1, 0, "right", weight="bold")
    write(len(asked) + 2, 0, "right, with two other calibration sets")
    for line, each in enumerate(asked, 1):
        write(line, 0, textwrap.fill(each["question"], 40))
    for column, (name, given) in enumerate(answers.items(), 1):
        write(0, column, name, weight="bold", color=figures.METHODS[name])
        flags = right(recorded, name)
        for line, (text, good) in enumerate(zip(given, flags), 1):
            shown = (text if len(text) <= 9 else text[:8] + "…").replace("\n", "↵") or "(nothing)"
            write(line, column, f"{shown} {'✓' if good else '✗'}", color="black" if good else WRONG)
        write(len(asked) + 1, column, f"{sum(flags)} of {len(flags)}", weight="bold")
        write(len(asked) + 2, column, ", ".join(map(str, other_sets(recorded, grid, name))) or "–")
    for line in (1, len(asked) + 1):
        table.axhline(line, color="#b0b0b0", lw=0.8)
    figure.savefig(path, dpi=200)


def main(arguments: list[str] | None = None) -> dict:
    """Record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-questions", type=int, default=N_QUESTIONS, help="number of questions")
    parser.add_argument("--n-samples", type=int, default=N_SAMPLES, help="number of calibration samples")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    made = record(options.n_questions, options.n_samples, options.methods)
    recording.write("answers", made, options.out)
    return made


if __name__ == "__main__":
    main()
