"""Tiny models in which a picture, projected or resampled, takes the place of tokens of a language model."""

from collections.abc import Callable

import torch
import transformers

from families import IMAGE, QWEN_TEXT, QWEN_VISION, TEXT, VISION, noise, sample, tokens

VIDEO = IMAGE + 1
START, END, BREAK, GLOBAL, TILE = range(IMAGE + 2, IMAGE + 7)
NEWLINE = 101

CLIP = {"model_type": "clip_vision_model", **VISION}
SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION}
PIXTRAL = {"model_type": "pixtral", **VISION, "image_size": 32, "head_dim": 8}
SLIDING = {
    "num_hidden_layers": 4,
    "sliding_window": 12,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}


def _samples(media: Callable[[int], tuple[list[int], dict]]) -> list[dict]:
    """Put text around ``media(n)``, which returns the token ids and tensors of the n-th of two, and add text alone."""
    made = []
    for n in range(2):
        ids, tensors = media(n)
        made.append(sample(tokens(3, n) + ids + tokens(8 + 4 * n, 10 + n), **tensors))
    return [*made, sample(tokens(17, 20))]


def _images(ids: list[int], *shape: int) -> list[dict]:
    """Make samples with pixels of one shape, and one of text alone."""
    return _samples(lambda n: (ids, {"pixel_values": noise(*shape, seed=n)}))


def _add_types(samples: list[dict], key: str) -> list[dict]:
    """Add what tells the kinds of tokens apart: 1 for image, 2 for video."""
    for made in samples:
        made[key] = (made["input_ids"] == IMAGE).long() + 2 * (made["input_ids"] == VIDEO).long()
    return samples


def _frames(count: int, tokens_of_video: int) -> tuple[list[int], dict]:
    return [VIDEO] * tokens_of_video, {"pixel_values_videos": noise(1, count, 3, 16, 16)}


def _llava(text_type: str):
    config = transformers.LlavaConfig(
        vision_config=CLIP,
        text_config={"model_type": text_type, **TEXT},
        image_token_id=IMAGE,
        image_seq_length=16,
    )
    return transformers.LlavaForConditionalGeneration(config), _images([IMAGE] * 16, 1, 3, 16, 16)


def llava():
    return _llava("llama")


def llava_phi3():
    return _llava("phi3")


def vipllava():
    config = transformers.VipLlavaConfig(
        vision_config=CLIP,
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        image_seq_length=16,
        vision_feature_layer=[-1, -2],
    )
    return transformers.VipLlavaForConditionalGeneration(config), _images([IMAGE] * 16, 1, 3, 16, 16)


