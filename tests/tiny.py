"""Tiny random models of seven families that most tests take, each with a few samples of different lengths.

The models are those of :mod:`families`; of their samples, nearly all have media.
"""

import families
import tiny_videollama2
import torch
from families import IMAGE, QWEN_TEXT, TEXT, llava_like, noise, qwen_like, sample, text_only, tokens

__all__ = ["FAMILIES", "IMAGE", "MODALITIES", "QWEN_TEXT", "TEXT", "build", "noise", "sample", "tokens"]


def _square(n: int, before: int, after: int) -> dict:
    """Make a sample with a square image: 16 base tokens and 2 x 2 tiles of 16, a newline after each of their 8 rows."""
    return sample(
        tokens(before, n) + [IMAGE] * (16 + 64 + 8) + tokens(after + n, 10 + n),
        pixel_values=noise(1, 5, 3, 16, 16, seed=n),
        image_sizes=torch.tensor([[32, 32]]),
    )


def llava_next():
    model, _ = llava_like.llava_next()
    model.config.vision_feature_layer = -1  # pictures that leave no tie to last bits
    return model, [_square(n, 3, 5) for n in range(3)]


def llava_onevision():
    words = sample(tokens(9, 5))
    return llava_like.llava_onevision()[0], [_square(0, 2, 4), _square(1, 2, 4), words]


def qwen2_5_vl():
    made = []
    for n in range(3):
        ids = tokens(3, n) + qwen_like.PICTURE + tokens(4 + n, 10 + n)
        kinds = (torch.tensor([ids]) == IMAGE).int()
        grid = torch.tensor([[1, 6, 8]])
        made.append(sample(ids, pixel_values=noise(48, 96, seed=n), image_grid_thw=grid, mm_token_type_ids=kinds))
    return qwen_like.qwen2_5_vl()[0], made


def qwen2_5_omni():
    video = [qwen_like.START, *[qwen_like.VIDEO] * 12, qwen_like.END]
    sound = [qwen_like.AUDIO_START, *[qwen_like.AUDIO] * 10, qwen_like.AUDIO_END]
    return qwen_like.qwen2_5_omni_thinker()[0], [
        sample(
            tokens(3, 200 + n) + video + sound + tokens(4 + n, 210 + n),  # words that leave no tie to last bits
            pixel_values_videos=noise(48, 96, seed=n),
            video_grid_thw=torch.tensor([[1, 6, 8]]),
            video_second_per_grid=torch.tensor([1.0]),
            input_features=noise(1, 8, 40, seed=n),
            feature_attention_mask=torch.ones(1, 40, dtype=torch.long),
        )
        for n in range(3)
    ]


def videollama2():
    made = [tiny_videollama2.av(), tiny_videollama2.video_only(), tiny_videollama2.audio_only()]
    return tiny_videollama2.build(), [*made, tiny_videollama2.text_only()]


def smolvlm():
    return llava_like.smolvlm()[0], [
        sample(tokens(2, n) + [IMAGE] * 8 + tokens(5 + n, 10 + n), pixel_values=noise(1, 2, 3, 16, 16, seed=n))
        for n in range(3)
    ]


def llama():
    return text_only.llama()[0], [sample(tokens(8 + 3 * n, n)) for n in range(3)]


FAMILIES = {
    make.__name__: make for make in (llava_next, llava_onevision, qwen2_5_vl, qwen2_5_omni, videollama2, smolvlm, llama)
}
MODALITIES = {"llama": 1, "qwen2_5_omni": 3, "videollama2": 3}
"""How many modalities a family's samples have, if not two."""


def build(family: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa"):
    """Build a family's tiny model and its samples, see :func:`families.seeded`."""
    model, samples = families.seeded(FAMILIES[family], dtype)
    model.set_attn_implementation(attention)
    return model, samples
