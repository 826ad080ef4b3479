"""Families that share little with the rest: towers and decoders of their own, and a few that tamp refuses."""

from collections.abc import Callable

import torch
import transformers

from families import IMAGE, QWEN_TEXT, TEXT, VISION, noise, sample, tokens


def _pictures(image: list[int], inputs: Callable[[int], dict]) -> list[dict]:
    """Two samples with a picture before the words, and words alone."""
    made = [sample(tokens(2, n) + image + tokens(9 + 4 * n, 10 + n), **inputs(n)) for n in range(2)]
    return [*made, sample(tokens(18, 5))]


def aria():
    text = {**TEXT, "intermediate_size": 24, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}
    config = transformers.AriaConfig(
        vision_config={"model_type": "idefics3_vision", **VISION},
        text_config=text,
        projector_patch_to_query_dict={16: 6},
        image_token_index=IMAGE,
    )
    model = transformers.AriaForConditionalGeneration(config)
    mask = torch.ones(1, 16, 16, dtype=torch.bool)
    return model, _pictures([IMAGE] * 6, lambda n: {"pixel_values": noise(1, 3, 16, 16, seed=n), "pixel_mask": mask})


def llama4():
    text = {
        **TEXT,
        "num_hidden_layers": 4,
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_layers": [1, 3],
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 12,
    }
    vision = {
        **VISION,
        "intermediate_size": 64,
        "projector_input_dim": 16,
        "projector_output_dim": 16,
        "vision_output_dim": 16,
    }
    config = transformers.Llama4Config(
        text_config=text,
        vision_config=vision,
        boi_token_index=IMAGE + 1,
        eoi_token_index=IMAGE + 2,
        image_token_index=IMAGE,
    )
    model = transformers.Llama4ForConditionalGeneration(config)
    # One tile: start, the token before the whole image, 4 x 4 patches shuffled to 2 x 2, end.
    image = [IMAGE + 1, IMAGE + 3] + [IMAGE] * 4 + [IMAGE + 2]
    return model, _pictures(image, lambda n: {"pixel_values": noise(1, 3, 16, 16, seed=n)})


def mllama():
    config = transformers.MllamaConfig(
        vision_config={
            **VISION,
            "num_global_layers": 1,
            "attention_heads": 2,
            "vision_output_dim": 32,
            "intermediate_layers_indices": [0],
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        text_config={**TEXT, "num_hidden_layers": 4, "cross_attention_layers": [1]},
        image_token_index=128,
    )
    model = transformers.MllamaForConditionalGeneration(config)
    made = []
    for n in range(2):
        ids = [128, 1] + tokens(9 + 4 * n, n)
        tiles = torch.tensor([[[1, n]]])
        made.append(
            sample(
                ids,
                pixel_values=noise(1, 1, 2, 3, 16, 16, seed=n),
                aspect_ratio_ids=torch.tensor([[1 + n]]),
                aspect_ratio_mask=tiles,
                cross_attention_mask=tiles[None].expand(1, len(ids), 1, 2).clone(),
            )
        )
    return model, [*made, sample(tokens(18, 5))]


def gemma3n():
    """The vision tower is a ResNet: the family's own comes from timm, which is not installed."""
    text = {
        **TEXT,
        "num_hidden_layers": 6,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "sliding_window": 8,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 104,
        "hidden_size_per_layer_input": 8,
        "altup_num_inputs": 2,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0, 0.0, 0.0],
    }
    soft = {"hidden_size": 16, "vocab_size": 8, "rms_norm_eps": 1e-6}
    audio = {
        **soft,
        "vocab_offset": 120,
        "input_feat_size": 16,
        "conf_num_attention_heads": 2,
        "conf_num_hidden_layers": 1,
        "sscp_conv_channel_size": [4, 4],
    }
    config = transformers.Gemma3nConfig(
        text_config=text,
        audio_config=audio,
        audio_soft_tokens_per_image=6,
        vision_soft_tokens_per_image=16,
        boi_token_id=110,
        eoi_token_id=112,
        image_token_id=113,
        boa_token_id=111,
        eoa_token_id=120,
        audio_token_id=121,
    )
    tower = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16], depths=[1], vocab_offset=112, **soft)
    vars(config)["vision_config"] = tower  # past the check of its type
    model = transformers.Gemma3nForConditionalGeneration(config)
    made = []
    for n in range(3):
        image = [110] + [113] * 16 + [112] if n < 2 else []
        sound = [111] + [121] * 6 + [120] if n == 1 else []
        ids = tokens(2, n) + image + sound + tokens(9 + 4 * n, 10 + n)
        made.append(sample(ids, token_type_ids=torch.tensor([[{113: 1, 121: 3}.get(i, 0) for i in ids]])))
        if image:
            made[n]["pixel_values"] = noise(1, 3, 16, 16, seed=n)
    made[1] |= {"input_features": noise(1, 64, 16), "input_features_mask": torch.ones(1, 64, dtype=torch.bool)}
    return model, made


