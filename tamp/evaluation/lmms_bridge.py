"""tamp as a model of lmms-eval: ``--model tamp --model_args pretrained=DIR`` for any model that :func:`tamp.load` loads.

lmms-eval finds it by the entry point ``lmms_eval.models`` (:mod:`tamp.evaluation.lmms_entry`). This file needs lmms-eval.
The interface is the one that lmms-eval calls simple. Whatever fails raises: no answer is left empty in place of an error.
"""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image

from tamp import conversations, loading, media, models, onloading, records
from tamp.errors import UserError
from tamp.passes import steps

SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".m4a")
"""Suffixes of files that are heard; every other path that a task names is a video."""

MOST_TOKENS = 1024
"""Of an answer, where a task does not say."""


class TampModel(lmms):
    """A model as :func:`tamp.load` loads it, for lmms-eval's tasks, which it answers one by one.

    Args:
        pretrained: a shipped name, a folder that tamp wrote or another, or a hub id.
        device: see :func:`tamp.load`.
        dtype: see :func:`tamp.load`.
        batch_size: 1.
        max_batch_size: ignored, for lmms-eval passes it always.

    Raises:
        UserError: if the model cannot be loaded, or batch_size is not 1.
    """

    is_simple = True

    def __init__(self, pretrained: str, device: str = "auto", dtype: str = "auto", batch_size=1, max_batch_size=None):
        super().__init__()
        if int(batch_size) != 1:
            raise UserError(f"tamp answers lmms-eval's questions one by one, not {batch_size} at once: --batch_size 1.")
        self.model, self.processor = loading.load(str(pretrained), device, dtype, "auto")
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        if not importlib.util.find_spec("torchcodec"):
            import datasets

            # datasets would decode sounds with torchcodec, and fail; here they stay bytes, which this class reads
            datasets.Audio.decode_example = lambda self, value, token_per_repo_id=None: value

    @torch.inference_mode()
    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answer questions, in order."""
        with onloading.Place(self.model).whole():
            return [self._answer(*request.args) for request in steps(requests, "lmms-eval", True)]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refuse: tasks that score likelihoods are not bridged."""
        raise NotImplementedError("tamp answers tasks that generate; for likelihoods of choices use `tamp evaluate`.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse: tasks of several rounds are not bridged."""
        raise NotImplementedError("tamp answers tasks of one round.")

    def _answer(self, context: str, settings: dict, visuals_of, number: int, task: str, split: str) -> str:
        """Generate the answer to one question of a task."""
        given = visuals_of(self.task_dict[task][split][number])
        with tempfile.TemporaryDirectory() as scratch:
            found = _sorted(given if isinstance(given, list | tuple) else [given], Path(scratch))
            messages = records.dialogue(context, None, **found)  # media at their marks in the text, or before it
            inputs = conversations.process(self.processor, messages, prompt=True)
        inputs = models.to_model(self.model, inputs)
        warm = {name: settings.get(name) for name in ("temperature", "top_p") if settings.get("temperature")}
        made = self.model.generate(
            **inputs,
            max_new_tokens=settings.get("max_new_tokens") or MOST_TOKENS,
            num_beams=settings.get("num_beams") or 1,
            do_sample=bool(warm),
            pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
            **warm,
        )
        answer = self.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        until = settings.get("until") or []
        for end in [until] if isinstance(until, str) else until:
            answer = answer.split(end)[0] if end else answer
        return answer.strip()


def _sorted(given: list, scratch: Path) -> dict[str, list]:
    """Sort what a task gives into pictures, videos and sounds; sounds that are not files become such in ``scratch``.

    Raises:
        UserError: if something is none of these.
    """
    found: dict[str, list] = {f"{kind}s": [] for kind in records.KINDS}
    for each in given:
        if isinstance(each, Image.Image):
            found["images"].append(each)
        elif isinstance(each, str | Path):
            found["audios" if Path(each).suffix.lower() in SOUNDS else "videos"].append(str(Path(each).resolve()))
        else:
            found["audios"].append(str(_sound(each, scratch / f"{len(found['audios'])}")))
    return found


def _sound(given: Any, target: Path) -> Path:
    """Write a sound as datasets gives it: its bytes, an array with its rate, or a decoder of torchcodec.

    Raises:
        UserError: if it is none of these.
    """
    if isinstance(given, dict) and isinstance(given.get("bytes"), bytes):
        target = target.with_suffix(Path(given.get("path") or "sound.wav").suffix)
        target.write_bytes(given["bytes"])
        return target
    if isinstance(given, dict) and isinstance(given.get("path"), str) and "array" not in given:
        return Path(given["path"])
    if hasattr(given, "get_all_samples"):
        samples = given.get_all_samples()
        wave, rate = samples.data.numpy().T, samples.sample_rate  # (n, channels)
    elif isinstance(given, dict) and "array" in given:
        wave, rate = np.asarray(given["array"], np.float32), given["sampling_rate"]
    else:
        raise UserError(f"The task gives a {type(given).__name__}: tamp takes pictures, videos and sounds.")
    import soundfile

    soundfile.write(target.with_suffix(".wav"), media.resample(wave, int(rate)), media.RATE, subtype="FLOAT")
    return target.with_suffix(".wav")
