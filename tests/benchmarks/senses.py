"""Does smol-videollama2 use frames and sound? The same questions about whole, muted and blanked clips.

    python tests/benchmarks/senses.py

A muted clip has silence in the place of its sound, a blanked one grey frames; the files are encoded like the others.
"""

import recording

import tamp
from tamp.worlds import clips

MODEL = "smol-videollama2"
QUESTIONS, SEED = 800, 7
CONDITIONS = {"whole": None, **{f"without {part}": part for part in clips.WITHOUT}}


def main() -> None:
    """Measure and record."""
    model, processor = tamp.load(MODEL, device="cpu")
    found = {}
    for name, without in CONDITIONS.items():
        asked = clips.questions(QUESTIONS, seed=SEED, without=without)
        table = tamp.evaluate(model, processor, asked).set_index("task")
        found[name] = table[["n", "accuracy", "low", "high", "chance", "nll"]].round(4).to_dict("index")
    recording.write("senses", {"model": MODEL, "question_seed": SEED, "conditions": found})


if __name__ == "__main__":
    main()