_GEMMA4_TEXT = {
    **TEXT,
    "num_hidden_layers": 6,
    "head_dim": 8,
    "global_head_dim": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "sliding_window": 8,
    "num_kv_shared_layers": 2,
}
_GEMMA4_IDS = {
    "image_token_id": IMAGE,
    "boi_token_id": IMAGE + 1,
    "eoi_token_id": IMAGE + 2,
    "audio_token_id": IMAGE + 3,
    "boa_token_id": IMAGE + 4,
    "eoa_token_index": IMAGE + 5,
    "video_token_id": IMAGE + 6,
}


def _gemma4_samples(side: int, padding: int, values: int, frames: int) -> list[dict]:
    """An image of 4 tokens, an image and a sound of 5 tokens, and a text.

    An image has ``side`` x ``side`` patches of ``values`` values and ``padding`` empty ones, a sound ``frames`` of 16.
    """
    positions = torch.tensor([[[x, y] for y in range(side) for x in range(side)] + [[-1, -1]] * padding])
    made = []
    for n in range(3):
        image = [IMAGE + 1] + [IMAGE] * 4 + [IMAGE + 2] if n < 2 else []
        sound = [IMAGE + 4] + [IMAGE + 3] * 5 + [IMAGE + 5] if n == 1 else []
        ids = tokens(2, n) + image + sound + tokens(9 + 4 * n, 10 + n)
        made.append(sample(ids, mm_token_type_ids=torch.tensor([[{IMAGE: 1, IMAGE + 3: 3}.get(i, 0) for i in ids]])))
        if image:
            pixels = noise(1, positions.shape[1], values, seed=n).sigmoid()
            made[n] |= {"pixel_values": pixels, "image_position_ids": positions}
    made[1] |= {"input_features": noise(1, frames, 16), "input_features_mask": torch.ones(1, frames, dtype=torch.bool)}
    return made


def _gemma4(**extra):
    vision = {**VISION, "num_key_value_heads": 2, "head_dim": 8, "pooling_kernel_size": 2, "position_embedding_size": 8}
    audio = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "subsampling_conv_channels": [16, 4],
        "output_proj_dims": 16,
    }
    text = {**_GEMMA4_TEXT, "vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8, **extra}
    config = transformers.Gemma4Config(text_config=text, vision_config=vision, audio_config=audio, **_GEMMA4_IDS)
    return transformers.Gemma4ForConditionalGeneration(config), _gemma4_samples(4, 8, 3 * 4 * 4, 20)


def gemma4():
    return _gemma4(use_double_wide_mlp=True)


def gemma4_moe():
    return _gemma4(
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=24,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        use_bidirectional_attention="vision",
    )


def gemma4_unified():
    config = transformers.Gemma4UnifiedConfig(
        text_config=_GEMMA4_TEXT,
        vision_config={
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "mm_embed_dim": 16,
            "mm_posemb_size": 8,
            "output_proj_dims": 16,
        },
        audio_config={"audio_embed_dim": 16},
        **_GEMMA4_IDS,
    )
    return transformers.Gemma4UnifiedForConditionalGeneration(config), _gemma4_samples(2, 2, 3 * 8 * 8, 5)


def lfm2_vl():
    config = transformers.Lfm2VlConfig(
        vision_config={"model_type": "siglip2_vision_model", **VISION, "num_patches": 16},
        text_config={
            "model_type": "lfm2",
            **TEXT,
            "layer_types": ["conv", "full_attention", "conv"],
            "block_auto_adjust_ff_dim": False,
        },
        image_token_id=IMAGE,
        projector_hidden_size=16,
    )
    model = transformers.Lfm2VlForConditionalGeneration(config)
    # 4 x 6 patches, padded to 32: 6 tokens between start and end.
    grid = {"pixel_attention_mask": (torch.arange(32) < 24).int()[None], "spatial_shapes": torch.tensor([[4, 6]])}
    image = [IMAGE + 1] + [IMAGE] * 6 + [IMAGE + 2]
    return model, _pictures(image, lambda n: {"pixel_values": noise(1, 32, 3 * 4 * 4, seed=n), **grid})


_GRID_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": IMAGE + 1,
    "vision_start_token_id": IMAGE + 2,
    "vision_end_token_id": IMAGE + 3,
}


