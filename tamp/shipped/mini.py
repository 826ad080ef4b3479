"""Train the shipped model: `python -m tamp.shipped.mini --out data/mini-llava-next`.

The command can be killed at any time and given again: it goes on from its last checkpoint and ends with the same
model. Along the way it keeps a loadable snapshot in the out folder.
"""

import argparse
import dataclasses
import json
import logging
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers

from tamp.shipped.building import build_processor, make_vocabulary
from tamp.shipped.pictures import questions
from tamp.shipped.training import Recipe, Trainer, accuracy

log = logging.getLogger(__name__)

FINAL_QUESTIONS = 2000
FINAL_SEED = 20_000
CHECKPOINT = "checkpoint.pt"


def train(
    trainer: Trainer, work: Path, out: Path, *, minutes: float | None = None, final: int = FINAL_QUESTIONS
) -> bool:
    """Train to the end, from the last checkpoint where there is one.

    Args:
        trainer: A fresh trainer.
        work: Folder of the checkpoint.
        out: Folder of the model; replaced file by file.
        minutes: Stop after this long, with a checkpoint; no limit by default.
        final: Questions of the final held-out table.

    Returns:
        Whether training is over.

    Raises:
        ValueError: The checkpoint belongs to another seed or recipe.
    """
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / CHECKPOINT
    if checkpoint.exists():
        trainer.load(checkpoint)
        log.info("going on from stage %d, step %d", trainer.stage, trainer.step)
    began = time.perf_counter()
    while not trainer.done:
        if minutes is not None and time.perf_counter() - began > 60 * minutes:
            trainer.save(checkpoint)
            return False
        trainer.advance()
        if trainer.step % trainer.recipe.save_every == 0:
            trainer.save(checkpoint)
        if trainer.just_checked:
            export(trainer, out)
    export(trainer, out, final=final)
    return True


def export(trainer: Trainer, out: Path, *, final: int = 0) -> None:
    """Write model, processor and training record; every file appears whole or not at all.

    Args:
        trainer: The trainer.
        out: Folder to write to, made if missing.
        final: Questions of the final held-out table; 0 leaves it out.
    """
    out.mkdir(parents=True, exist_ok=True)
    model = trainer.finished_model()
    with tempfile.TemporaryDirectory(dir=out, prefix=".new-") as fresh:
        model.save_pretrained(fresh)
        build_processor().save_pretrained(fresh)
        # Half precision halves the file, but computing in it is slow on most CPUs: plain loading widens the weights.
        settings = Path(fresh, "config.json")
        settings.write_text(settings.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
        record = {
            "seed": trainer.seed,
            "recipe": dataclasses.asdict(trainer.recipe),
            "parameters": model.num_parameters(),
            "seconds": {stage: round(seconds, 1) for stage, seconds in trainer.stage_seconds.items()},
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
            "held_out": held_out(model.float(), final) if final else None,
            "curve": trainer.curve,
        }
        Path(fresh, "training.json").write_text(json.dumps(record, indent=1) + "\n")
        for file in sorted(Path(fresh).iterdir()):
            file.chmod(0o644)
            os.replace(file, out / file.name)


def held_out(model: transformers.LlavaNextForConditionalGeneration, n: int) -> dict:
    """Measure the final table on pictures no stage has seen.

    Args:
        model: The model as shipped.
        n: Number of questions.

    Returns:
        Stream, seed, mean over tasks, and per task the count, the accuracy and the chance.
    """
    asked = questions(n, seed=FINAL_SEED)
    chance = {question.task: 1 / len(question.choices) for question in asked}
    tally = accuracy(model, asked, make_vocabulary())
    tasks = {
        task: {"n": count, "accuracy": round(right / count, 4), "chance": round(chance[task], 4)}
        for task, (right, count) in tally.items()
    }
    mean = sum(entry["accuracy"] for entry in tasks.values()) / len(tasks)
    return {"stream": "evaluation", "seed": FINAL_SEED, "mean": round(mean, 4), "tasks": tasks}


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command line, without the program; the process's own by default.

    Returns:
        0 when training is over, 3 when time ran out first: give the same command again.
    """
    parser = argparse.ArgumentParser(prog="python -m tamp.shipped.mini", description="Train the shipped model.")
    defaults = Recipe()
    parser.add_argument("--out", type=Path, required=True, help="folder for model, processor and training record")
    parser.add_argument("--work", type=Path, default=Path("build/mini-llava-next"), help="folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data")
    parser.add_argument("--minutes", type=float, help="stop after this long; the same command goes on")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--vision-steps", type=int, default=defaults.vision_steps)
    parser.add_argument("--alignment-steps", type=int, default=defaults.alignment_steps)
    parser.add_argument("--language-steps", type=int, default=defaults.language_steps)
    parser.add_argument("--save-every", type=int, default=defaults.save_every, help="steps between checkpoints")
    parser.add_argument("--check-every", type=int, default=defaults.check_every, help="steps between checks")
    parser.add_argument("--held-out", type=int, default=defaults.held_out, help="questions of a check")
    parser.add_argument("--final", type=int, default=FINAL_QUESTIONS, help="questions of the final table")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    recipe = Recipe(
        vision_steps=options.vision_steps,
        alignment_steps=options.alignment_steps,
        language_steps=options.language_steps,
        save_every=options.save_every,
        check_every=options.check_every,
        held_out=options.held_out,
    )
    trainer = Trainer(recipe, options.seed)
    return 0 if train(trainer, options.work, options.out, minutes=options.minutes, final=options.final) else 3


if __name__ == "__main__":
    raise SystemExit(main())
