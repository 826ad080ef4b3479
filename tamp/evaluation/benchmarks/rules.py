"""How a generated answer is read and scored: small rules, each after the published text of a benchmark; none guesses.

A rule reads an answer and returns what it says, or None if it says nothing that the rule knows. The published code of some
benchmarks draws a random option then, or leaves empty answers out of the mean. Here such an answer is wrong, and counted.
In three more places the rules are stricter than the published code. A letter must stand alone: "Because" is not option B.
Where a small letter counts, it counts only as the whole answer: "It moves in a circle." is not option A. An answer that
names several classes says nothing.
"""

import re
import string
from collections.abc import Sequence

CONTRACTIONS = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't "
    "it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've shouldn't "
    "somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's "
    "they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's "
    "where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"
)
TWICE = (
    "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've "
    "there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've"
)
"""Contractions with one apostrophe, and with two; an answer may lack any of them."""

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
ARTICLES = ("a", "an", "the")


def _whole_contractions() -> dict[str, str]:
    """Return contractions by what they are without an apostrophe, or with one of two."""
    whole = {each.replace("'", ""): each for each in CONTRACTIONS.split()}
    for each in TWICE.split():
        first, second, third = each.split("'")
        whole |= {first + second + "'" + third: each, first + "'" + second + third: each}
    return whole


_WHOLE = _whole_contractions()


def letters(options: Sequence[str]) -> str:
    """Return the letters of a question's options: ``"ABCD"`` for four."""
    return string.ascii_uppercase[: len(options)]


def _alone(text: str) -> str:
    """Return the letter, in capitals, that is the whole answer, brackets and punctuation aside; "" if it is not a letter."""
    bare = text.strip().strip(string.punctuation + string.whitespace)
    return bare.upper() if len(bare) == 1 else ""


def _standing(text: str, options: Sequence[str]) -> list[str]:
    """List the capital option letters that stand alone in an answer, in order."""
    return re.findall(rf"(?<![\w'])[{letters(options)}](?![\w'])", text)


def _bracketed(text: str, options: Sequence[str]) -> list[str]:
    """List the option letters in brackets, in order."""
    return re.findall(rf"\(([{letters(options)}])\)", text)


def _stated(text: str, options: Sequence[str]) -> list[str]:
    """List the option letters of "the answer is B", "Answer: (B)" and the like, in order."""
    return re.findall(rf"\b(?i:answers?(?: is)?)[ :-]*\(?([{letters(options)}])(?![\w'])", text)


def first_capital(text: str, options: Sequence[str]) -> str | None:
    """Return the first capital option letter that stands alone: "(B) red", "B.", "The answer is B" (EgoSchema).

    Args:
        text: the answer.
        options: the question's options; their letters are A, B, ...

    Returns:
        The letter, or None if there is none.
    """
    return next(iter(_standing(text, options)), None)


def first_letter(text: str, options: Sequence[str]) -> str | None:
    """Return what :func:`first_capital` does, or the small option letter that is the whole answer (MVBench)."""
    return first_capital(_alone(text) or text, options)


def placed_letter(text: str, options: Sequence[str]) -> str | None:
    """Return the capital letter in the place that says most (Video-MME).

    In this order: at the beginning, at the end, after "the answer is", the last in brackets, the last that stands alone.
    """
    bare, known = text.strip().strip(",.!?;:'\""), letters(options)
    ends = re.findall(rf"^[{known}](?![\w'])", bare) or re.findall(rf"(?<![\w'])[{known}]$", bare)
    found = ends or _stated(bare, options) or _bracketed(bare, options) or _standing(bare, options)
    return found[-1] if found else None


def leading_letter(text: str, options: Sequence[str]) -> str | None:
    """Return the letter that is the whole answer, that it states, that it has in brackets, or with which it begins (BLINK).

    In this order, of several the last: "b.", "The answer is B", "I take (B)", "B red"; not "It is B".
    """
    if (alone := _alone(text)) in tuple(letters(options)):
        return alone
    if found := _stated(text, options) or _bracketed(text, options):
        return found[-1]
    found = first_capital(text, options)
    return found if found == text.strip().lstrip("( \n\t")[:1] else None