def _grid_samples(size: int, types: bool = False) -> list[dict]:
    """Two samples with 4 x 6 patches of ``size`` values that make 6 tokens between start and end, and a text."""
    made = []
    for n in range(3):
        image = [IMAGE + 2] + [IMAGE] * 6 + [IMAGE + 3] if n < 2 else []
        ids = tokens(2, n) + image + tokens(9 + 4 * n, 10 + n)
        made.append(sample(ids))
        if types:
            made[n]["mm_token_type_ids"] = (torch.tensor([ids]) == IMAGE).long()
        if image:
            made[n] |= {"pixel_values": noise(24, size, seed=n), "image_grid_thw": torch.tensor([[1, 4, 6]])}
    return made


def lfm3_vl():
    config = transformers.Lfm3VlConfig(
        vision_config={**VISION, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]},
        text_config={
            "model_type": "lfm3",
            **TEXT,
            "num_hidden_layers": 4,
            "head_dim": 8,
            "layer_types": ["conv", "sliding_attention", "conv", "full_attention"],
            "sliding_window": 8,
            "conv_L_cache": 3,
        },
        projector_hidden_size=16,
        **_GRID_IDS,
    )
    return transformers.Lfm3VlForConditionalGeneration(config), _grid_samples(3 * 2 * 4 * 4)


def granite4_vision():
    config = transformers.Granite4VisionConfig(
        vision_config={"model_type": "siglip_vision_model", **VISION, "hidden_size": 64},
        text_config={**TEXT, "num_hidden_layers": 6, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
        qformer_config={
            "model_type": "blip_2_qformer",
            "num_hidden_layers": 1,
            "intermediate_size": 24,
            "vocab_size": 8,
            "max_position_embeddings": 8,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
        },
        image_token_index=IMAGE,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        deepstack_layer_map=[[-2, 0]],
        spatial_target_layers=[1, 2, 3, 4],
    )
    model = transformers.Granite4VisionForConditionalGeneration(config)
    # A square image: 4 base tokens and 2 x 2 tiles of 4, with a newline token after each of their 4 rows.
    sizes = torch.tensor([[32, 32]])
    return model, _pictures(
        [IMAGE] * (4 + 16 + 4), lambda n: {"pixel_values": noise(1, 5, 3, 16, 16, seed=n), "image_sizes": sizes}
    )


def phi4_multimodal():
    audio = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_blocks": 2,
        "num_attention_heads": 2,
        "ext_pw_out_channel": 16,
        "depthwise_separable_out_channel": 16,
        "nemo_conv_channels": 4,
        "input_size": 16,
        "bias_max_distance": 16,
        "audio_token_id": IMAGE + 1,
    }
    config = transformers.Phi4MultimodalConfig(
        **TEXT,
        vision_config={**VISION, "crop_size": 16, "image_token_id": IMAGE},
        audio_config=audio,
    )
    model = transformers.Phi4MultimodalForCausalLM(config)
    # Two crops side by side and the whole image, each row of 2 x 2 pooled patches closed by a token, and one between.
    image = [IMAGE] * (2 * (4 + 1) + 1 + 2 * (2 + 1))
    made = []
    for n in range(2):
        sound = [IMAGE + 1] * 3 * n
        made.append(
            sample(
                tokens(2, n) + image + sound + tokens(9 + 4 * n, 10 + n),
                image_pixel_values=noise(1, 3, 3, 16, 16, seed=n),
                image_sizes=torch.tensor([[16, 32]]),
                image_attention_mask=torch.ones(1, 3, 4, 4),
            )
        )
    made[1] |= {"audio_input_features": noise(1, 24, 16), "audio_embed_sizes": torch.tensor([3])}
    return model, [*made, sample(tokens(18, 5))]


