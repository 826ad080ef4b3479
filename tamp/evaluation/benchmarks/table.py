"""The published benchmarks that tamp knows by name: where each lies, what is asked, and how it is scored."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from tamp.evaluation.benchmarks import asking, rules
from tamp.evaluation.benchmarks.asking import Asked


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a benchmark is asked and read.

    Attributes:
        prompt: ``f(asked) -> text``.
        rule: ``f(text, options)``, the letter that an answer says; for open questions ``f(text, answers)``, its score.
        choice: how an option is written as an answer; ``{letter}``, ``{option}`` and, in small letters, ``{lower}`` stand
            for it.
    """

    prompt: Callable[[Asked], str]
    rule: Callable
    choice: str = "{letter}"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published benchmark.

    Attributes:
        title: as its authors write it.
        hub: id of its repository on the hub.
        split: the split that is scored.
        configurations: the configurations that make it up, in order; none for a repository with one.
        revision: of the repository.
        kind: what the questions are about: image, video or audio.
        read: ``f(record, configuration)``, what a record asks.
        protocols: by name, the usual one first.
        longest: tokens generated at most: lmms-eval's limit, where its task has one.
        size: questions in all; None where the repository's page does not say.
        chance: accuracy of guessing, as its paper gives it or from the number of options; NaN if there is none.
        licence: of questions and media.
        stated: where the licence stands; "" where none is stated.
        source: paper.
    """

    title: str
    hub: str
    split: str
    kind: str
    read: Callable[[dict, str], Asked]
    protocols: dict[str, Protocol]
    size: int | None
    chance: float
    licence: str
    source: str
    configurations: tuple[str, ...] = ()
    revision: str = "main"
    longest: int = 16
    stated: str = ""


PLAIN = Protocol(prompt=asking.plain, rule=rules.named_option, choice="{option}")
"""The question alone, answered with the words of an option: for models that know no letters."""

TABLE = {
    "textvqa": Published(
        title="TextVQA",
        hub="lmms-lab-encoder/textvqa",
        split="validation",
        kind="image",
        read=asking.textvqa,
        protocols={
            "lmms-eval": Protocol(
                prompt=lambda asked: asked.question.capitalize() + asking.WORD, rule=rules.vqa_accuracy
            ),
            "plain": Protocol(prompt=asking.plain, rule=rules.vqa_accuracy),
        },
        longest=32,
        size=5000,
        chance=math.nan,
        licence="CC BY 4.0",
        stated="https://huggingface.co/datasets/facebook/textvqa",
        source="Singh et al. 2019, arXiv 1904.08920",
    ),
    "mvbench": Published(
        title="MVBench",
        hub="OpenGVLab/MVBench",
        split="train",
        configurations=tuple(asking.MVBENCH),
        revision="video",
        kind="video",
        read=asking.mvbench,
        protocols={
            "lmms-eval": Protocol(
                prompt=lambda asked: (
                    f"Question:{asked.question}\nOption:\n{asking.lines(asked, '({})')}Only give the best option.\n"
                ),
                rule=rules.first_letter,
                choice="({letter})",
            ),
            "videollama2": Protocol(prompt=asking.in_brackets, rule=rules.first_letter, choice="({letter})"),
            "plain": PLAIN,
        },
        size=4000,
        chance=0.273,
        licence="MIT for the questions; videos under the terms of their eleven sources",
        stated="https://huggingface.co/datasets/OpenGVLab/MVBench",
        source="Li et al. 2023, arXiv 2311.17005",
    ),
    "videomme": Published(
        title="Video-MME",
        hub="lmms-eval/Video-MME",
        split="test",
        configurations=("videomme",),
        kind="video",
        read=asking.videomme,
        protocols={
            "lmms-eval": Protocol(
                prompt=lambda asked: asking.videomme_prompt(asked, " and the subtitles", asking.LETTER),
                rule=rules.placed_letter,
            ),
            "videollama2": Protocol(
                prompt=lambda asked: asking.videomme_prompt(asked, "", f"{asking.BEST} The best answer is: "),
                rule=rules.first_letter,
            ),
            "plain": PLAIN,
        },
        size=2700,
        chance=0.25,
        licence="academic research only",
        stated="https://github.com/BradyFU/Video-MME",
        source="Fu et al. 2024, arXiv 2405.21075",
    ),
    "nextqa": Published(
        title="NExT-QA, multiple choice",
        hub="lmms-eval/NExTQA",
        split="test",
        configurations=("MC",),
        kind="video",
        read=asking.nextqa,
        protocols={
            "lmms-eval": Protocol(prompt=lambda asked: asking.options_then(asked, "{}.", ""), rule=rules.last_letter),
            "plain": PLAIN,
        },
        longest=128,
        size=8564,
        chance=0.2,
        licence="MIT for the questions; videos of VidOR and YFCC100M under their own terms",
        stated="https://github.com/doc-doc/NExT-QA",
        source="Xiao et al. 2021, arXiv 2105.08276",
    ),
    "egoschema": Published(
        title="EgoSchema, public subset",
        hub="lmms-eval/egoschema",
        split="test",
        configurations=("Subset",),
        kind="video",
        read=asking.egoschema,
        protocols={
            "lmms-eval": Protocol(
                prompt=lambda asked: asking.options_then(asked, "{}.", asking.LETTER), rule=rules.first_capital
            ),
            "videollama2": Protocol(prompt=asking.in_brackets, rule=rules.first_letter, choice="({letter})"),
            "plain": PLAIN,
        },
        size=500,
        chance=0.2,
        licence="MIT for the questions; videos under the licence of Ego4D",
        stated="https://huggingface.co/datasets/lmms-eval/egoschema",
        source="Mangalam et al. 2023, arXiv 2308.09126",
    ),
    "muirbench": Published(
        title="MuirBench",
        hub="MUIRBENCH/MUIRBENCH",
        split="test",
        kind="image",
        read=asking.muirbench,
        protocols={
            "lmms-eval": Protocol(
                prompt=lambda asked: asking.options_then(asked, "{}.", asking.LETTER), rule=rules.only_letter
            )
        },
        size=2600,
        chance=0.2399,
        licence="CC BY 4.0",
        stated="https://huggingface.co/datasets/MUIRBENCH/MUIRBENCH",
        source="Wang et al. 2024, arXiv 2406.09411",
    ),
    "blink": Published(
        title="BLINK",
        hub="BLINK-Benchmark/BLINK",
        split="val",
        configurations=tuple(asking.BLINK),
        kind="image",
        read=asking.blink,
        protocols={
            "lmms-eval": Protocol(prompt=asking.blink_prompt, rule=rules.leading_letter, choice="({letter})"),
            "plain": PLAIN,
        },
        longest=1024,
        size=1901,
        chance=0.3809,
        licence="Apache 2.0 for the questions; pictures under the terms of their sources",
        stated="https://huggingface.co/datasets/BLINK-Benchmark/BLINK",
        source="Fu et al. 2024, arXiv 2404.12390",
    ),
    "clothoaqa": Published(
        title="Clotho-AQA",
        hub="lmms-lab-audio/ClothoAQA",
        split="clotho_aqa_test_filtered",
        configurations=("clotho_aqa",),
        kind="audio",
        read=asking.clothoaqa,
        protocols={
            "lmms-eval": Protocol(
                prompt=lambda asked: f"{asked.question}\nAnswer the question using a single word only. ",
                rule=rules.same_words,
            ),
            "videollama2": Protocol(
                prompt=lambda asked: f"Question: {asked.question}\nAnswer the question using a single word.",
                rule=rules.same_words,
            ),
            "plain": Protocol(prompt=asking.plain, rule=rules.same_words),
        },
        longest=8,
        size=1442,
        chance=math.nan,
        licence="not stated; sounds of Freesound under their own terms",
        source="Lipping et al. 2022, arXiv 2204.09634",
    ),
    "vocalsound": Published(
        title="VocalSound",
        hub="lmms-lab-audio/vocalsound",
        split="test",
        kind="audio",
        read=asking.vocalsound,
        protocols={
            "lmms-eval": Protocol(
                prompt=lambda asked: "Classify the human vocal sound to VocalSound in English: ",
                rule=rules.named_class,
                choice="{option}",
            ),
            "videollama2": Protocol(
                prompt=lambda asked: (
                    f"Identify the human sound in the audio.\nOptions:\n{asking.lines(asked, '({})')}.{asking.BEST}"
                ),
                rule=rules.letter_or_class,
                choice="({letter})",
            ),
        },
        longest=128,
        size=None,
        chance=1 / 6,
        licence="CC BY-SA 4.0",
        stated="https://github.com/YuanGongND/vocalsound",
        source="Gong et al. 2022, arXiv 2205.03433",
    ),
    "pope": Published(
        title="POPE",
        hub="lmms-lab-encoder/POPE",
        split="test",
        kind="image",
        read=asking.pope,
        protocols={
            "lmms-eval": Protocol(
                prompt=lambda asked: asked.question + asking.WORD, rule=rules.yes_or_no, choice="{option}"
            ),
            "plain": Protocol(prompt=asking.plain, rule=rules.named_option, choice="{lower}"),
        },
        longest=128,
        size=9000,
        chance=0.5,
        licence="MIT for the questions; pictures of COCO under their own terms",
        stated="https://github.com/AoiDragon/POPE",
        source="Li et al. 2023, arXiv 2305.10355",
    ),
}
"""The published benchmarks by name."""
