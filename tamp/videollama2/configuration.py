"""Configurations: the audio tower's, and the whole model's, which can also be read from a published ``config.json``."""

from typing import Any

from transformers import PreTrainedConfig, Qwen2Config, SiglipVisionConfig

from tamp.errors import UserError

QWEN2_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
SUPPORTED = {  # what a published configuration must say, and why nothing else will do
    "mm_projector_type": ("stc_connector_v35", "other connectors pad or pool differently"),
    "mm_projector_a_type": ("mlp2x_gelu", "only models with sound have one, and other layouts have other weights"),
    "mm_vision_select_feature": ("patch", "the vision tower has no class token"),
}
REQUIRED = {*QWEN2_7B, "rope_theta"} - {"rope_parameters", "bos_token_id", "eos_token_id"}


class BeatsConfig(PreTrainedConfig):
    """Configure BEATs (Chen et al. 2022, arXiv 2212.09058); by default its third iteration, fine-tuned on AudioSet.

    Attributes:
        patch_size: side of a square patch of the filter bank, in frames and in mel bins.
        embed_dim: width of a patch before it is projected to ``hidden_size``.
        conv_pos_kernel: width of the convolution that tells positions, in tokens.
        conv_pos_groups: its groups.
        num_buckets: rows of the table of relative positions.
        max_distance: distance in tokens from which on all positions share a bucket.
        num_mel_bins: mel bins of the filter bank.
        fbank_mean: is subtracted from the filter bank.
        fbank_std: the filter bank is divided by twice this.
    """

    model_type = "videollama2_beats"
    base_config_key = "audio_config"

    patch_size: int = 16
    embed_dim: int = 512
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    conv_pos_kernel: int = 128
    conv_pos_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 800
    layer_norm_eps: float = 1e-5
    num_mel_bins: int = 128
    fbank_mean: float = 15.41663
    fbank_std: float = 6.55582
    initializer_range: float = 0.02


class VideoLlama2Config(PreTrainedConfig):
    """Configure VideoLLaMA 2 with sound (Cheng et al. 2024, arXiv 2406.07476); by default 2.1-7B-AV.

    Attributes:
        text_config: of the decoder, Qwen2.
        vision_config: of the vision tower, SigLIP so400m with 27 x 27 patches.
        audio_config: of the audio tower, BEATs.
        num_frames: frames per video, and how often a still image is repeated; at least 2.
        vision_feature_layer: whose hidden states the connector reads, -2 for the last layer's input.
        projector_depth: bottlenecks in each of the connector's two stages.
        projector_downsample: how much the connector shrinks time, height and width.
        image_token_id: stands for a token of a still image in ``input_ids``.
        video_token_id: for a token of a video's frames.
        audio_token_id: for a token of sound.
    """

    model_type = "videollama2"
    sub_configs = {"text_config": Qwen2Config, "vision_config": SiglipVisionConfig, "audio_config": BeatsConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    num_frames: int = 8
    vision_feature_layer: int = -2
    projector_depth: int = 4
    projector_downsample: list[int] | tuple[int, ...] = (2, 2, 2)
    image_token_id: int = 151646
    video_token_id: int = 151647
    audio_token_id: int = 151648
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        usual = {"text_config": QWEN2_7B, "vision_config": SIGLIP_SO400M, "audio_config": {}}
        for name, kind in self.sub_configs.items():
            given = getattr(self, name)
            if not isinstance(given, PreTrainedConfig):
                setattr(self, name, kind(**(usual[name] if given is None else given)))
        super().__post_init__(**kwargs)

    @classmethod
    def from_published(cls, published: dict[str, Any], **settings) -> "VideoLlama2Config":
        """Read the flat ``config.json`` that the authors publish with their weights.

        It holds the decoder's sizes; of the towers it holds names only, so their sizes are the defaults here.

        Args:
            published: the parsed file.
            settings: fields of this configuration to set otherwise, such as ``audio_config``.

        Raises:
            UserError: if a size is missing, or a part is of a type that is not ported.
        """
        for field, (supported, reason) in SUPPORTED.items():
            found = published.get(field, "patch" if field == "mm_vision_select_feature" else None)
            if found != supported:
                raise UserError(f"{field} is {found!r}, and only {supported!r} can be converted: {reason}.")
        missing = sorted(REQUIRED - published.keys())
        if missing:
            raise UserError(f"The configuration lacks {', '.join(missing)}: it is not one that the authors published.")
        text = {field: published[field] for field in Qwen2Config.__annotations__ if field in published}
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": float(published["rope_theta"])}
        found = {
            "text_config": text,
            "num_frames": published.get("num_frames", cls.num_frames),  # the released code falls back on 8 too
            "vision_feature_layer": published.get("mm_vision_select_layer", cls.vision_feature_layer),
            "tie_word_embeddings": published.get("tie_word_embeddings", False),
            "dtype": published.get("torch_dtype", published.get("dtype")),
        }
        return cls(**{**found, **settings})