_KOSMOS_TEXT = {
    "vocab_size": 128,
    "max_position_embeddings": 128,
    "embed_dim": 32,
    "layers": 3,
    "ffn_dim": 48,
    "attention_heads": 4,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}


def kosmos_2():
    """The six tokens of an image are ordinary ids, from 4 on, that only the position mask tells from text."""
    config = transformers.Kosmos2Config(text_config=_KOSMOS_TEXT, vision_config=VISION, latent_query_num=6)
    model = transformers.Kosmos2ForConditionalGeneration(config)
    made = []
    for n in range(3):
        ids = [0, IMAGE, *range(4, 10), IMAGE + 1] + tokens(9 + 4 * n, n)
        mask = [0, 0] + [1] * 6 + [0] * (len(ids) - 8)
        made.append(
            sample(ids, pixel_values=noise(1, 3, 16, 16, seed=n), image_embeds_position_mask=torch.tensor([mask]))
        )
    return model, made


def _flattened_patches(seed: int) -> torch.Tensor:
    """4 x 6 patches of 48 values after their row and column, which count from 1, padded to 32."""
    places = torch.tensor([[row, column] for row in range(1, 5) for column in range(1, 7)])
    patches = torch.cat([places, noise(24, 48, seed=seed)], dim=-1)
    return torch.nn.functional.pad(patches, (0, 0, 0, 8))[None]


def kosmos_2_5():
    """The six tokens of an image have the id of the first token, and only the position mask tells them from it."""
    vision = {
        "hidden_size": 16,
        "patch_embed_hidden_size": 48,
        "intermediate_size": 24,
        "head_dim": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_num_patches": 32,
    }
    config = transformers.Kosmos2_5Config(text_config=_KOSMOS_TEXT, vision_config=vision, latent_query_num=6)
    model = transformers.Kosmos2_5ForConditionalGeneration(config)
    made = []
    for n in range(2):
        ids = [0, IMAGE] + [0] * 6 + [IMAGE + 1] + tokens(9 + 4 * n, n)
        made.append(
            sample(
                ids,
                flattened_patches=_flattened_patches(n),
                width=torch.tensor([24]),
                height=torch.tensor([16]),
                image_embeds_position_mask=torch.tensor([[0, -1] + [1] * 6 + [-1] + [0] * (len(ids) - 9)]),
            )
        )
    return model, [*made, sample([0] + tokens(18, 5))]


def fuyu():
    config = transformers.FuyuConfig(
        text_config={
            "model_type": "persimmon",
            **{key: value for key, value in TEXT.items() if key != "num_key_value_heads"},
            "qk_layernorm": True,
        },
        image_size=16,
        patch_size=4,
        image_token_id=IMAGE,
    )
    model = transformers.FuyuForCausalLM(config)
    # 2 x 4 patches with a newline token after each row, then the first token, the words, and the start of the answer.
    made = [
        sample(
            ([IMAGE] * 4 + [IMAGE + 1]) * 2 + [1] + tokens(9 + 4 * n, n) + [IMAGE + 2],
            pixel_values=noise(8, 3 * 4 * 4, seed=n),
        )
        for n in range(2)
    ]
    return model, [*made, sample(tokens(18, 5))]


