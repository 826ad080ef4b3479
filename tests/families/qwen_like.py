"""The Qwen-VL line and its relatives: a tower over patches of any grid, whose sizes go along with the pixels."""

import torch
import transformers

from families import IMAGE, QWEN_TEXT, QWEN_VISION, TEXT, VISION, noise, sample, tokens

VIDEO, START, END, AUDIO, AUDIO_START, AUDIO_END = range(IMAGE + 1, IMAGE + 7)
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
QWEN_IDS = {**IDS, "vision_start_token_id": START, "vision_end_token_id": END}
GLM_IDS = {
    **IDS,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": END + 1,
    "video_end_token_id": END + 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 1}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
INDEXER = {"index_topk": 16, "index_head_dim": 16, "index_n_heads": 2}


def _model(model_type: str, **parts):
    return transformers.AutoModelForImageTextToText.from_config(transformers.AutoConfig.for_model(model_type, **parts))


def _rope(*sections: int, **more) -> dict:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), **more}


def _image(*patch: int) -> dict:
    return {"pixel_values": noise(48, *patch), "image_grid_thw": torch.tensor([[1, 6, 8]])}


def _video(*patch: int, frames: int = 2) -> dict:
    grid = torch.tensor([[frames, 4, 4]])
    return {"pixel_values_videos": noise(16 * frames, *patch, seed=1), "video_grid_thw": grid}


def _types(ids: list[int], kinds: dict[int, int]) -> torch.Tensor:
    return torch.tensor([[kinds.get(token, 0) for token in ids]])


def _samples(*shown: tuple[list[int], dict], types: dict[int, int] | None = None) -> list[dict]:
    """Put each medium, its tokens and its inputs, between words, and add words alone; ``types`` are those of tokens."""
    made = []
    for n, (seen, media) in enumerate([*shown, ([], {})]):
        ids = tokens(3, n) + seen + tokens(7 + 2 * n, 10 + n)
        if types:
            media = {**media, "mm_token_type_ids": _types(ids, types)}
        made.append(sample(ids, **media))
    return made


PICTURE = [START, *[IMAGE] * 12, END]  # 6 x 8 patches, merged 2 x 2
FILM = [START, *[VIDEO] * 8, END]
FRAMES = [*tokens(4, 20), START, *[VIDEO] * 4, END, *tokens(4, 21), START, *[VIDEO] * 4, END]  # each after its time
KINDS = {IMAGE: 1, VIDEO: 2}


def _qwen2_samples():
    return _samples((PICTURE, _image(96)), (FILM, _video(96)), types=KINDS)


def _qwen3_samples():
    return _samples((PICTURE, _image(96)), (FRAMES, _video(96)), types=KINDS)


def _glm_samples():
    """GLM writes a video as pictures between the marks of a video: with the placeholder of pictures."""
    frames = [token for n in (20, 21) for token in [START, *[IMAGE] * 4, END, *tokens(2, n)]]
    made = _samples((PICTURE, _image(96)), ([END + 1, *frames, END + 2], _video(96)), types={IMAGE: 1})
    made[1]["mm_token_type_ids"] *= 2
    return made


