"""Greedy generation, several conversations at once where their media have the same shape, padded on the left."""

import logging
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from tamp import models
from tamp.errors import UserError
from tamp.evaluation import plain
from tamp.evaluation.questions import per_token

ALIKE = 0.1
"""Mean difference of the logits of the first token, in units of their standard deviation, that may be rounding."""

log = logging.getLogger(__name__)


class Generator:
    """A model that answers in batches, once a padded batch was seen to give what each conversation gives alone.

    Args:
        model: the model.
        tokenizer: its tokenizer, or a processor that has one.
        longest: tokens generated at most.

    Attributes:
        together: whether padded batches are right for this model; None until the first is seen.
    """

    def __init__(self, model: nn.Module, tokenizer, longest: int):
        self.model, self.longest = model, longest
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self.together: bool | None = None

    @torch.no_grad()
    def __call__(self, prompts: Sequence[dict]) -> list[str]:
        """Return the answers to prompts, each a processor's output, without blanks around them.

        Raises:
            UserError: if the model does not generate.
        """
        answers = [""] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda number: _shapes(prompts[number]))
        for _, numbers in groupby(order, key=lambda number: _shapes(prompts[number])):
            numbers = list(numbers)
            parts = [numbers] if self._alike([prompts[number] for number in numbers]) else [[one] for one in numbers]
            for part in parts:
                for number, said in zip(part, self._batch([prompts[number] for number in part])):
                    answers[number] = said
        return answers

    def _alike(self, prompts: list[dict]) -> bool:
        """Return whether prompts may be run as one batch; the first that need padding are also run alone, to see."""
        lengths = [prompt["input_ids"].shape[1] for prompt in prompts]
        if len(prompts) == 1 or min(lengths) == max(lengths) or self.together is not None:
            return self.together is not False
        shortest = lengths.index(min(lengths))
        whole, _ = self._run(prompts, 1)
        alone, _ = self._run([prompts[shortest]], 1)
        difference = (whole[shortest] - alone[0]).abs().mean()
        self.together = bool(difference <= ALIKE * alone[0].std())
        if not self.together:
            log.warning(
                "%s does not give the same answers in a batch that is padded on the left: questions are answered one by "
                "one, and evaluating takes longer.",
                type(self.model).__name__,
            )
        return self.together

    def _batch(self, prompts: list[dict]) -> list[str]:
        _, tokens = self._run(prompts, self.longest)
        return [said.strip() for said in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def _run(self, prompts: list[dict], longest: int) -> tuple[Tensor, Tensor]:
        """Generate greedily: logits of the first token (B, V), tokens (B, T)."""
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        batch = models.to_model(self.model, padded(prompts, pad or 0))
        part = models.speaker(self.model)
        try:
            made = part.generate(
                **batch,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=longest,
                max_length=None,
                pad_token_id=pad,
                return_dict_in_generate=True,
                output_logits=longest == 1,
            )
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UserError(
                f"{type(self.model).__name__} cannot answer by generation ({plain.said(error)}). Check that the processor "
                "belongs to the model."
            ) from error
        logits = made.logits[0].float() if made.logits else torch.empty(0)
        return logits, made.sequences[:, batch["input_ids"].shape[1] :]


def _shapes(prompt: dict) -> tuple:
    """Return what prompts must share to run as one batch: names, and shapes but for the first axis, of their media."""
    names = per_token(prompt)
    media = sorted(name for name in prompt if name not in names)
    return tuple((name, tuple(prompt[name].shape)) for name in media if isinstance(prompt[name], Tensor))


def padded(prompts: Sequence[dict], pad: int) -> dict:
    """Join processor outputs of one row each into a batch, padded on the left.

    Args:
        prompts: with media of the same shapes.
        pad: token that fills; everything else with an entry per token is filled with 0, as no token attends to it.
    """
    names = per_token(prompts[0])
    length = max(prompt["input_ids"].shape[1] for prompt in prompts)

    def filled(name: str, value: Tensor) -> Tensor:
        fill = pad if name == "input_ids" else 0
        missing = value.new_full((1, length - value.shape[1], *value.shape[2:]), fill)
        return torch.cat([missing, value], 1)

    batch = dict(prompts[0])
    for name, value in prompts[0].items():
        if isinstance(value, Tensor):
            each = [filled(name, prompt[name]) if name in names else prompt[name] for prompt in prompts]
            batch[name] = torch.cat(each)
    return batch