_OPT = {
    "model_type": "opt",
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "ffn_dim": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def _blip(name: str, text: dict, qformer_tokens: bool = True, frames: int = 1, decoder: bool = False):
    """A BLIP model: a Q-former makes 6 tokens of every picture, before the first token of the text; text needs a picture."""
    placeholder = "video_token_index" if frames > 1 else "image_token_index"
    config = getattr(transformers, f"{name}Config")(
        vision_config={**VISION, "initializer_range": 0.02},
        qformer_config={
            "vocab_size": 128,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 64,
        },
        text_config=text,
        num_query_tokens=6,
        image_text_hidden_size=16,
        **{placeholder: IMAGE},
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    torch.nn.init.normal_(model.query_tokens)
    made = []
    for n in range(3):
        words = [text.get("bos_token_id", 2)] + tokens(9 + 4 * n, n)
        shape = (1, frames, 3, 16, 16) if frames > 1 else (1, 3, 16, 16)
        made.append(sample([IMAGE] * 6 * frames + words, pixel_values=noise(*shape, seed=n)))
        if qformer_tokens:
            ids = torch.tensor([tokens(9 + 4 * n, n)])
            made[n] |= {"qformer_input_ids": ids, "qformer_attention_mask": torch.ones_like(ids)}
        if decoder:
            made[n]["decoder_input_ids"] = torch.tensor([[0] + tokens(5, 10 + n)])
    return model, made


def blip_2_opt():
    return _blip("Blip2", _OPT, qformer_tokens=False)


def blip_2_t5():
    text = {
        "model_type": "t5",
        "vocab_size": 128,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 3,
        "num_heads": 4,
    }
    return _blip("Blip2", text, qformer_tokens=False, decoder=True)


def instructblip():
    return _blip("InstructBlip", {"model_type": "llama", **TEXT})


def instructblipvideo():
    return _blip("InstructBlipVideo", {"model_type": "llama", **TEXT}, frames=4)


def chameleon():
    codes = {f"IMGIMG{letter}Z": 110 + code for code, letter in enumerate("ABCDEFGH")}
    config = transformers.ChameleonConfig(
        **TEXT,
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 8,
            "latent_channels": 8,
            "resolution": 16,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1],
            "num_res_blocks": 1,
        },
        vocabulary_map={"<image>": IMAGE, **codes},
    )
    model = transformers.ChameleonForConditionalGeneration(config)
    made = [
        sample(
            tokens(2, n) + [IMAGE + 1] + [IMAGE] * 16 + [IMAGE + 2] + tokens(9 + 4 * n, 10 + n) + [IMAGE + 3],
            pixel_values=noise(1, 3, 16, 16, seed=n),
        )
        for n in range(2)
    ]
    return model, [*made, sample(tokens(18, 5) + [IMAGE + 3])]


def emu3():
    codes = {f"<|visual token {code:06}|>": 110 + code for code in range(8)}
    config = transformers.Emu3Config(
        text_config=TEXT,
        vq_config={
            "codebook_size": 8,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "hidden_size": 32,
        },
        vocabulary_map={"<image>": IMAGE, "<|extra_200|>": IMAGE + 1, **codes},
    )
    model = transformers.Emu3ForConditionalGeneration(config)
    # The first token, then start, the size as words and a separator; 2 x 3 codes with a newline after each row; two ends.
    made = [
        sample(
            [1, IMAGE + 2, *tokens(3, n), IMAGE + 3] + [IMAGE] * 8 + [IMAGE + 4, IMAGE + 5] + tokens(9 + 4 * n, 10 + n),
            pixel_values=noise(1, 3, 16, 24, seed=n),
            image_sizes=torch.tensor([[16, 24]]),
        )
        for n in range(2)
    ]
    return model, [*made, sample([1] + tokens(18, 5))]


