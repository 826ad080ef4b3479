"""Benchmark questions in token ids: questions about the same pictures, videos and sounds behind one encoded prefix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

from torch import Tensor

from tamp import conversations, reading, records
from tamp.errors import UserError, whole
from tamp.reading import Skipped, told
from tamp.records import Question

TOGETHER = 16  # questions that share one cached prefix

HELD = 2**30
"""Bytes of pictures, videos and sounds that a benchmark keeps as the processor gave them, and again of what towers made of
them. What is beyond is made ready whenever it is needed."""


@dataclass
class Asked:
    """One question in token ids.

    Attributes:
        prompt: its prompt after the group's prefix.
        answers: ``{text: token ids, the end token included}``: the right answer first, then the other choices.
    """

    prompt: list[int]
    answers: dict[str, list[int]]


@dataclass
class Group:
    """Questions about the same pictures, videos and sounds.

    Attributes:
        questions: the questions.
        prefix: processor output of what all of them begin with, the pictures, videos and sounds included.
        asked: the questions in token ids.
        decoder_call: what the decoder is called with for the prefix, kept by a benchmark that is used again.
        text: ``{input: (1, 1, ...)}``, the entry of a text token in the inputs with an entry per token; where it is absent,
            the last token of the prefix is such a token.
        encode: makes the processor's output again, of which ``prefix`` is the beginning; needed if its media were let go.
    """

    questions: list[Question]
    prefix: dict
    asked: list[Asked]
    decoder_call: dict | None = None
    text: dict[str, Tensor] = field(default_factory=dict)
    encode: Callable[[], dict] | None = None

    def let_go(self) -> None:
        """Keep only the shapes of the media in the prefix."""
        media = self.prefix.keys() - per_token(self.prefix)
        self.prefix |= {name: self.prefix[name].to("meta") for name in media if isinstance(self.prefix[name], Tensor)}

    def inputs(self) -> dict:
        """Return the prefix with its media."""
        gone = [name for name, value in self.prefix.items() if isinstance(value, Tensor) and value.is_meta]
        again = self.encode() if gone else {}
        return self.prefix | {name: again[name] for name in gone}


@dataclass
class Benchmark:
    """Questions made ready for one processor.

    Evaluating it keeps the towers' outputs, so it may be used again only with models that share them: the pruned versions
    of one model.

    Attributes:
        groups: the questions, group by group.
        proofs: ``{model: proof}``, kept between evaluations; see :class:`tamp.evaluation.proof.Proof`.
        skipped: records that cannot be used and were left out; None if the first of them is to raise its error.
    """

    groups: list[Group]
    proofs: dict = field(default_factory=dict)
    skipped: list[Skipped] | None = None


def prepare(
    processor,
    benchmark: str | Path | Sequence[Question | dict],
    limit: int | None = None,
    seed: int = 0,
    on_error: str = "raise",
) -> Benchmark:
    """Make a benchmark's questions ready for a processor.

    Args:
        processor: of the model to evaluate.
        benchmark: see :func:`tamp.evaluate`, or a list of questions or records.
        limit: how many questions, from the first on.
        seed: random seed for drawing the questions of a shipped set.
        on_error: see :func:`tamp.evaluate`.

    Raises:
        UserError: naming the record, if a question cannot be used.
    """
    skipped = reading.skips(on_error)
    if not isinstance(benchmark, str | Path):
        benchmark = list(benchmark)
    if isinstance(benchmark, list) and all(isinstance(each, Question) for each in benchmark):
        if limit is not None and (whole(limit) or 0) < 1:
            raise UserError(f"A benchmark needs at least one question, not {limit}.")
        made = benchmark[: limit if limit is None else whole(limit)]
    else:
        made = conversations.questions(benchmark, limit, seed, skipped)
    if not made and not skipped:
        raise UserError("There are no questions to evaluate.")
    same = [list(questions) for _, questions in groupby(made, key=lambda q: (id(q.images), q.videos, q.audios))]
    groups, held = [], 0
    for questions in same:
        for start in range(0, len(questions), TOGETHER):
            for group in _groups(processor, questions[start : start + TOGETHER], skipped):
                held += nbytes(group.prefix)
                if held > HELD:
                    group.let_go()
                groups.append(group)
    return Benchmark(groups, skipped=skipped)


def nbytes(inputs: dict) -> int:
    """Return the size of the tensors in a dictionary, bytes."""
    return sum(value.nbytes for value in inputs.values() if isinstance(value, Tensor))


def _groups(processor, questions: list[Question], skipped: list[Skipped] | None) -> list[Group]:
    """Encode questions about the same media; where one cannot be, each by itself, so that its record is named."""
    try:
        return [_group(processor, questions)]
    except UserError:
        alone = []
        for question in questions:
            with told(question.place, skipped):
                alone.append(_group(processor, [question]))
        return alone


def _group(processor, questions: list[Question]) -> Group:
    """Encode questions about the same pictures, videos and sounds: these once, then only text."""
    tokenizer = getattr(processor, "tokenizer", processor)
    eos = tokenizer.eos_token_id
    media = questions[0].media
    shown = media | {"images": getattr(media["images"], "given", media["images"])}  # to the template, which opens none
    prompts = [
        conversations.render(processor, conversations.dialogue(q.text, None, **shown, marked=q.marked), prompt=True)
        for q in questions
    ]
    encode = partial(conversations.encode, processor, prompts[0], **media)
    whole = encode()
    first = whole["input_ids"][0].tolist()
    marks = [getattr(processor, f"{kind}_token", None) for kind in records.KINDS if media[f"{kind}s"]]
    cut = max(prompts[0].rfind(mark) + len(mark) for mark in marks) if marks and all(marks) else 0
    head = first[: len(first) - len(tokens(tokenizer, prompts[0][cut:]))] if cut else []
    # Text is tokenised apart only where this gives the very ids the processor gave, and no question has text before it.
    apart = bool(cut) and head + tokens(tokenizer, prompts[0][cut:]) == first
    apart = apart and all(prompt[:cut] == prompts[0][:cut] for prompt in prompts)

    def ids_of(text: str) -> list[int]:
        if apart:
            return head + tokens(tokenizer, text[cut:])
        return conversations.encode(processor, text, **media)["input_ids"][0].tolist()

    asked = []
    for number, (question, prompt) in enumerate(zip(questions, prompts)):
        start = first if number == 0 else ids_of(prompt)
        whole_ids = {}
        for choice in dict.fromkeys((question.answer, *question.choices)):
            full = conversations.render(
                processor, conversations.dialogue(question.text, choice, **shown, marked=question.marked)
            )
            whole_ids[choice] = ids_of(full if full.startswith(prompt) else prompt + choice)
        shared = min(_common(start, ids) for ids in whole_ids.values())  # tokens can join across the border
        answers = {}
        for choice, ids in whole_ids.items():
            answer = ids[shared:]
            answers[choice] = answer[: answer.index(eos) + 1] if eos in answer else [*answer, eos]
        asked.append(Asked(start[:shared], answers))
    common = min(_common(asked[0].prompt, one.prompt) for one in asked)
    common = min(common, min(len(one.prompt) for one in asked) - 1)  # something must be left to read the answer from
    names = per_token(whole)
    prefix = {name: value[:, :common] if name in names else value for name, value in whole.items()}
    for one in asked:
        one.prompt = one.prompt[common:]
    return Group(questions, prefix, asked, text={name: whole[name][:, -1:] for name in names}, encode=encode)


def per_token(inputs: dict) -> list[str]:
    """List the inputs of a processor's output that have an entry per token: ids, masks and kinds, (1, tokens, ...)."""
    shape = inputs["input_ids"].shape
    return [
        name
        for name, value in inputs.items()
        if isinstance(value, Tensor)
        and value.shape[:2] == shape
        and not value.is_floating_point()
        and not any(part in name for part in ("feature", "pixel", "image_position"))  # as many as tokens by chance
    ]


def _common(one: list[int], other: list[int]) -> int:
    """Count the tokens with which both begin."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def tokens(tokenizer, text: str) -> list[int]:
    """Return the ids of a text, without special tokens around it."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]
