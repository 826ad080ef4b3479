"""Questions about the samples of tiny families, made of token ids: families have no processors."""

import torch

from tamp import models
from tamp.evaluation.questions import Asked, Benchmark, Group, per_token
from tamp.records import Question

END = 2


def benchmark(samples: list[dict]) -> Benchmark:
    """Ask three questions with two answers each about every sample; its last four tokens make room for them."""
    groups = []
    for number, sample in enumerate(samples):
        length = sample["input_ids"].shape[1]
        names = per_token(sample)
        prefix = {name: value[:, : length - 4] if name in names else value for name, value in sample.items()}
        asked, questions = [], []
        for turn in range(3):
            words = [5 + 7 * turn + number, 11 + turn, 40 - turn]
            answers = {"one": [30 + turn, 31, END], "two": [60, 9 + turn, 17, END]}
            asked.append(Asked(words, answers))
            questions.append(
                Question(
                    images=(), text=f"question {turn}", answer="one", choices=("one", "two"), task=f"sample {number}"
                )
            )
        groups.append(Group(questions, prefix, asked, text={name: sample[name][:, -1:] for name in names}))
    return Benchmark(groups)


def by_plain_passes(model, made: Benchmark) -> list[dict]:
    """Score every answer by a forward pass of its own, written out: ``{"correct": ..., "nll": ..., "choice": ...}``."""
    rows = []
    for group in made.groups:
        for one in group.asked:
            sums = {}
            for text, answer in one.answers.items():
                batch = dict(group.prefix)
                ids = [*one.prompt, *answer]
                for name, value in group.text.items():
                    more = value.expand(1, len(ids), *value.shape[2:])
                    if name == "input_ids":
                        more = torch.tensor([ids])
                    elif name == "token_type_ids" and "PaliGemma" in type(model).__name__:
                        more = torch.tensor([[0] * len(one.prompt) + [1] * len(answer)])  # read in one direction only
                    batch[name] = torch.cat([batch[name], more], 1)
                with torch.no_grad():
                    logits = models.speaker(model)(**models.to_model(model, batch), use_cache=False).logits[0].float()
                scores = logits[-len(answer) - 1 : -1].log_softmax(-1)
                taken = scores[torch.arange(len(answer)), torch.tensor(answer)]
                sums[text] = taken[:-1].sum().item()
                if text == "one":
                    nll, correct = -taken.mean().item(), bool((scores.argmax(-1) == torch.tensor(answer)).all())
            rows.append({"correct": correct, "nll": nll, "choice": max(sums, key=sums.get), "gap": sums})
    return rows