def git():
    """The picture has no token in the text: its 17 features go before the text inside the model."""
    config = transformers.GitConfig(
        vision_config=VISION,
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.GitForCausalLM(config)
    made = [sample([1] + tokens(9 + 4 * n, n) + [2], pixel_values=noise(1, 3, 16, 16, seed=n)) for n in range(2)]
    return model, [*made, sample([1] + tokens(18, 5) + [2])]


_OCR_TEXT = {
    **TEXT,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
}
_SAM = {
    **VISION,
    "output_channels": 8,
    "mlp_dim": 24,
    "window_size": 2,
    "global_attn_indexes": [1],
    "downsample_channels": [8, 16],
    "initializer_range": 0.02,
}


def deepseek_ocr2():
    """However small a picture is, the encoder makes 144 tokens of it, and the model adds one to close the view."""
    config = transformers.DeepseekOcr2Config(
        vision_config={
            "sam_config": _SAM,
            "encoder_config": {
                "vocab_size": 8,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
            },
        },
        text_config=_OCR_TEXT,
        image_token_id=IMAGE,
    )
    model = transformers.DeepseekOcr2ForConditionalGeneration(config)
    none = torch.tensor([0])
    return model, _pictures(
        [IMAGE] * 145, lambda n: {"pixel_values": noise(1, 3, 16, 16, seed=n), "num_local_patches": none}
    )


def unlimited_ocr():
    """The processor leaves the two counts as lists, and the model takes them so."""
    config = transformers.UnlimitedOcrConfig(
        vision_config={
            "sam_config": {**_SAM, "image_size": 32},
            "encoder_config": {**VISION, "image_size": 8},
        },
        text_config={**_OCR_TEXT, "num_key_value_heads": 4, "sliding_window": 8},
        image_token_id=IMAGE,
    )
    model = transformers.UnlimitedOcrForConditionalGeneration(config)
    # The whole page makes 2 rows of 2 and a newline, and a token closes it; in the second, 2 tiles make a row before that.
    made = [
        sample(
            tokens(2, n) + [IMAGE] * (3 * n + 7) + tokens(9 + 4 * n, 10 + n),
            pixel_values=noise(1, 3, 32, 32, seed=n),
            num_local_patches=[2 * n],
            patches_grid=[[1 + n, 1]],
        )
        for n in range(2)
    ]
    made[1]["pixel_values_local"] = noise(2, 3, 16, 16, seed=5)
    return model, [*made, sample(tokens(18, 5))]


def nemotron_h_omni():
    text = {
        "model_type": "nemotron_h",
        **TEXT,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "head_dim": 8,
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 2,
        "chunk_size": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 24,
    }
    vision = {
        "model_type": "radio",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2.0,
        "patch_size": 4,
        "image_size": 16,
        "max_img_size": 32,
        "video_temporal_patch_size": 2,
    }
    audio = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_mel_bins": 8,
        "subsampling_conv_channels": 4,
        "initializer_range": 0.5,
        "max_position_embeddings": 64,
        "projection_hidden_size": 16,
        "projection_bias": False,
    }
    config = transformers.NemotronH_Omni_Reasoning_V3_Config(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        projector_hidden_size=16,
        vision_hidden_size=16,
        image_token_id=IMAGE,
        video_token_id=IMAGE + 1,
        audio_token_id=IMAGE + 2,
    )
    model = transformers.NemotronH_Omni_Reasoning_V3(config)
    made = []
    for n in range(2):
        image = [IMAGE + 3] + [IMAGE] * 6 + [IMAGE + 4]
        sound = [IMAGE + 5] + [IMAGE + 2] * 6 + [IMAGE + 6]
        made.append(
            sample(
                tokens(2, n) + image + sound * n + tokens(9 + 4 * n, 10 + n),
                pixel_values=noise(24, 3 * 4 * 4, seed=n),
                image_grid_hw=torch.tensor([[4, 6]]),
            )
        )
    made[1] |= {"input_features": noise(1, 41, 8), "input_features_mask": (torch.arange(41) < 40)[None]}
    return model, [*made, sample(tokens(18, 5))]