def qwen2_vl():
    vision = {**QWEN_VISION, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    return _model("qwen2_vl", vision_config=vision, text_config=QWEN_TEXT, **QWEN_IDS), _qwen2_samples()


def qwen2_5_vl():
    model = _model("qwen2_5_vl", vision_config=QWEN_VISION, text_config=QWEN_TEXT, **QWEN_IDS)
    made = _qwen2_samples()
    made[1]["second_per_grid_ts"] = torch.tensor([1.0])
    return model, made


OMNI_IDS = {**IDS, "audio_token_id": AUDIO, "audio_start_token_id": AUDIO_START}
OMNI_AUDIO = {
    "num_mel_bins": 8,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "d_model": 16,
    "output_dim": 32,
    "max_source_positions": 64,
}


def _omni_samples(audio_tokens: int):
    sound = {"input_features": noise(1, 8, 40), "feature_attention_mask": torch.ones(1, 40, dtype=torch.long)}
    film = {**_video(96), "video_second_per_grid": torch.tensor([1.0])}
    heard = [AUDIO_START, *[AUDIO] * audio_tokens, AUDIO_END]
    return _samples((FILM + heard, {**film, **sound}), (PICTURE, _image(96)))


def qwen2_5_omni_thinker():
    model = _model(
        "qwen2_5_omni_thinker",
        audio_config={**OMNI_AUDIO, "n_window": 8},
        vision_config=QWEN_VISION,
        text_config=QWEN_TEXT,
        vision_start_token_id=START,
        vision_end_token_id=END,
        audio_end_token_id=AUDIO_END,
        **OMNI_IDS,
    )
    return model, _omni_samples(10)


QWEN3_VISION = {**QWEN_VISION, "num_position_embeddings": 16}
DEEPSTACK = {**QWEN3_VISION, "deepstack_visual_indexes": [0, 1]}
QWEN3_TEXT = {**QWEN_TEXT, "head_dim": 8}


def qwen3_vl():
    return _model("qwen3_vl", vision_config=DEEPSTACK, text_config=QWEN3_TEXT, **QWEN_IDS), _qwen3_samples()


def qwen3_vl_moe():
    text = {**QWEN3_TEXT, **EXPERTS, "mlp_only_layers": [0]}
    return _model("qwen3_vl_moe", vision_config=DEEPSTACK, text_config=text, **QWEN_IDS), _qwen3_samples()


def qwen3_omni_moe_thinker():
    model = _model(
        "qwen3_omni_moe_thinker",
        audio_config={**OMNI_AUDIO, "n_window": 50, "n_window_infer": 100, "downsample_hidden_size": 4},
        vision_config=DEEPSTACK,
        text_config={**QWEN3_TEXT, **EXPERTS, "mlp_only_layers": [0]},
        vision_start_token_id=START,
        vision_end_token_id=END,
        audio_end_token_id=AUDIO_END,
        **OMNI_IDS,
    )
    return model, _omni_samples(5)


HYBRID = {
    **TEXT,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": _rope(2, 1, 1, partial_rotary_factor=0.5),
}


def qwen3_5():
    return _model("qwen3_5", vision_config=QWEN3_VISION, text_config=HYBRID, **QWEN_IDS), _qwen3_samples()


def qwen3_5_moe():
    text = {**HYBRID, **EXPERTS, "shared_expert_intermediate_size": 24}
    return _model("qwen3_5_moe", vision_config=QWEN3_VISION, text_config=text, **QWEN_IDS), _qwen3_samples()


def qwen4_exp():
    text = {
        **HYBRID,
        **EXPERTS,
        "shared_expert_intermediate_size": 24,
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "hc_lowrank": 8,
        "ple_layer_ids": [1, 3],
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 50,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 1,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    }
    return _model("qwen4_exp", vision_config=QWEN3_VISION, text_config=text, **QWEN_IDS), _qwen3_samples()


GLM_VISION = {**QWEN_VISION, "image_size": 16}
GLM_TEXT = {
    **TEXT,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_parameters": _rope(2, 1, 1, partial_rotary_factor=0.5),
}


def glm4v():
    return _model("glm4v", vision_config=GLM_VISION, text_config=GLM_TEXT, **GLM_IDS), _glm_samples()


def glm4v_moe():
    return _model("glm4v_moe", vision_config=GLM_VISION, text_config={**GLM_TEXT, **ROUTED}, **GLM_IDS), _glm_samples()


def glm46v():
    parts = {
        "vision_config": {"model_type": "glm4v_vision", **GLM_VISION},
        "text_config": {"model_type": "glm4v_text", **GLM_TEXT},
    }
    return _model("glm46v", **parts, **GLM_IDS), _glm_samples()


def glm_ocr():
    return _model("glm_ocr", vision_config=GLM_VISION, text_config=GLM_TEXT, **GLM_IDS), _glm_samples()


def glm5_next():
    text = {
        **TEXT,
        **ROUTED,
        **LATENT,
        **INDEXER,
        "num_hidden_layers": 4,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "qk_rope_head_dim": 0,
        "index_kpool": 4,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "hc_mult": 2,
    }
    vision = {**GLM_VISION, "projection_intermediate_size": 24}
    return _model("glm5_next", vision_config=vision, text_config=text, **GLM_IDS), _glm_samples()


def ernie4_5_vl_moe():
    """Text and media have experts of their own, and types that count the marks around media as media."""
    text = {
        **QWEN_TEXT,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
        "moe_intermediate_size": [24, 16],
    }
    model = _model("ernie4_5_vl_moe", vision_config=QWEN_VISION, text_config=text, **GLM_IDS)
    film = [END + 1, *[VIDEO] * 4, END + 2]
    made = _samples((PICTURE, _image(48)), (film, _video(48)), types=KINDS)
    kinds = {**KINDS, START: 1, END: 1, END + 1: 2, END + 2: 2}
    for row in made:
        row["moe_mm_token_type_ids"] = _types(row["input_ids"][0].tolist(), kinds)
    return model, made


def paddleocr_vl():
    text = {**QWEN_TEXT, "head_dim": 8}
    model = _model("paddleocr_vl", vision_config=VISION, text_config=text, **QWEN_IDS)
    small = {"pixel_values": noise(16, 3, 4, 4, seed=1), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    return model, _samples((PICTURE, _image(3, 4, 4)), ([START, *[IMAGE] * 4, END], small), types=KINDS)


def video_llama_3():
    model = _model(
        "video_llama_3",
        vision_config={"model_type": "video_llama_3_vision", **VISION},
        text_config={"model_type": "qwen2", **TEXT},
        **IDS,
    )
    # The second frame keeps one of its four tokens: the others look like those of the first.
    frames = [*tokens(4, 20), *[VIDEO] * 4, *tokens(4, 21), VIDEO]
    kept = torch.tensor([True] * 5 + [False] * 3)
    picture = {**_image(48), "image_merge_sizes": torch.tensor([1])}
    film = {**_video(48), "video_merge_sizes": torch.tensor([2]), "video_compression_mask": kept}
    return model, _samples(([IMAGE] * 48, picture), (frames, film))


def hunyuan_vl():
    """Rows of a picture end in a token of their own, and the whole has a first and a last one."""
    model = _model(
        "hunyuan_vl",
        vision_config={**VISION, "max_image_size": 32, "out_hidden_size": 32, "text_hidden_size": 32},
        text_config={**TEXT, "head_dim": 8, "rope_parameters": _rope(1, 1, 1, 1)},
        image_token_id=IMAGE,
        im_start_id=START,
        im_end_id=END,
        im_newline_id=END + 1,
    )
    large, small = ([START, *[IMAGE] * (rows * (columns + 1) + 2), END] for rows, columns in ((3, 4), (2, 2)))
    inputs = {"pixel_values": noise(16, 48, seed=1), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    return model, _samples((large, _image(48)), (small, inputs), types=KINDS)


def kimi_k25():
    """The video has one frame: transformers 5.23 fails to split the features of more, which it averages."""
    text = {"model_type": "deepseek_v3", **TEXT, **ROUTED, **LATENT}
    model = _model(
        "kimi_k25",
        vision_config={**VISION, "pos_emb_height": 4, "pos_emb_width": 4},
        text_config={**text, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
        projection_hidden_size=16,
        **QWEN_IDS,
    )
    film = [*tokens(4, 20), START, *[VIDEO] * 4, END]
    return model, _samples((PICTURE, _image(3, 4, 4)), (film, _video(3, 4, 4, frames=1)))


def exaone4_5():
    model = _model(
        "exaone4_5",
        vision_config={**QWEN_VISION, "num_key_value_heads": 1},
        text_config={"model_type": "exaone4", **TEXT, "num_hidden_layers": 4, "sliding_window": 8},
        **IDS,
    )
    return model, _samples((PICTURE, _image(96)), (FILM, _video(96)))


def _minicpm(model_type: str, per_token: int):
    model = _model(
        model_type,
        vision_config={**VISION, "image_size": 32},
        text_config={"model_type": "qwen3_5_text", **HYBRID},
        insert_layer_id=0,
        **IDS,
    )

    def view(token: int, slices: int, suffix: str = "") -> tuple[list[int], dict]:
        """A view of 4 x 8 patches and slices of 8 x 8."""
        ids = [START, *[token] * (32 // per_token), END]
        ids += [END + 1, *[token] * (64 // per_token), END + 2] * slices
        grids = torch.tensor([[4, 8]] + [[8, 8]] * slices, dtype=torch.int32)
        pixels = noise(1, 3, 4, 4 * (32 + 64 * slices), seed=slices)
        return ids, {f"pixel_values{suffix}": pixels, f"target_sizes{suffix}": grids}

    return model, _samples(view(IMAGE, 2), view(VIDEO, 1, "_videos"))


def minicpmv4_6():
    return _minicpm("minicpmv4_6", per_token=16)


def minicpm_ocr():
    return _minicpm("minicpm_ocr", per_token=4)


def molmo2():
    """Marks and placeholders lie in the additional vocabulary, which has embeddings but no logits."""
    first = TEXT["vocab_size"]
    start, end, patch, column, low_start, frame_start, frame_end = (first + n for n in (0, 1, 2, 3, 4, 7, 8))
    model = _model(
        "molmo2",
        vision_config={**VISION, "num_key_value_heads": 2, "head_dim": 8, "image_size": [16, 16]},
        adapter_config={
            "vision_feature_layer": [1, 0],
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 24,
            "text_hidden_size": 32,
        },
        text_config={**TEXT, "head_dim": 8, "additional_vocab_size": 16},
        image_start_token_id=start,
        image_end_token_id=end,
        image_patch_id=patch,
        low_res_image_start_token_id=low_start,
        frame_start_token_id=frame_start,
        frame_end_token_id=frame_end,
    )
    # Each crop or frame has 4 x 4 patches; a token pools 2 x 2 of them.
    windows = torch.arange(32).view(2, 2, 2, 2, 2).transpose(2, 3).reshape(8, 4)
    rows = [patch, patch, column] * 2
    picture = {
        "pixel_values": noise(2, 16, 48),
        "image_token_pooling": windows,
        "image_grids": torch.tensor([[2, 2, 2, 2]]),
        "image_num_crops": torch.tensor([2]),
    }
    film = {
        "pixel_values_videos": noise(2, 16, 48, seed=1),
        "video_token_pooling": windows,
        "video_grids": torch.tensor([[2, 2, 2]]),
    }
    frames = [token for n in (20, 21) for token in [*tokens(3, n), frame_start, *[patch] * 4, frame_end]]
    kinds = dict.fromkeys([start, end, patch, column, low_start, frame_start, frame_end], 1)
    shown = [([low_start, *rows, end, start, *rows, end], picture), (frames, film)]
    return model, _samples(*shown, types=kinds)


def dots3_note():
    """Layers that select keys come first, sliding ones, which have sizes of their own, after them."""
    sliding = {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "head_dim": 16,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    }
    model = _model(
        "dots3_note",
        text_config={
            **TEXT,
            **ROUTED,
            **LATENT,
            **INDEXER,
            "head_dim": 16,
            "shared_experts_intermediate_size": 24,
            "sliding_window": 8,
            **{f"swa_{name}": value for name, value in sliding.items()},
        },
        vision_config={
            **VISION,
            "mlp_layer_types": ["dense", "sparse"],
            "moe_intermediate_size": 16,
            "num_local_experts": 4,
            "adapter_in_dim": 16,
            "adapter_out_dim": 32,
        },
        audio_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "feature_size": 8,
            "downsample_hidden_size": 4,
            "max_position_embeddings": 64,
            "adapter_input_size": 16,
            "adapter_out_dim": 32,
        },
        audio_token_id=AUDIO,
        **IDS,
    )
    heard = [AUDIO_START, *[AUDIO] * 5, AUDIO_END]
    sound = {"input_features": noise(1, 8, 40), "chunk_sample_lengths": torch.tensor([40 * 160])}
    return model, _samples((PICTURE, _image(48)), (FILM + heard, {**_video(48), **sound}))


def step3p7():
    """A picture is crops of one token each, if any, and the whole, of four."""
    model = _model(
        "step3p7",
        vision_config={**VISION, "image_size": 32, "mlp_ratio": 1.5, "max_position_embeddings": 64},
        text_config={
            **TEXT,
            **ROUTED,
            "num_hidden_layers": 4,
            "head_dim": 8,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "sliding_window": 8,
            "num_sliding_attention_heads": 6,
            "share_expert_dim": 24,
            "swiglu_limits": [0.0, 0.0, 0.0, 7.0],
        },
        image_token_id=IMAGE,
    )
    crop, whole = [START, IMAGE, END], [END + 1, *[IMAGE] * 4, END + 2]
    cropped = {
        "pixel_values": noise(1, 3, 32, 32),
        "num_local_patches": torch.tensor([2]),
        "pixel_values_local": noise(2, 3, 16, 16, seed=1),
    }
    uncropped = {"pixel_values": noise(1, 3, 32, 32, seed=2), "num_local_patches": torch.tensor([0])}
    return model, _samples((crop * 2 + whole, cropped), (whole, uncropped))


def minimax_m3_vl():
    model = _model(
        "minimax_m3_vl",
        vision_config=VISION,
        text_config={
            **TEXT,
            "num_hidden_layers": 4,
            "head_dim": 8,
            "rotary_dim": 4,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 24,
            "dense_intermediate_size": 48,
            "shared_intermediate_size": 24,
            "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_block_size": 4,
            "index_topk_blocks": 3,
        },
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        projector_hidden_size=24,
    )
    return model, _samples((PICTURE, _image(96)), (FRAMES, _video(96)))


def mistral_large4():
    """Later layers take keys and values, and one the selection of keys, from earlier ones."""
    model = _model(
        "mistral_large4",
        vision_config={"model_type": "pixtral", **VISION, "image_size": 32, "head_dim": 8},
        text_config={
            **TEXT,
            **ROUTED,
            **{name: size for name, size in LATENT.items() if name != "q_lora_rank"},
            **INDEXER,
            "num_hidden_layers": 4,
            "no_rope_layers": [1, 0, 1, 0],
            "kv_source_layers": [0, 1, 0, 1],
            "indexer_types": ["full", "full", "shared", "full"],
        },
        image_token_index=IMAGE,
    )
    shown = []
    for rows, columns in ((3, 4), (2, 2)):
        ids = [*[IMAGE] * columns, START] * rows  # a break after each row, and an end after the last
        size = 8 * rows, 8 * columns
        shown.append(
            ([*ids[:-1], END], {"pixel_values": noise(1, 3, *size, seed=rows), "image_sizes": torch.tensor([size])})
        )
    return model, _samples(*shown)