def only_letter(text: str, options: Sequence[str]) -> str | None:
    """Return the option letter that is the whole answer, or stands before a full stop at its beginning (MuirBench)."""
    text = text.strip()
    if text.upper() in tuple(letters(options)):
        return text.upper()
    return text[0] if re.match(rf"[{letters(options)}]\.", text) else None


def last_letter(text: str, options: Sequence[str]) -> str | None:
    """Return the last option letter in brackets, or else the last that stands alone, or else the option named in words.

    The rule of MMMU's released code, used for NExT-QA: capitals only. An option counts in words if the answer has more than
    five; of several the last.
    """
    if found := _bracketed(text, options) or _standing(text, options):
        return found[-1]
    if len(text.split()) <= 5:
        return None
    places = [text.lower().rfind(option.strip().lower()) for option in options]
    return letters(options)[places.index(max(places))] if max(places, default=-1) >= 0 else None


def named_class(text: str, options: Sequence[str]) -> str | None:
    """Return the letter of the only option whose name occurs in an answer (VocalSound).

    Of a name of two words the first is enough ("throat"). An answer that names several classes says nothing.
    """
    named = [letter for letter, option in zip(letters(options), options) if option.lower().split()[0] in text.lower()]
    return named[0] if len(named) == 1 else None


def letter_or_class(text: str, options: Sequence[str]) -> str | None:
    """Return the letter that is the whole answer, or else what :func:`named_class` does: for prompts that show letters."""
    return only_letter(text.strip().strip("()"), options) or named_class(text, options)


def yes_or_no(text: str, options: Sequence[str]) -> str | None:
    """Return the letter of the option that is the whole answer, capitals aside (POPE)."""
    lowered = [option.lower() for option in options]
    return letters(options)[lowered.index(text.strip().lower())] if text.strip().lower() in lowered else None


def _words(text: str) -> str:
    """Return a text without capitals, punctuation and blanks around it."""
    return text.lower().translate(str.maketrans("", "", string.punctuation)).strip()


def named_option(text: str, options: Sequence[str]) -> str | None:
    """Return the letter of the only option that is the whole answer, capitals and punctuation aside (plain questions)."""
    named = [letter for letter, option in zip(letters(options), options) if _words(option) == _words(text)]
    return named[0] if len(named) == 1 else None


def same_words(text: str, answers: Sequence[str]) -> float:
    """Return 1 if an answer is the right one, capitals and punctuation aside, else 0 (Clotho-AQA)."""
    return float(_words(text) == _words(answers[0]))


def vqa_accuracy(text: str, answers: Sequence[str]) -> float:
    """Return the accuracy of VQA for one answer, Antol et al. 2015 (arXiv 1505.00468), as TextVQA uses it.

    For each person left out in turn, a third for every other person who gave this answer, one at most; then the mean.
    All answers are normalised first; see :func:`normal`.

    Args:
        text: the answer.
        answers: those of ten people.
    """
    said, given = normal(text), [normal(answer) for answer in answers]
    others = (given.count(said) - (one == said) for one in given)
    return sum(min(1.0, number / 3) for number in others) / len(given)


def normal(text: str) -> str:
    """Normalise an answer as VQA's evaluation does.

    Small letters; no articles; numbers up to ten in digits; contractions with their apostrophe; no full stop that is not
    followed by a digit. A punctuation mark goes where it stands beside a blank anywhere in the answer, else it becomes a
    blank.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = re.sub(r"\s", " ", text)
    cleaned = text
    for mark in PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned)
    words = [NUMBERS.get(word, word) for word in cleaned.split()]
    return " ".join(_WHOLE.get(word, word) for word in words if word not in ARTICLES)