def evolla():
    """A protein has no token in the text: the last block attends to its features by an adapter of its own."""
    config = transformers.EvollaConfig(
        **TEXT,
        protein_encoder_config={
            "vocab_size": 64,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 64,
        },
        aligner_ffn_mult=1,
        aligner_num_add_layers=1,
        resampler_depth=1,
        resampler_dim_head=8,
        resampler_heads=2,
        resampler_num_latents=6,
        resampler_ff_mult=1,
    )
    model = transformers.EvollaForProteinText2Text(config)
    made = []
    for n in range(2):
        protein = noise(1, 12, seed=n).mul(8).abs().long() + 5
        made.append(
            sample(
                tokens(11 + 4 * n, n),
                protein_input_ids=protein,
                protein_attention_mask=torch.ones_like(protein),
            )
        )
    return model, [*made, sample(tokens(18, 5))]


def cosmos3_edge():
    config = transformers.Cosmos3EdgeConfig(
        text_config={**QWEN_TEXT, "head_dim": 8},
        vision_config={**VISION, "num_patches": 16},
        projector_hidden_size=16,
        **_GRID_IDS,
    )
    return transformers.Cosmos3EdgeForConditionalGeneration(config), _grid_samples(3 * 4 * 4, types=True)


def cosmos3_omni():
    config = transformers.Cosmos3OmniConfig(
        text_config={"model_type": "qwen3_vl_text", **QWEN_TEXT, "head_dim": 8},
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        **_GRID_IDS,
    )
    return transformers.Cosmos3OmniForConditionalGeneration(config), _grid_samples(3 * 2 * 4 * 4, types=True)