def _any_resolution(height: int, width: int) -> tuple[list[int], dict]:
    """Make an image of whole tiles: 16 tokens for all of it, 16 for every tile, and one after every row of patches."""
    tiles = (height // 16) * (width // 16)
    tensors = {"pixel_values": noise(1, 1 + tiles, 3, 16, 16), "image_sizes": torch.tensor([[height, width]])}
    return [IMAGE] * (16 + 16 * tiles + height // 4), tensors


def llava_next():
    config = transformers.LlavaNextConfig(
        vision_config=CLIP,
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    )
    samples = _samples(lambda n: _any_resolution(16 + 16 * n, 32))
    return transformers.LlavaNextForConditionalGeneration(config), samples


def llava_next_video():
    config = transformers.LlavaNextVideoConfig(
        vision_config=CLIP,
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    )
    samples = _samples(lambda n: [_any_resolution(16, 32), _frames(3, 3 * 4)][n])
    return transformers.LlavaNextVideoForConditionalGeneration(config), samples


def llava_onevision():
    config = transformers.LlavaOnevisionConfig(
        vision_config=SIGLIP,
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=[[16, 16], [16, 32], [32, 32]],
    )
    samples = _samples(lambda n: [_any_resolution(16, 32), _frames(3, 3 * 4 + 1)][n])
    samples[0]["batch_num_images"] = torch.tensor([1])
    return transformers.LlavaOnevisionForConditionalGeneration(config), samples


def video_llava():
    config = transformers.VideoLlavaConfig(
        vision_config=CLIP,
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_seq_length=16,
        video_seq_length=2 * 17,
    )
    image = [IMAGE] * 16, {"pixel_values_images": noise(1, 3, 16, 16)}
    samples = _samples(lambda n: [image, _frames(2, 2 * 17)][n])
    return transformers.VideoLlavaForConditionalGeneration(config), samples


def internvl():
    config = transformers.InternVLConfig(
        vision_config=VISION,
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=IMAGE,
        image_seq_length=4,
    )
    samples = _images([START, *[IMAGE] * 12, END], 3, 3, 16, 16)
    return transformers.InternVLForConditionalGeneration(config), samples


def qianfan_ocr():
    config = transformers.QianfanOCRConfig(
        vision_config=VISION,
        text_config={"model_type": "qwen3", "head_dim": 8, **TEXT},
        image_token_id=IMAGE,
        image_seq_length=4,
    )
    samples = _images([START, *[IMAGE] * 12, END], 3, 3, 16, 16)
    return transformers.QianfanOCRForConditionalGeneration(config), samples


def _pixtral_image(n: int) -> dict:
    """Make an image of 2 rows of 2 or 3 tokens."""
    return {"pixel_values": noise(1, 3, 16, 16 + 8 * n, seed=n), "image_sizes": torch.tensor([[16, 16 + 8 * n]])}


def mistral3():
    config = transformers.Mistral3Config(
        vision_config=PIXTRAL,
        text_config={"model_type": "mistral", "head_dim": 8, **TEXT},
        image_token_id=IMAGE,
    )
    rows = [[IMAGE] * 2, [IMAGE] * 3]
    samples = _samples(lambda n: ([*rows[n], BREAK, *rows[n], END], _pixtral_image(n)))
    return transformers.Mistral3ForConditionalGeneration(config), samples


def lighton_ocr():
    config = transformers.LightOnOcrConfig(
        vision_config=PIXTRAL,
        text_config={"model_type": "qwen3", "head_dim": 8, **TEXT},
        image_token_id=IMAGE,
    )
    samples = _samples(lambda n: ([IMAGE] * (4 + 2 * n), _pixtral_image(n)))
    return transformers.LightOnOcrForConditionalGeneration(config), samples


def got_ocr2():
    config = transformers.GotOcr2Config(
        vision_config={
            "hidden_size": 16,
            "output_channels": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 4,
            "window_size": 4,
            "global_attn_indexes": [1],
            "mlp_dim": 24,
            "initializer_range": 0.02,
        },
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=IMAGE,
        image_seq_length=16,
    )
    samples = _images([START, *[IMAGE] * 16, END], 1, 3, 64, 64)
    return transformers.GotOcr2ForConditionalGeneration(config), samples


def aya_vision():
    config = transformers.AyaVisionConfig(
        vision_config=SIGLIP,
        text_config={"model_type": "cohere2", **TEXT, **SLIDING},
        image_token_id=IMAGE,
    )
    patches = [IMAGE] * 4
    samples = _images([START, TILE, *patches, TILE + 1, *patches, GLOBAL, *patches, END], 3, 3, 16, 16)
    return transformers.AyaVisionForConditionalGeneration(config), samples


def cohere2_vision():
    config = transformers.Cohere2VisionConfig(
        vision_config=SIGLIP,
        text_config={"model_type": "cohere2", **TEXT, **SLIDING},
        image_token_id=IMAGE,
        alignment_intermediate_size=48,
    )
    samples = _images([START, *([IMAGE] * 4 + [BREAK]) * 3, END], 3, 3, 16, 16)
    return transformers.Cohere2VisionForConditionalGeneration(config), samples


def idefics():
    """Images reach the decoder through cross-attention; a text alone comes with an empty image and a mask of zeros."""
    config = transformers.IdeficsConfig(
        **{**TEXT, "num_hidden_layers": 4},
        additional_vocab_size=2,
        alpha_type="vector",
        alpha_initializer="ones",
        initializer_range=0.1,
        cross_layer_interval=2,
        qk_layer_norms=True,
        use_resampler=True,
        vision_config={"embed_dim": 16, **{key: VISION[key] for key in VISION if key != "hidden_size"}},
        perceiver_config={
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
        },
    )
    fake, image = 128, 129  # the two additional ids
    samples = _images([fake, image, fake], 1, 1, 3, 16, 16)
    samples[2]["pixel_values"] = torch.zeros(1, 1, 3, 16, 16)
    for made in samples:
        made["image_attention_mask"] = (made["input_ids"] == image).long().cumsum(1).unsqueeze(-1)
    return transformers.IdeficsForVisionText2Text(config), samples


def idefics2():
    config = transformers.Idefics2Config(
        vision_config=VISION,
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
        },
        text_config={"model_type": "mistral", **TEXT},
        image_token_id=IMAGE,
    )

    def image(n: int) -> tuple[list[int], dict]:
        mask = torch.ones(1, 1 + n, 16, 16, dtype=torch.long)
        tensors = {"pixel_values": noise(1, 1 + n, 3, 16, 16, seed=n), "pixel_attention_mask": mask}
        return [START, *([IMAGE] * 4 + [START]) * (1 + n)], tensors

    model = transformers.Idefics2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.connector.perceiver_resampler.latents)  # all ones at first
    return model, _samples(image)


