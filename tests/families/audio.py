"""Families that hear: a language model behind an encoder of speech or music."""

import torch
import transformers

from families import TEXT, noise, sample, tokens

_AUDIO, _START, _END = 120, 121, 122
_MELS = 8
_ENCODER = {
    "num_mel_bins": _MELS,
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_source_positions": 32,
}
_WINDOW = 2 * _ENCODER["max_source_positions"]
_QWEN3 = {"model_type": "qwen3", **TEXT, "head_dim": 8}


def _turn(n: int, heard: int | list[int], **features) -> dict:
    """Write a recording, of some placeholders or of the given ids, and words behind it."""
    heard = [_AUDIO] * heard if isinstance(heard, int) else heard
    return sample([*tokens(2, n), _START, *heard, _END, *tokens(8 + 5 * n, 10 + n)], **features)


def _words() -> dict:
    return sample(tokens(14, 20))


def _mask(lengths: list[int], width: int) -> torch.Tensor:
    """Mark the first frames of every row."""
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


def _windows(n: int, lengths: list[int], width: int = _WINDOW) -> dict:
    """Make the spectrogram of a recording in windows, of which so many frames each are no padding."""
    return {
        "input_features": noise(len(lengths), _MELS, width, seed=n),
        "input_features_mask": _mask(lengths, width),
    }


