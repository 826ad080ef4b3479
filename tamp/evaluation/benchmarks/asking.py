"""What the records of published benchmarks hold, column by column, and the prompts they are asked with.

Columns are those of the repositories on the Hugging Face hub. Prompts are those of lmms-eval (Zhang et al. 2024,
arXiv 2407.12772) and, where it differs, of the released evaluation of VideoLLaMA 2 (Cheng et al. 2024, arXiv 2406.07476).
"""

import ast
from collections.abc import Sequence
from dataclasses import dataclass

from tamp.errors import UserError
from tamp.evaluation.benchmarks import rules

MVBENCH = {
    "action_antonym": "ssv2_video_mp4",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video_segment",
    "action_prediction": "star/Charades_segment",
    "action_sequence": "star/Charades_segment",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd_convert",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_segment",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}
"""Subtask of MVBench to the folder of its videos, in the revision ``video``, whose clips are cut."""

BLINK = (
    "Art_Style",
    "Counting",
    "Forensic_Detection",
    "Functional_Correspondence",
    "IQ_Test",
    "Jigsaw",
    "Multi-view_Reasoning",
    "Object_Localization",
    "Relative_Depth",
    "Relative_Reflectance",
    "Semantic_Correspondence",
    "Spatial_Relation",
    "Visual_Correspondence",
    "Visual_Similarity",
)
VOCAL = ("Laughter", "Sigh", "Cough", "Throat clearing", "Sneeze", "Sniff")
LETTER = "\nAnswer with the option's letter from the given choices directly."
BEST = "Answer with the option's letter from the given choices directly and only give the best option."
WORD = "\nAnswer the question using a single word or phrase."


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a record asks.

    Attributes:
        question: the question.
        options: the answers to choose from, without letters; empty for an open question.
        right: the letter of the right option; empty for an open question.
        answers: all right answers of an open question.
        images: pictures as the record holds them, bytes and path.
        videos: names of video files, without their ending.
        audios: sounds as the record holds them, bytes and path.
        task: what kind of question it is.
        alone: the question without its options, where ``question`` holds them.
    """

    question: str
    options: tuple[str, ...] = ()
    right: str = ""
    answers: tuple[str, ...] = ()
    images: tuple = ()
    videos: tuple[str, ...] = ()
    audios: tuple = ()
    task: str = ""
    alone: str = ""


def option_list(given) -> tuple[str, ...]:
    """Return options as texts: a list, or a list written as a text.

    Raises:
        UserError: if it is neither.
    """
    if isinstance(given, str):
        try:
            given = ast.literal_eval(given)
        except (ValueError, SyntaxError) as error:
            raise UserError(f"options are a list, not {given!r:.60}.") from error
    if not isinstance(given, list | tuple) or not given:
        raise UserError(f"options are a list of at least one, not {given!r:.60}.")
    return tuple(str(option) for option in given)


def bare(option: str, letter: str) -> str:
    """Return an option without the letter before it: "B. red" and "(B) red" are "red"."""
    for mark in (f"{letter}. ", f"({letter}) ", f"{letter}: "):
        option = option.removeprefix(mark)
    return option.strip()


def _unlettered(given) -> tuple[str, ...]:
    return tuple(bare(option, letter) for letter, option in zip(rules.letters("?" * 26), option_list(given)))


def _letter(given, options: Sequence[str]) -> str:
    """Return the letter of the right option, given as a letter, its number from 0 or its text.

    Raises:
        UserError: if it is none of these.
    """
    known = rules.letters(options)
    if isinstance(given, int) or (str(given).isdigit() and str(given) not in options):
        number = int(given)
        if 0 <= number < len(known):
            return known[number]
    elif (text := str(given).strip()) in options:
        return known[options.index(text)]
    elif (text := text.strip("().").upper()) and text in tuple(known):
        return text
    raise UserError(f"the answer {given!r:.60} is not one of {len(options)} options.")


def textvqa(record: dict, _: str) -> Asked:
    """Return what a record of TextVQA asks: ten answers."""
    return Asked(question=record["question"], answers=tuple(record["answers"]), images=(record["image"],))


def mvbench(record: dict, subtask: str) -> Asked:
    """Return what a record of MVBench asks: candidates as texts, the answer one of them."""
    options = tuple(option.strip() for option in option_list(record["candidates"]))
    return Asked(
        question=record["question"],
        options=options,
        right=_letter(record["answer"], options),
        videos=(f"{MVBENCH[subtask]}/{record['video']}",),
        task=subtask,
    )


def videomme(record: dict, _: str) -> Asked:
    """Return what a record of Video-MME asks: options with their letters."""
    options = _unlettered(record["options"])
    return Asked(
        question=record["question"],
        options=options,
        right=_letter(record["answer"], options),
        videos=(record["videoID"],),
        task=record.get("duration") or "videomme",
    )


def nextqa(record: dict, _: str) -> Asked:
    """Return what a record of NExT-QA asks: five columns of options, the answer a number from 0."""
    options = tuple(str(record[f"a{number}"]).strip() for number in range(5))
    return Asked(
        question=record["question"].strip(),
        options=options,
        right=_letter(int(record["answer"]), options),
        videos=(str(record["video"]),),
        task=(record.get("type") or "nextqa")[:1],
    )


def egoschema(record: dict, _: str) -> Asked:
    """Return what a record of EgoSchema's subset asks: options with their letters, the answer a number from 0."""
    options = _unlettered(record["option"])
    return Asked(
        question=record["question"],
        options=options,
        right=_letter(int(record["answer"]), options),
        videos=(record["video_idx"],),
    )


