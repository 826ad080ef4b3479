"""Tiny random models of several transformers families, each with a few samples of different lengths.

No weights are downloaded and no processor is needed: samples are written the way the family's processor writes them.
"""

import tiny_videollama2
import torch
import transformers

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
IMAGE = 120


def tokens(length: int, seed: int) -> list[int]:
    """Make random text token ids that are no placeholder."""
    return torch.randint(3, 100, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Make random pixels."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sample(ids: list[int], **extra) -> dict:
    """Make a processor output of one row."""
    ids = torch.tensor([ids])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **extra}


def llava_next():
    config = transformers.LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
        vision_feature_layer=-1,
    )
    model = transformers.LlavaNextForConditionalGeneration(config)
    # A square image: 16 base tokens and 2 x 2 tiles of 16, with a newline token after each of their 8 rows.
    made = [
        sample(
            tokens(3, n) + [IMAGE] * (16 + 64 + 8) + tokens(5 + n, 10 + n),
            pixel_values=noise(1, 5, 3, 16, 16, seed=n),
            image_sizes=torch.tensor([[32, 32]]),
        )
        for n in range(3)
    ]
    return model, made


def llava_onevision():
    config = transformers.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **VISION},
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=IMAGE,
        video_token_id=IMAGE + 1,
        image_grid_pinpoints=[[16, 16], [32, 32]],
        vision_feature_layer=-1,
        vision_aspect_ratio="anyres_max_9",
    )
    model = transformers.LlavaOnevisionForConditionalGeneration(config)
    made = [
        sample(
            tokens(2, n) + [IMAGE] * (16 + 64 + 8) + tokens(4 + n, 10 + n),
            pixel_values=noise(1, 5, 3, 16, 16, seed=n),
            image_sizes=torch.tensor([[32, 32]]),
        )
        for n in range(2)
    ]
    made.append(sample(tokens(9, 5)))  # a conversation without a picture
    return model, made


QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 16,
    "fullatt_block_indexes": [1],
}
QWEN_TEXT = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}


def qwen2_5_vl():
    config = transformers.Qwen2_5_VLConfig(
        vision_config=QWEN_VISION,
        text_config=QWEN_TEXT,
        image_token_id=IMAGE,
        video_token_id=IMAGE + 1,
        vision_start_token_id=IMAGE + 2,
        vision_end_token_id=IMAGE + 3,
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    made = []
    for n in range(3):
        ids = tokens(3, n) + [IMAGE + 2] + [IMAGE] * 12 + [IMAGE + 3] + tokens(4 + n, 10 + n)
        made.append(
            sample(
                ids,
                pixel_values=noise(48, 3 * 2 * 4 * 4, seed=n),
                image_grid_thw=torch.tensor([[1, 6, 8]]),
                mm_token_type_ids=(torch.tensor([ids]) == IMAGE).int(),
            )
        )
    return model, made


def qwen2_5_omni():
    audio = {
        "num_mel_bins": 8,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "d_model": 16,
        "n_window": 8,
        "output_dim": 32,
        "max_source_positions": 64,
    }
    config = transformers.Qwen2_5OmniThinkerConfig(
        audio_config=audio,
        vision_config=QWEN_VISION,
        text_config=QWEN_TEXT,
        image_token_id=IMAGE,
        video_token_id=IMAGE + 1,
        vision_start_token_id=IMAGE + 2,
        vision_end_token_id=IMAGE + 3,
        audio_token_id=IMAGE + 4,
        audio_start_token_id=IMAGE + 5,
        audio_end_token_id=IMAGE + 6,
    )
    model = transformers.Qwen2_5OmniThinkerForConditionalGeneration(config)
    made = []
    for n in range(3):
        video = [IMAGE + 2] + [IMAGE + 1] * 12 + [IMAGE + 3]
        sound = [IMAGE + 5] + [IMAGE + 4] * 10 + [IMAGE + 6]
        made.append(
            sample(
                tokens(3, 200 + n) + video + sound + tokens(4 + n, 210 + n),  # words that leave no tie to last bits
                pixel_values_videos=noise(48, 3 * 2 * 4 * 4, seed=n),
                video_grid_thw=torch.tensor([[1, 6, 8]]),
                video_second_per_grid=torch.tensor([1.0]),
                input_features=noise(1, 8, 40, seed=n),
                feature_attention_mask=torch.ones(1, 40, dtype=torch.long),
            )
        )
    return model, made


def videollama2():
    made = [tiny_videollama2.av(), tiny_videollama2.video_only(), tiny_videollama2.audio_only()]
    return tiny_videollama2.build(), [*made, tiny_videollama2.text_only()]


def smolvlm():
    config = transformers.SmolVLMConfig(
        vision_config={"model_type": "smolvlm_vision", **VISION},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )
    model = transformers.SmolVLMForConditionalGeneration(config)
    made = [
        sample(tokens(2, n) + [IMAGE] * 8 + tokens(5 + n, 10 + n), pixel_values=noise(1, 2, 3, 16, 16, seed=n))
        for n in range(3)
    ]
    return model, made


def llama():
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))
    return model, [sample(tokens(8 + 3 * n, n)) for n in range(3)]


FAMILIES = {
    make.__name__: make for make in (llava_next, llava_onevision, qwen2_5_vl, qwen2_5_omni, videollama2, smolvlm, llama)
}
MODALITIES = {"llama": 1, "qwen2_5_omni": 3, "videollama2": 3}
"""How many modalities a family's samples have, if not two."""


def build(family: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa"):
    """Build a family's tiny model, seeded, in evaluation mode, and its samples."""
    torch.manual_seed(0)
    model, samples = FAMILIES[family]()
    for name, parameter in model.named_parameters():  # initial biases and norms are constant: make every weight count
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.1)
    model.set_attn_implementation(attention)
    return model.to(dtype).eval(), samples
