"""The training command: run to the end or until time is up, save checkpoints, write the files that ship and the record."""

import argparse
import dataclasses
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from training.trainer import Recipe, Trainer

log = logging.getLogger(__name__)

FINAL_QUESTIONS = 2000
FINAL_SEED = 20_000
CHECKPOINT = "checkpoint.pt"


def train(
    trainer: Trainer, work: Path, out: Path, *, minutes: float | None = None, final: int = FINAL_QUESTIONS
) -> bool:
    """Train to the end, from the last checkpoint if one exists.

    Args:
        trainer: A fresh trainer.
        work: Folder of the checkpoint.
        out: Folder of the model; replaced file by file.
        minutes: Time limit, after which a checkpoint is written; none by default.
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
        log.info("resuming at stage %d, step %d", trainer.stage, trainer.step)
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
    """Write model, processor and training record, each file atomically.

    Args:
        trainer: The trainer.
        out: Folder to write to, made if missing.
        final: Questions of the final held-out table; 0 leaves it out.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".new-") as fresh:
        trainer.ship(fresh)
        model = trainer.as_shipped(fresh)
        record = {
            "seed": trainer.seed,
            "recipe": dataclasses.asdict(trainer.recipe),
            "parameters": model.num_parameters(),
            "seconds": {stage: round(seconds, 1) for stage, seconds in trainer.stage_seconds.items()},
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
            "held_out": held_out(trainer, model, final) if final else None,
            **(trainer.remarks(model) if final else {}),
            "curve": trainer.curve,
        }
        Path(fresh, "training.json").write_text(json.dumps(record, indent=1) + "\n")
        for file in sorted(Path(fresh).iterdir()):
            file.chmod(0o644)
            os.replace(file, out / file.name)


def held_out(trainer: Trainer, model: PreTrainedModel, n: int) -> dict:
    """Compute the final table on pictures or clips that no stage trained on.

    Args:
        trainer: Its trainer.
        model: The model as shipped.
        n: Number of questions.

    Returns:
        Stream, seed, mean over tasks, and per task the count, the accuracy and the chance.
    """
    asked = trainer.asked(n, FINAL_SEED, "evaluation")
    chance = {question.task: 1 / len(question.choices) for question in asked}
    tally = trainer.tally(model, asked)
    tasks = {
        task: {"n": count, "accuracy": round(right / count, 4), "chance": round(chance[task], 4)}
        for task, (right, count) in tally.items()
    }
    mean = sum(entry["accuracy"] for entry in tasks.values()) / len(tasks)
    return {"stream": "evaluation", "seed": FINAL_SEED, "mean": round(mean, 4), "tasks": tasks}


def command(
    program: str, work: str, defaults: Recipe, make: Callable[[Recipe, int], Trainer], arguments: list[str] | None
) -> int:
    """Run a training command.

    Args:
        program: Name of the command.
        work: Folder of the checkpoint, unless the command line names another.
        defaults: Constants that the command line does not change.
        make: Returns a fresh trainer from constants and a seed.
        arguments: Command line, without the program; the process's own if None.

    Returns:
        0 when training is over, 3 when time ran out first.
    """
    parser = argparse.ArgumentParser(prog=program, description="Train a shipped model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for model and training record")
    parser.add_argument("--work", type=Path, default=Path(work), help="folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data")
    parser.add_argument("--minutes", type=float, help="stop after this long; the same command resumes")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--final", type=int, default=FINAL_QUESTIONS, help="questions of the final table")
    constants = [field.name for field in dataclasses.fields(defaults) if field.name.endswith("_steps")]
    constants += ["save_every", "check_every", "held_out"]
    for name in constants:
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=getattr(defaults, name))
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    recipe = dataclasses.replace(defaults, **{name: getattr(options, name) for name in constants})
    trainer = make(recipe, options.seed)
    return 0 if train(trainer, options.work, options.out, minutes=options.minutes, final=options.final) else 3