def muirbench(record: dict, _: str) -> Asked:
    """Return what a record of MuirBench asks: several pictures, with marks for them in the texts."""
    options = option_list(record["options"])
    return Asked(
        question=record["question"],
        options=options,
        right=_letter(record["answer"], options),
        images=tuple(record["image_list"]),
        task=record.get("task") or "muirbench",
    )


def blink(record: dict, subtask: str) -> Asked:
    """Return what a record of BLINK asks: one to four pictures, the options written in the prompt."""
    options = option_list(record["choices"])
    return Asked(
        question=record["prompt"],
        options=options,
        right=_letter(record["answer"], options),
        images=tuple(image for number in range(1, 5) if (image := record.get(f"image_{number}")) is not None),
        task=subtask,
        alone=record["question"],
    )


def clothoaqa(record: dict, _: str) -> Asked:
    """Return what a record of Clotho-AQA asks: one word, often yes or no."""
    binary = record["answer"].strip().lower() in ("yes", "no")
    return Asked(
        question=record["question"],
        answers=(record["answer"],),
        audios=(record["audio"],),
        task="yes or no" if binary else "one word",
    )


def vocalsound(record: dict, _: str) -> Asked:
    """Return what a record of VocalSound asks: one of six classes."""
    return Asked(question="", options=VOCAL, right=_letter(record["answer"], VOCAL), audios=(record["audio"],))


def pope(record: dict, _: str) -> Asked:
    """Return what a record of POPE asks: yes or no."""
    answer = record["answer"].strip().capitalize()
    return Asked(
        question=record["question"].strip(),
        options=("Yes", "No"),
        right=_letter(answer, ("Yes", "No")),
        images=(record["image"],),
        task=record.get("category") or "pope",
    )


def lines(asked: Asked, form: str) -> str:
    """Return the options with their letters, a line each."""
    known = rules.letters(asked.options)
    return "".join(f"{form.format(letter)} {option}\n" for letter, option in zip(known, asked.options))


def options_then(asked: Asked, form: str, end: str) -> str:
    """Return a prompt of the question, its options a line each, and an instruction."""
    return f"{asked.question}\n{lines(asked, form).rstrip(chr(10))}{end}"


def videomme_prompt(asked: Asked, on: str, end: str) -> str:
    """Return Video-MME's prompt; ``on`` names what there is beside the video."""
    start = f"Select the best answer to the following multiple-choice question based on the video{on}. "
    start += "Respond with only the letter (A, B, C, or D) of the correct option.\n"
    return f"{start}{asked.question}\n{lines(asked, '{}.')}{end}"


def blink_prompt(asked: Asked) -> str:
    """Return BLINK's prompt with the letters that may be answered."""
    known = ", ".join(rules.letters(asked.options))
    return (
        f"Note: You only need to respond with {known} without providing any additional information.\n{asked.question}"
    )


def in_brackets(asked: Asked) -> str:
    """Return VideoLLaMA 2's prompt for multiple choice."""
    return f"Question: {asked.question}\nOptions:\n{lines(asked, '({})')}{BEST}"


def plain(asked: Asked) -> str:
    """Return the question alone."""
    return asked.alone or asked.question