def _split_image(tokens_per_tile: int) -> list[int]:
    """Write a row of two tiles and the whole image, as the processors of Idefics 3 and its kin do."""
    tile = [IMAGE] * tokens_per_tile
    return [START, TILE, *tile, START, TILE + 1, *tile, NEWLINE, NEWLINE, START, GLOBAL, *tile, START]


def _tiles(n: int) -> tuple[list[int], dict]:
    mask = torch.ones(1, 3, 16, 16, dtype=torch.long)
    return _split_image(4), {"pixel_values": noise(1, 3, 3, 16, 16, seed=n), "pixel_attention_mask": mask}


def idefics3():
    config = transformers.Idefics3Config(
        vision_config=VISION, text_config={"model_type": "llama", **TEXT}, image_token_id=IMAGE, pad_token_id=0
    )
    return transformers.Idefics3ForConditionalGeneration(config), _samples(_tiles)


def smolvlm():
    config = transformers.SmolVLMConfig(
        vision_config=VISION, text_config={"model_type": "llama", **TEXT}, image_token_id=IMAGE, pad_token_id=0
    )
    return transformers.SmolVLMForConditionalGeneration(config), _samples(_tiles)


def granite_docling():
    """The second sample takes the fine route, with four times as many tokens."""
    config = transformers.GraniteDoclingConfig(
        vision_config={**VISION, "out_hidden_size": 32, "scale_factor": 2, "deepstack_visual_indexes": [0, 1]},
        text_config={**TEXT, "attention_multiplier": 0.125},
        image_token_id=IMAGE,
        pad_token_id=0,
    )

    def tiles(n: int) -> tuple[list[int], dict]:
        mask = torch.ones(1, 3, dtype=torch.bool)
        tensors = {"pixel_values": noise(1, 3, 3, 16, 16, seed=n), "pixel_attention_mask": mask}
        if n:
            tensors["tile_fine_mask"] = torch.ones(1, dtype=torch.bool)
        return _split_image(4 + 12 * n), tensors

    return transformers.GraniteDoclingForConditionalGeneration(config), _samples(tiles)


def ovis2():
    config = transformers.Ovis2Config(
        vision_config={**VISION, "hidden_stride": 2, "vocab_size": 24},
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=IMAGE,
        visual_indicator_token_ids=[START, GLOBAL, TILE, BREAK, END],
        vocab_size=128,
        hidden_size=32,
    )
    patches = [IMAGE] * 4
    samples = _images([START, *patches, GLOBAL, *patches, TILE, *patches, END], 3, 3, 16, 16)
    return transformers.Ovis2ForConditionalGeneration(config), samples


def janus():
    config = transformers.JanusConfig(
        vision_config={**VISION, "mlp_ratio": 2, "projection_dim": 32, "num_image_tokens": 16},
        vq_config={
            "embed_dim": 4,
            "num_embeddings": 16,
            "latent_channels": 32,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "projection_dim": 32,
            "image_token_embed_dim": 32,
        },
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
    )
    samples = _images([START, *[IMAGE] * 16, END], 1, 3, 16, 16)
    return transformers.JanusForConditionalGeneration(config), samples


def deepseek_vl():
    config = transformers.DeepseekVLConfig(
        vision_config=SIGLIP, text_config={"model_type": "llama", **TEXT}, image_token_id=IMAGE
    )
    return transformers.DeepseekVLForConditionalGeneration(config), _images([IMAGE] * 16, 1, 3, 16, 16)


