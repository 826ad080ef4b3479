"""A tiny VideoLLaMA 2 with every quirk of the large one, in the published spelling and in the port's.

Every weight is a function of its published name, so that numbers made with the released code can be compared with.
"""

import json
import string
import zlib
from pathlib import Path

import numpy as np
import soundfile
import tokenizers
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast, SiglipImageProcessorPil

from tamp import media
from tamp.videollama2 import VideoLlama2Config, VideoLlama2ForConditionalGeneration, VideoLlama2Processor
from tamp.videollama2.convert import port_name
from tamp.videollama2.processing import TOKENS

IMAGE, VIDEO, AUDIO = 90, 91, 92
VIDEO_TOKENS, AUDIO_TOKENS = 8, 16
SHARED = ("encoder.layers.1.self_attn.relative_attention_bias", "encoder.layers.2.self_attn.relative_attention_bias")

PUBLISHED = {  # a flat configuration as the authors write them
    "model_type": "videollama2_qwen2",
    "architectures": ["Videollama2Qwen2ForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "sliding_window": 131072,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
    "num_frames": 4,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_hidden_size": 16,
    "mm_projector_type": "stc_connector_v35",
    "mm_projector_a_type": "mlp2x_gelu",
}
TOWERS = {
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 20,
        "patch_size": 4,
    },
    "audio_config": {
        "embed_dim": 24,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "conv_pos_kernel": 8,
        "conv_pos_groups": 4,
        "num_buckets": 16,
        "max_distance": 24,
    },
}


def published_shapes() -> dict[str, list[int]]:
    """Name every tensor of the published checkpoint, with its shape."""
    return json.loads((Path(__file__).parent / "golden/videollama2_keys.json").read_text())


def noise(name: str, shape, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """Draw numbers that depend on a name alone."""
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(np.asarray(drawn, dtype=np.float32) * np.float32(scale) + np.float32(shift))


def published_weights() -> dict[str, torch.Tensor]:
    """Make the published checkpoint."""
    made = {}
    for name, shape in published_shapes().items():
        shared = any(each in name for each in SHARED)
        source = name.replace("layers.1.", "layers.0.").replace("layers.2.", "layers.0.") if shared else name
        made[name] = noise(source, shape, 0.3 if len(shape) > 1 else 0.2)
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "bn.weight", "grep_a", "weight_g")):
            made[name] += 1
    return made


def configuration(**settings) -> VideoLlama2Config:
    """Configure the tiny model."""
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": AUDIO}
    return VideoLlama2Config.from_published(PUBLISHED, **{**TOWERS, **ids, **settings})


def build(dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> VideoLlama2ForConditionalGeneration:
    """Build the tiny model with the weights of the published checkpoint."""
    torch.manual_seed(0)
    model = VideoLlama2ForConditionalGeneration._from_config(configuration(), attn_implementation=attention)
    weights = {port_name(name): tensor for name, tensor in published_weights().items()}
    weights.pop(None)
    model.load_state_dict(weights)
    return model.to(dtype).eval()


def pixels(name: str = "video") -> torch.Tensor:
    """Make a video, (1, 4, 3, 20, 20)."""
    return noise(name, (4, 3, 20, 20))[None]


def bank(frames: int = 40, name: str = "fbank") -> torch.Tensor:
    """Make a filter bank, (1, frames, 128)."""
    return noise(name, (1, frames, 128), 5, 14)


def sample(ids: list[int], **extra) -> dict[str, torch.Tensor]:
    """Make a processor output of one row."""
    ids = torch.tensor([ids])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **extra}


def av(**extra) -> dict[str, torch.Tensor]:
    """Make a sample of a video with sound."""
    ids = [5, 6, 7] + [VIDEO] * VIDEO_TOKENS + [AUDIO] * AUDIO_TOKENS + [8, 9, 10, 11]
    return sample(ids, pixel_values_videos=pixels(), input_features=bank(), **extra)


def video_only() -> dict[str, torch.Tensor]:
    """Make a sample of a silent video."""
    return sample([5, 6, 7] + [VIDEO] * VIDEO_TOKENS + [8, 9, 10, 11], pixel_values_videos=pixels())


def audio_only() -> dict[str, torch.Tensor]:
    """Make a sample of a sound."""
    return sample([5, 6] + [AUDIO] * AUDIO_TOKENS + [8, 9], input_features=bank())


def picture() -> dict[str, torch.Tensor]:
    """Make a sample of a still image."""
    return sample([5] + [IMAGE] * VIDEO_TOKENS + [8, 9], pixel_values=pixels()[:, 0])


def text_only() -> dict[str, torch.Tensor]:
    """Make a sample of words."""
    return sample([5, 6, 7, 8, 9, 10, 11, 12])


def tokenizer():
    """Make a tokenizer of 90 tokens, one for every letter, that knows Qwen2's turns but no placeholders."""
    turns = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = string.ascii_letters + string.digits + " \n.,:;?!<>|_-+"
    vocabulary = [*turns, *letters, *(f"unused{number}" for number in range(90 - len(turns) - len(letters)))]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({token: place for place, token in enumerate(vocabulary)}, unk_token="_")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_input_names=["input_ids", "attention_mask"],
    )


def processor(**settings) -> VideoLlama2Processor:
    """Make the tiny model's processor."""
    known = tokenizer()
    known.add_tokens(list(TOKENS.values()), special_tokens=True)
    images = SiglipImageProcessorPil(
        size={"height": 20, "width": 20}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    return VideoLlama2Processor(images, known, **{"num_frames": 4, "patch_size": 4, **settings})


def write_media(folder: Path) -> Path:
    """Write av.mp4 and other.mp4 (1 s, with sound), mute.mp4, beep.wav (0.4 s) and still.png."""
    second = np.arange(16000, dtype=np.float32) / 16000
    beep = 0.4 * np.sin(2 * np.pi * 440 * second)
    film = (noise("film", (8, 20, 20, 3), 40, 120)).clamp(0, 255).byte().numpy()
    media.write_video(folder / "av.mp4", film, 8, beep)
    media.write_video(folder / "other.mp4", film[::-1], 8, beep[::-1] * second)
    media.write_video(folder / "mute.mp4", film, 8)
    soundfile.write(folder / "beep.wav", beep[:6400], 16000)
    Image.fromarray(film[0]).save(folder / "still.png")
    return folder


def publish(folder: Path, weights: dict[str, torch.Tensor] | None = None, shards: int = 2, **changes) -> Path:
    """Write a checkpoint as the authors do: shards and their index, configurations, tokenizer.

    Args:
        folder: where to.
        weights: by published name; :func:`published_weights` by default.
        shards: how many files.
        changes: of the configuration; None takes a field out.
    """
    folder.mkdir()
    weights = published_weights() if weights is None else weights
    config = {key: value for key, value in {**PUBLISHED, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    sampling = {"do_sample": True, "eos_token_id": [2, 0], "repetition_penalty": 1.05, "temperature": 0.7, "top_k": 20}
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "pad_token_id": 0, **sampling}))
    tokenizer().save_pretrained(folder)
    where = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        part = {name: weights[name] for name in list(weights)[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder
