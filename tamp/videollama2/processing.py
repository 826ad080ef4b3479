"""The processor: text with marks for pictures, videos and sounds becomes ids, pixels and filter banks."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BatchFeature, ProcessorMixin, SiglipImageProcessorPil

from tamp import media
from tamp.errors import UserError, unknown, whole

KINDS = ("image", "video", "audio")
MARKS = {kind: f"<{kind}>" for kind in KINDS}
TOKENS = {kind: f"<|{kind}_pad|>" for kind in KINDS}
AUDIO_POLICIES = ("paper", "plain")
MOST_FRAMES = 32
MOST_SECONDS = 30.0
PATCH = 16  # BEATs: frames in a patch, and mel bins
MEL_PATCHES = media.MELS // PATCH  # patches above each other

# Qwen2's turns; a picture, video or sound is its mark and a line break before the text.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{{- part['text'] if part['type'] == 'text' else '<' + part['type'] + '>\\n' -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


class VideoLlama2Processor(ProcessorMixin):
    """Prepare text, pictures, videos and sounds for :class:`VideoLlama2ForConditionalGeneration`.

    Frames are squashed to the vision tower's square, as in the released inference code, not padded. What a video file
    sounds like comes right after what it looks like.

    Args:
        image_processor: SigLIP's; frames are resized by PIL, as in the released code, also where torchvision is installed.
        tokenizer: Qwen2's, with the three placeholder tokens of ``TOKENS`` added.
        num_frames: frames per video, 2 to 32.
        audio_policy: ``"paper"`` is what the released code does: of a video's sound eight clips of 2 s spread over the
            track, of a sound alone its first 30 s, and silence after them up to 30 s. ``"plain"`` is the first 30 s of
            either as they are: less silence, but not what the model was trained on.
        patch_size: of the vision tower, in pixels.
        downsample: of the connector, in time, height and width.
        chat_template: how conversations are written; Qwen2's turns by default.

    Raises:
        UserError: if the number of frames or the policy is not right, or the tokenizer lacks the placeholders.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_frames: int = 8,
        audio_policy: str = "paper",
        patch_size: int = 14,
        downsample: Sequence[int] = (2, 2, 2),
        chat_template: str | None = None,
    ):
        if image_processor is not None and not isinstance(image_processor, SiglipImageProcessorPil):
            image_processor = SiglipImageProcessorPil.from_dict(image_processor.to_dict())
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        if not 2 <= (whole(num_frames) or 0) <= MOST_FRAMES:
            raise UserError(f"num_frames is a whole number from 2 to {MOST_FRAMES}, not {num_frames}.")
        if audio_policy not in AUDIO_POLICIES:
            raise unknown("audio policy", audio_policy, AUDIO_POLICIES)
        self.num_frames = whole(num_frames)
        self.audio_policy = audio_policy
        self.patch_size = patch_size
        self.downsample = list(downsample)
        for kind in KINDS:
            if TOKENS[kind] not in tokenizer.get_vocab():
                raise UserError(f"The tokenizer has no token {TOKENS[kind]}: tamp convert-videollama2 adds it.")
            setattr(self, f"{kind}_token", MARKS[kind])
            setattr(self, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(TOKENS[kind]))

    def __call__(
        self,
        text: str | Sequence[str],
        images: Sequence | None = None,
        videos: Sequence | None = None,
        audios: Sequence | None = None,
        sound: bool = True,
        return_tensors: str | None = "pt",
        **settings,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            text: one or several texts, with a mark ``<image>``, ``<video>`` or ``<audio>`` for each of what follows, in
                order of appearance throughout the batch.
            images: PIL pictures.
            videos: each a path, an array (frames, H, W, 3) uint8, or a list of PIL frames; frames are drawn evenly. An
                array or file with too few repeats some, a list is filled up with black frames.
            audios: each a path, or a pair of a float array (samples,) or (samples, channels) and its rate in Hz. In
                texts without ``<audio>`` they are the sounds of the videos, one each, None for a silent one.
            sound: hear what video files sound like, if ``audios`` says nothing else.
            return_tensors: ``"pt"``.
            settings: for the tokenizer, such as ``padding=True`` and ``padding_side="left"``.

        Returns:
            input_ids and attention_mask (B, T), and as needed pixel_values (images, 3, H, W), pixel_values_videos
            (videos, frames, 3, H, W), input_features (sounds, frames, 128) and, if sounds differ in length,
            input_features_mask (sounds, frames) bool.

        Raises:
            UserError: if marks do not fit what was passed, or a file cannot be read.
        """
        texts = [text] if isinstance(text, str) else list(text)
        images, videos, audios = (list(given) if given is not None else [] for given in (images, videos, audios))
        marks = {kind: sum(one.count(MARKS[kind]) for one in texts) for kind in KINDS}
        if audios and not marks["audio"] and len(audios) == len(videos):
            heard, audios = audios, []  # what each video sounds like
        else:
            heard = [video if sound and _is_path(video) and media.has_audio(video) else None for video in videos]
        for kind, given in zip(KINDS, (images, videos, audios)):
            if marks[kind] != len(given):
                raise UserError(f"The text has {marks[kind]} {MARKS[kind]} marks for {len(given)} {kind}s.")

        banks: list[Tensor] = []  # (frames, 128) for every sound, in order of appearance
        alone, beside = iter(audios), iter(heard)

        def expand(mark: re.Match) -> str:
            kind = mark[1]
            written = "" if kind == "audio" else TOKENS[kind] * self.visual_tokens
            if kind != "image":
                made = self._bank(next(alone), False) if kind == "audio" else self._bank(next(beside), True)
                if made is not None:
                    banks.append(made)
                    written += TOKENS["audio"] * (len(made) // PATCH * MEL_PATCHES)
            return written

        found = {}
        if images:
            found["pixel_values"] = self._pixels(images)
        if videos:
            found["pixel_values_videos"] = torch.stack([self._pixels(self._frames(video)) for video in videos])
        texts = [re.sub(f"<({'|'.join(KINDS)})>", expand, one) for one in texts]
        if banks:
            found["input_features"] = nn.utils.rnn.pad_sequence(banks, batch_first=True)
            frames = torch.tensor([len(bank) for bank in banks])
            if frames.min() < frames.max():
                found["input_features_mask"] = torch.arange(int(frames.max())) < frames[:, None]
        return BatchFeature({**self.tokenizer(texts, return_tensors=return_tensors, **settings), **found})

    def apply_chat_template(
        self,
        conversation: list,
        chat_template: str | None = None,
        tokenize: bool = False,
        return_dict: bool = False,
        processor_kwargs: dict | None = None,
        **settings,
    ):
        """Write chat messages as text, and with ``tokenize`` prepare them together with their media.

        Args:
            conversation: messages, or a list of conversations; a message's content is a text or a list of parts such as
                ``{"type": "video", "video": ...}`` and ``{"type": "text", "text": ...}``.
            chat_template: instead of the processor's own.
            tokenize: go on to ids, pixels and filter banks.
            return_dict: return all of these, not the ids alone.
            processor_kwargs: for the call of the processor.
            settings: such as ``add_generation_prompt=True``.

        Returns:
            A text, or several for several conversations; or what :meth:`__call__` returns.
        """
        text = super().apply_chat_template(conversation, chat_template, tokenize=False, **settings)
        if not tokenize:
            return text
        batch = [conversation] if isinstance(text, str) else conversation
        contents = [message["content"] for messages in batch for message in messages]
        parts = [part for content in contents if not isinstance(content, str) for part in content]
        given = {f"{kind}s": [part[kind] for part in parts if part["type"] == kind] for kind in KINDS}
        made = self(text, **given, **(processor_kwargs or {}))
        return made if return_dict else made["input_ids"]

    @property
    def visual_tokens(self) -> int:
        """Count the tokens of one video, or of one picture."""
        size, (time, *space) = self.image_processor.size, self.downsample
        sides = (size["height"] // self.patch_size, size["width"] // self.patch_size)
        return self.num_frames // time * math.prod(side // shrink for side, shrink in zip(sides, space))

    def _pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Squash and normalise pictures, (n, 3, H, W)."""
        return self.image_processor(images=pictures, return_tensors="pt")["pixel_values"]

    def _frames(self, video) -> list[Image.Image]:
        """Draw the frames of a video, ``num_frames`` of them."""
        if _is_path(video):
            return [Image.fromarray(frame) for frame in media.read_video(video, self.num_frames)]
        if isinstance(video, list | tuple) and video and all(isinstance(frame, Image.Image) for frame in video):
            black = [Image.new("RGB", video[0].size)] * (self.num_frames - len(video))
            frames = [*video, *black]
        else:
            array = np.asarray(video)
            if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or not len(array):
                raise UserError(
                    "A video is a path, an array (frames, height, width, 3) of uint8, or a list of PIL pictures, not "
                    f"{array.dtype} of shape {array.shape}."
                )
            frames = [Image.fromarray(frame) for frame in array]
        return [frames[place] for place in media.frame_indices(len(frames), self.num_frames)]

    def _bank(self, sound, of_video: bool) -> Tensor | None:
        """Make a sound's filter bank, (frames, 128); None if there is no sound."""
        if sound is None and of_video:
            return None
        clips = of_video and self.audio_policy == "paper"
        if _is_path(sound):
            waveform = media.read_audio(sound, None if clips else MOST_SECONDS)
        elif isinstance(sound, list | tuple) and len(sound) == 2:
            waveform = media.resample(*sound)
        else:
            raise UserError(f"A sound is a path or a pair of an array and its rate in Hz, not {type(sound).__name__}.")
        if clips:
            return media.fbank(media.paper_clips(waveform))
        most = int(MOST_SECONDS * media.RATE)
        least = most if self.audio_policy == "paper" else media.WINDOW + (PATCH - 1) * media.HOP
        return media.fbank(np.pad(waveform[:most], (0, max(0, least - len(waveform)))))


def _is_path(given) -> bool:
    return isinstance(given, str | Path)