def deepseek_vl_hybrid():
    config = transformers.DeepseekVLHybridConfig(
        vision_config=SIGLIP,
        high_res_vision_config={
            "hidden_size": 16,
            "output_channels": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 4,
            "window_size": 4,
            "global_attn_indexes": [1],
            "mlp_dim": 24,
            "num_pos_feats": 8,
        },
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
    )
    samples = _images([IMAGE] * 16, 1, 3, 16, 16)
    for n in range(2):
        samples[n]["high_res_pixel_values"] = noise(1, 3, 32, 32, seed=n)
    return transformers.DeepseekVLHybridForConditionalGeneration(config), samples


def _paligemma(text_config: dict):
    """Tokens of type 0 see one another in both directions; the second sample ends in a suffix of type 1, which is causal."""
    config = transformers.PaliGemmaConfig(
        vision_config=SIGLIP,
        text_config={**TEXT, "head_dim": 8, **text_config},
        image_token_id=IMAGE,
        projection_dim=32,
        hidden_size=32,
        vocab_size=128,
    )
    samples = []
    for n in range(3):
        image = {"pixel_values": noise(1, 3, 16, 16, seed=n)} if n < 2 else {}
        ids = [IMAGE] * 16 * len(image) + [TEXT["bos_token_id"]] + tokens(8 + 4 * n, n) + [NEWLINE]
        suffix = tokens(5, 10) if n == 1 else []
        types = torch.tensor([[0] * len(ids) + [1] * len(suffix)])
        made = sample(ids + suffix, token_type_ids=types, **image)
        samples.append({**made, "labels": made["input_ids"].masked_fill(types == 0, -100)})
    return transformers.PaliGemmaForConditionalGeneration(config), samples


def paligemma():
    return _paligemma({"model_type": "gemma"})


def paligemma2():
    return _paligemma({"model_type": "gemma2", "query_pre_attn_scalar": 8, **SLIDING})


def gemma3():
    config = transformers.Gemma3Config(
        vision_config=SIGLIP,
        text_config={**TEXT, "head_dim": 8, "query_pre_attn_scalar": 8, **SLIDING},
        image_token_id=IMAGE,
        boi_token_id=START,
        eoi_token_id=END,
        mm_tokens_per_image=4,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.1)  # zeros at first
    samples = _images([NEWLINE, START, *[IMAGE] * 4, END, NEWLINE], 1, 3, 16, 16)
    return model, _add_types(samples, "token_type_ids")


def _qwen_image(n: int) -> tuple[list[int], dict]:
    tensors = {"pixel_values": noise(48, 3 * 2 * 4 * 4, seed=n), "image_grid_thw": torch.tensor([[1, 6, 8]])}
    return [START, *[IMAGE] * 12, END], tensors


def hyperclovax_vision_v2():
    config = transformers.HyperCLOVAXVisionV2Config(
        vision_config={"model_type": "qwen2_5_vl_vision", **QWEN_VISION},
        text_config={"model_type": "hyperclovax", **TEXT, "residual_multiplier": 0.5},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    video = {"pixel_values_videos": noise(48, 3 * 2 * 4 * 4), "video_grid_thw": torch.tensor([[2, 4, 6]])}
    samples = _samples(lambda n: [_qwen_image(n), ([START, *[VIDEO] * 12, END], video)][n])
    return transformers.HyperCLOVAXVisionV2ForConditionalGeneration(config), samples


def cohere_compass():
    config = transformers.CohereCompassConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        text_config={
            **TEXT,
            **SLIDING,
            "rope_parameters": {
                "sliding_attention": QWEN_TEXT["rope_parameters"],
                "full_attention": None,
            },
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    frame = [START, *[VIDEO] * 6, END]
    video = {"pixel_values_videos": noise(48, 3 * 2 * 4 * 4), "video_grid_thw": torch.tensor([[2, 4, 6]])}
    samples = _samples(lambda n: [_qwen_image(n), (tokens(2, 30) + frame + tokens(2, 31) + frame, video)][n])
    return transformers.CohereCompassForConditionalGeneration(config), _add_types(samples, "mm_token_type_ids")
