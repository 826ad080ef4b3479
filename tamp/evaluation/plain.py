"""Scoring by plain forward passes: prompt and answer whole, media included, one pass per answer, for every family."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tamp import models
from tamp.errors import UserError
from tamp.evaluation.likelihoods import Read, read, targets
from tamp.evaluation.questions import Group, per_token


def score(model: nn.Module, group: Group, number: int, choices: Iterable[str] | None = None) -> dict[str, Read]:
    """Score a question, one forward pass over prefix, prompt and answer for each answer.

    Args:
        model: the model.
        group: the question's group.
        number: the question's place in the group.
        choices: which answers; None for all.

    Returns:
        ``{answer: what was read}``.

    Raises:
        UserError: if the model has no language model head, or cannot run on these inputs.
    """
    question, one = group.questions[number], group.asked[number]
    prompt = _extended(group.inputs(), one.prompt, group.text)
    generated = _generated(models.speaker(model), prompt)
    found = {}
    for choice in one.answers if choices is None else choices:
        ids = targets(question, choice, one.answers[choice])
        inputs = models.to_model(model, _extended(prompt, ids[:-1], generated))
        try:
            made = logits(model, inputs)
            places = made[0, made.shape[1] - len(ids) :].float()
            found[choice] = read(places.log_softmax(-1), ids)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UserError(
                f"{type(model).__name__} cannot be evaluated: its forward pass over a question and its answer fails "
                f"({said(error)}). Check that the processor belongs to the model."
            ) from error
    return found


def logits(model: nn.Module, inputs: dict) -> Tensor:
    """Run a model on inputs without a cache and return its logits, (B, T, V).

    Raises:
        UserError: if it returns none.
    """
    made = getattr(models.speaker(model)(**inputs, use_cache=False), "logits", None)
    if not isinstance(made, Tensor) or made.ndim != 3:
        raise UserError(
            f"{type(model).__name__} has no language model head, so it cannot be evaluated; load the class that generates "
            "text (its name ends in ForConditionalGeneration or ForCausalLM)."
        )
    return made


def said(error: Exception) -> str:
    """Return an exception as one line."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:200]}".removesuffix(": ")


def _extended(inputs: dict, ids: list[int], entries: dict[str, Tensor]) -> dict:
    """Append tokens to a processor's output.

    Args:
        inputs: the output, a batch of one.
        ids: the tokens.
        entries: ``{input: (1, 1, ...)}``, what each of them gets in the other inputs with an entry per token; where it is
            absent, what the last token has.
    """
    longer = dict(inputs)
    for name in per_token(inputs):
        value = inputs[name]
        if name == "input_ids":
            more = torch.tensor([ids], dtype=value.dtype, device=value.device)
        else:
            entry = entries.get(name, value[:, -1:]).to(value.device, value.dtype)
            more = entry.expand(1, len(ids), *value.shape[2:])
        longer[name] = torch.cat([value, more], dim=1)
    return longer


def _generated(part: nn.Module, prompt: dict) -> dict[str, Tensor]:
    """Return the entry that a model itself gives a token that it generates, by input; see ``entries`` of :func:`_extended`.

    PaliGemma tells a prompt, read in both directions, from an answer by it.
    """
    names = [name for name in per_token(prompt) if name != "input_ids"]
    length = prompt["input_ids"].shape[1]
    try:
        grown = part._update_model_kwargs_for_generation({}, dict(prompt), is_encoder_decoder=False)
    except Exception:  # not part of the public interface: without it, an answer's tokens are like those of the prompt
        return {}
    return {name: grown[name][:, -1:] for name in names if grown[name].shape[1] == length + 1}