def _audible(model):
    """Widen the weights outside the language model, for what it hears to differ by more than rounding."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "language_model" not in name and "lm_head" not in name:
            torch.nn.init.xavier_normal_(weight)
    return model


def qwen2_audio():
    config = transformers.Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", **_ENCODER},
        text_config={"model_type": "qwen2", **TEXT},
        audio_token_index=_AUDIO,
    )
    made = []
    for n, (frames, heard) in enumerate([(50, 12), (38, 9)]):
        features = _windows(n, [frames])
        features["feature_attention_mask"] = features.pop("input_features_mask")
        made.append(_turn(n, heard, **features))
    return _audible(transformers.Qwen2AudioForConditionalGeneration(config)), [*made, _words()]


def audioflamingo3():
    config = transformers.AudioFlamingo3Config(
        audio_config={"model_type": "audioflamingo3_encoder", **_ENCODER},
        text_config={"model_type": "qwen2", **TEXT},
        audio_token_id=_AUDIO,
    )
    made = [_turn(0, 12, **_windows(0, [50])), _turn(1, 16 + 7, **_windows(1, [64, 30]))]
    return _audible(transformers.AudioFlamingo3ForConditionalGeneration(config)), [*made, _words()]


def musicflamingo():
    config = transformers.MusicFlamingoConfig(
        audio_config={"model_type": "audioflamingo3_encoder", **_ENCODER},
        text_config={"model_type": "qwen2", **TEXT},
        audio_token_id=_AUDIO,
        audio_bos_token_id=_START,
        audio_eos_token_id=_END,
    )
    made = [_turn(0, 12, **_windows(0, [50])), _turn(1, 16 + 7, **_windows(1, [64, 30]))]
    return _audible(transformers.MusicFlamingoForConditionalGeneration(config)), [*made, _words()]


def voxtral():
    """Recordings come in whole windows, padding included, without a mask."""
    config = transformers.VoxtralConfig(
        audio_config={"model_type": "voxtral_encoder", **_ENCODER},
        text_config={"model_type": "llama", **TEXT, "head_dim": 8},
        audio_token_id=_AUDIO,
    )
    made = [_turn(n, 8 * (n + 1), input_features=noise(n + 1, _MELS, _WINDOW, seed=n)) for n in range(2)]
    return _audible(transformers.VoxtralForConditionalGeneration(config)), [*made, _words()]


def voxtral_realtime():
    """Sound is added to every token, so there are no placeholders and no text without sound."""
    config = transformers.VoxtralRealtimeConfig(
        audio_config={**_ENCODER, "head_dim": 8, "sliding_window": 16},
        text_config={**TEXT, "head_dim": 8, "sliding_window": 12},
        audio_length_per_tok=8,
        downsample_factor=4,
    )
    silent, delay, made = 100, 6, []
    for n in range(3):
        ids = [1] + [silent] * (3 + delay) + tokens(8 + 5 * n, n)
        features = noise(1, _MELS, 8 * len(ids), seed=n)
        made.append(sample(ids, input_features=features, num_delay_tokens=torch.tensor(delay)))
    return _audible(transformers.VoxtralRealtimeForConditionalGeneration(config)), made


def _granite(model_type: str, encoder: dict, seen: int):
    """Make a Granite Speech model with a query transformer that reads ``seen`` features of a frame."""
    config = transformers.AutoConfig.for_model(
        model_type,
        encoder_config={
            "input_dim": 2 * _MELS,
            "hidden_dim": 16,
            "num_layers": 2,
            "num_heads": 2,
            "output_dim": 8,
            "context_size": 20,
            "max_pos_emb": 32,
            "conv_kernel_size": 3,
            **encoder,
        },
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "encoder_hidden_size": seen,
        },
        text_config={"model_type": "granite", **TEXT, "residual_multiplier": 0.5},
        audio_token_index=_AUDIO,
        has_lora_adapter=False,
    )
    made = []
    for n, (frames, heard) in enumerate([(35, 9), (50, 12)]):  # three tokens for every fifteen frames
        features = noise(1, frames, 2 * _MELS, seed=n)
        made.append(_turn(n, heard, input_features=features, input_features_mask=_mask([heard], heard).bool()))
    return _audible(transformers.AutoModelForMultimodalLM.from_config(config)), [*made, _words()]


def granite_speech():
    return _granite("granite_speech", {}, 16)


def granite_speech_plus():
    return _granite("granite_speech_plus", {"cat_hidden_layers": [0]}, 32)


def glmasr():
    config = transformers.GlmAsrConfig(
        audio_config={"model_type": "glmasr_encoder", **_ENCODER},
        text_config={"model_type": "llama", **TEXT},
        audio_token_id=_AUDIO,
    )
    made = [_turn(0, 6, **_windows(0, [50])), _turn(1, 8 + 4, **_windows(1, [64, 32]))]
    return _audible(transformers.GlmAsrForConditionalGeneration(config)), [*made, _words()]


def fun_asr_nano():
    config = transformers.FunAsrNanoConfig(
        audio_config={
            **_ENCODER,
            "model_type": "fun_asr_nano_encoder",
            "num_hidden_layers": 3,
            "num_timestamp_prediction_layers": 1,
            "num_stacked_frames": 3,
            "fsmn_kernel_size": 3,
        },
        adaptor_config={
            "hidden_size": 32,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "projector_hidden_size": 24,
        },
        text_config=_QWEN3,
        audio_token_id=_AUDIO,
    )
    made = []
    for n, heard in enumerate([11, 17]):
        features = noise(1, heard, 3 * _MELS, seed=n)
        made.append(_turn(n, heard, input_features=features, input_features_mask=_mask([heard], heard)))
    return _audible(transformers.FunAsrNanoForConditionalGeneration(config)), [*made, _words()]


def qwen3_asr():
    config = transformers.Qwen3ASRConfig(
        audio_config={
            "num_mel_bins": _MELS,
            "d_model": 16,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "n_window_infer": 100,
            "output_dim": 32,
            "downsample_hidden_size": 4,
        },
        text_config=_QWEN3,
        audio_token_id=_AUDIO,
        timestamp_token_id=_END + 1,
        pad_token_id=0,
        eos_token_id=2,
    )
    made = [_turn(0, 11, **_windows(0, [88], 100)), _turn(1, 13 + 7, **_windows(1, [150], 200))]
    return _audible(transformers.Qwen3ASRForConditionalGeneration(config)), [*made, _words()]


def vibevoice_asr():
    """The noise that the model adds to what it hears is switched off, to let two runs agree."""
    codec = {"num_filters": 4, "downsampling_ratios": [2, 4], "depths": [1, 1, 1], "vae_std": 0.0}
    config = transformers.VibeVoiceAsrConfig(
        acoustic_tokenizer_encoder_config={**codec, "hidden_size": 8},
        semantic_tokenizer_encoder_config={**codec, "hidden_size": 16},
        text_config={"model_type": "qwen2", **TEXT},
        audio_token_id=_AUDIO,
        audio_bos_token_id=_START,
        audio_eos_token_id=_END,
        acoustic_tokenizer_chunk_size=64,
    )
    made = []
    for n, heard in enumerate([12, 17]):
        width = 8 * heard
        made.append(_turn(n, heard, input_values=noise(1, 1, width, seed=n), padding_mask=_mask([width - 3], width)))
    return _audible(transformers.VibeVoiceAsrForConditionalGeneration(config)), [*made, _words()]


def kyutai_speech_to_text():
    """A token is a word and the codes of the sound at its time, as ``generate`` writes them; text alone has padded codes."""
    codebooks, codes = 3, 17
    config = transformers.KyutaiSpeechToTextConfig(
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        num_codebooks=codebooks,
        codebook_vocab_size=codes,
        audio_bos_token_id=codes - 1,
        audio_pad_token_id=128 + codebooks * codes,
        pad_token_id=0,
        bos_token_id=1,
        codec_config={
            "model_type": "mimi",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "num_filters": 4,
            "upsampling_ratios": [2, 2],
            "codebook_size": 16,
            "codebook_dim": 8,
            "vector_quantization_hidden_dimension": 8,
            "num_quantizers": codebooks,
            "upsample_groups": 16,
        },
    )
    made = []
    for n in range(3):
        words = torch.tensor([1, *tokens(11 + 5 * n, n)])
        sound = torch.randint(codes - 1, (len(words), codebooks), generator=torch.Generator().manual_seed(n))
        sound[0] = config.audio_bos_token_id
        if n == 2:
            sound[:] = config.audio_pad_token_id
        ids = torch.cat([words[:, None], sound], dim=1)[None]
        made.append({"input_ids": ids, "attention_mask": torch.ones(1, len(words), dtype=torch.long)})
    return transformers.KyutaiSpeechToTextForConditionalGeneration(config), made


def nemo_speechlm():
    encoder = {**_ENCODER, "subsampling_factor": 8}
    config = transformers.Nemotron3_5TranscribeConfig(
        audio_config={
            "asr_config": encoder,
            "diarization_config": {
                "model_type": "nemotron3_diarization",
                "audio_config": encoder,
                "head_config": {"hidden_size": 8, "num_speakers": 2, "audio_hidden_size": 16},
                "streaming_config": {"num_speakers": 2, "speaker_cache_length": 8},
                "chunk_length": 8,
                "chunk_left_context": 1,
                "chunk_right_context": 1,
                "fifo_length": 4,
                "speaker_cache_update_period": 4,
            },
        },
        text_config={
            **{k: v for k, v in TEXT.items() if k != "num_hidden_layers"},
            "model_type": "nemotron_h",
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
            "head_dim": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 16,
        },
        word_timestamp_config={**_ENCODER, "vocab_size": 32, "blank_token_id": 31},
        audio_token_id=_AUDIO,
    )
    made = []
    for n, heard in enumerate([7, 12]):
        frames = 8 * heard
        features = noise(1, frames, _MELS, seed=n)
        made.append(_turn(n, heard, input_features=features, input_features_mask=_mask([frames - 3], frames)))
    return _audible(transformers.Nemotron3_5TranscribeForConditionalGeneration(config)), [*made, _words()]


def moss_transcribe_diarize():
    """Every two seconds of sound, 25 tokens, there is a token of text that tells the time."""
    samples_of_frame = 160
    config = transformers.MossTranscribeDiarizeConfig(
        audio_config=_ENCODER,
        text_config=_QWEN3,
        audio_token_id=_AUDIO,
        audio_chunk_size=_WINDOW * samples_of_frame,
    )
    made = []
    for n, (lengths, heard) in enumerate([([50], 7), ([64, 64, 64, 40], [_AUDIO] * 25 + tokens(1, 30) + [_AUDIO] * 4)]):
        padding_mask = torch.ones(1, sum(lengths) * samples_of_frame, dtype=torch.long)
        made.append(_turn(n, heard, **_windows(n, lengths), padding_mask=padding_mask))
    return _audible(transformers.MossTranscribeDiarizeForConditionalGeneration(config)), [*made, _words()]