_INKLING_TEXT = {
    **TEXT,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "layer_types": ["hybrid_sliding", "hybrid"] * 2,
    "sliding_window_size": 8,
    "d_rel": 4,
    "rel_extent": 12,
    "unpadded_vocab_size": 126,
    "intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}


def inkling2():
    config = transformers.Inkling2Config(
        text_config={**_INKLING_TEXT, "n_layers_per_attn_res_block": 2},
        vision_config={**VISION, "posemb_grid_size": 4, "projection_hidden_dim": 16, "text_hidden_size": 32},
        image_token_id=IMAGE,
    )
    model = transformers.Inkling2ForConditionalGeneration(config)
    grid = torch.tensor([[1, 2, 3]])
    return model, _pictures([IMAGE] * 6, lambda n: {"pixel_values": noise(6, 8, 8, 3, seed=n), "image_grid_thw": grid})


def inkling_mm_model():
    config = transformers.InklingConfig(
        text_config={
            **_INKLING_TEXT,
            "moe_intermediate_size": 24,
            "n_shared_experts": 1,
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        },
        vision_config={"patch_size": 2, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2},
        audio_config={"n_mel_bins": 4, "mel_vocab_size": 8},
        image_token_id=IMAGE,
        audio_token_id=IMAGE + 1,
        image_bos_token_id=IMAGE + 2,
        audio_bos_token_id=IMAGE + 3,
    )
    model = transformers.InklingForConditionalGeneration(config)
    made = []
    for n in range(2):
        sound = [IMAGE + 3] + [IMAGE + 1] * 5
        made.append(
            sample(
                tokens(2, n) + [IMAGE + 2] + [IMAGE] * 6 + sound * n + tokens(9 + 4 * n, 10 + n),
                pixel_values=noise(6, 2, 2, 2, 3, seed=n),
            )
        )
    made[1] |= {
        "audio_input_ids": noise(1, 5, 4).mul(3).abs().clamp(max=7).int(),
        "audio_input_ids_mask": torch.ones(1, 5, dtype=torch.bool),
    }
    return model, [*made, sample(tokens(18, 5))]


_MUSE_TEXT = {**TEXT, "num_hidden_layers": 4, "head_dim": 8, "sliding_window": 8}
_MUSE = {
    "vision_config": {**VISION, "pos_emb_height": 4, "pos_emb_width": 4},
    "image_token_id": IMAGE,
    "video_token_id": IMAGE + 1,
    "out_hidden_size": 64,
    "projector_hidden_size": 16,
}


def muse_glimmer():
    config = transformers.MuseGlimmerConfig(text_config=_MUSE_TEXT, **_MUSE)
    return transformers.MuseGlimmerForConditionalGeneration(config), _grid_samples(3 * 2 * 4 * 4)


def muse_spark():
    text = {
        **_MUSE_TEXT,
        "moe_hidden_size": 16,
        "moe_intermediate_size": 24,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    }
    audio = {
        "patch_sizes": [4, 2],
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "num_hidden_layers": 2,
        "conv_kernel_size": 3,
        "out_hidden_size": 32,
    }
    config = transformers.MuseSparkConfig(text_config=text, audio_config=audio, audio_token_id=IMAGE + 4, **_MUSE)
    made = _grid_samples(3 * 2 * 4 * 4)
    sound = sample(tokens(3, 7) + [IMAGE + 5] + [IMAGE + 4] * 5 + [IMAGE + 6] + tokens(12, 17))
    sound |= {"input_values": noise(1, 40), "input_values_mask": torch.ones(1, 40, dtype=torch.long)}
    return transformers.MuseSparkForConditionalGeneration(config), [made[0], sound, made[2]]


def florence2():
    config = transformers.Florence2Config(
        text_config={
            "model_type": "bart",
            "vocab_size": 128,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 128,
        },
        vision_config={
            "depths": [1, 1],
            "patch_size": [3, 3],
            "patch_stride": [2, 2],
            "patch_padding": [1, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [8, 16],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "window_size": 2,
            "projection_dim": 32,
            "max_temporal_embeddings": 4,
            "max_position_embeddings": 8,
        },
        image_token_id=IMAGE,
    )
    model = transformers.Florence2ForConditionalGeneration(config)
    # 4 x 4 features and their mean.
    made = [
        sample([IMAGE] * 17 + [0] + tokens(9 + 4 * n, n) + [2], pixel_values=noise(1, 3, 16, 16, seed=n))
        for n in range(2)
    ]
    return model, [*made, sample([0] + tokens(18, 5) + [2])]


def pix2struct():
    """The picture alone is the encoder's input; the text is the beginning of the decoder's."""
    config = transformers.Pix2StructConfig(
        text_config={
            "vocab_size": 128,
            "hidden_size": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 3,
            "num_heads": 4,
        },
        vision_config={
            "hidden_size": 32,
            "patch_embed_hidden_size": 48,
            "d_ff": 48,
            "d_kv": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "seq_len": 32,
        },
    )
    model = transformers.Pix2StructForConditionalGeneration(config)
    made = []
    for n in range(3):
        ids = torch.tensor([tokens(9 + 4 * n, n)])
        made.append(
            {
                "flattened_patches": _flattened_patches(n),
                "attention_mask": (torch.arange(32) < 24).float()[None],
                "decoder_input_ids": ids,
                "decoder_attention_mask": torch.ones_like(ids),
            }
        )
    return model, made


def t5gemma2():
    text = {
        **TEXT,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 8,
    }
    encoder = {
        "text_config": text,
        "vision_config": {"model_type": "siglip_vision_model", **VISION},
        "mm_tokens_per_image": 4,
        "image_token_index": IMAGE,
        "boi_token_index": IMAGE + 1,
        "eoi_token_index": IMAGE + 2,
    }
    config = transformers.T5Gemma2Config(
        encoder=encoder, decoder=text, image_token_index=IMAGE, eoi_token_index=IMAGE + 2
    )
    model = transformers.T5Gemma2ForConditionalGeneration(config)
    made = []
    for n in range(3):
        image = [IMAGE + 1] + [IMAGE] * 4 + [IMAGE + 2] if n < 2 else []
        ids = tokens(2, n) + image + tokens(9 + 4 * n, 10 + n)
        made.append(
            sample(
                ids,
                token_type_ids=(torch.tensor([ids]) == IMAGE).long(),
                decoder_input_ids=torch.tensor([[1] + tokens(5, 20 + n)]),
            )
        )
        if image:
            made[n]["pixel_values"] = noise(1, 3, 16, 16, seed=n)
    return model, made
