"""VideoLLaMA 2 with sound: SigLIP and its connector, BEATs and its projector, and a Qwen2 decoder that reads both."""

from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel, Qwen2Model, SiglipVisionModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from tamp.errors import UserError
from tamp.videollama2.beats import BeatsModel, token_mask
from tamp.videollama2.configuration import VideoLlama2Config
from tamp.videollama2.connector import STCConnector


class VideoLlama2PreTrainedModel(PreTrainedModel):
    """What both classes share."""

    config: VideoLlama2Config
    base_model_prefix = "model"
    input_modalities = ("image", "video", "audio", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True


class VideoLlama2Model(VideoLlama2PreTrainedModel):
    """The towers, what connects them, and the decoder without its head.

    Pictures, videos and sounds take the places of their placeholder ids in ``input_ids`` one after the other, in
    row-major order. A video with sound is its video tokens followed by its audio tokens, with nothing around them.
    """

    def __init__(self, config: VideoLlama2Config):
        super().__init__(config)
        vision, audio, width = config.vision_config, config.audio_config, config.text_config.hidden_size
        self.vision_tower = SiglipVisionModel._from_config(vision)
        self.vision_projector = STCConnector(
            vision.hidden_size, width, config.projector_depth, config.projector_downsample
        )
        self.audio_tower = BeatsModel._from_config(audio)
        self.audio_projector = nn.Sequential(nn.Linear(audio.hidden_size, width), nn.GELU(), nn.Linear(width, width))
        self.language_model = Qwen2Model._from_config(config.text_config)
        self.post_init()

    def get_video_features(self, pixel_values_videos: Tensor) -> Tensor:
        """Encode videos, (videos, frames, 3, H, W) to (videos, tokens, hidden)."""
        patches = self._patches(pixel_values_videos.flatten(0, 1))  # (videos * frames, patches, width)
        return self.vision_projector(patches.unflatten(0, pixel_values_videos.shape[:2]))

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Encode pictures as videos in which nothing moves, (images, 3, H, W) to (images, tokens, hidden)."""
        patches = self._patches(pixel_values)[:, None]  # (images, 1, patches, width)
        return self.vision_projector(patches.expand(-1, self.config.num_frames, -1, -1))

    def get_audio_features(self, input_features: Tensor, input_features_mask: Tensor | None = None) -> Tensor:
        """Encode sounds, (sounds, frames, mel bins) to (sounds, tokens, hidden); the mask is (sounds, frames)."""
        return self.audio_projector(self.audio_tower(input_features, input_features_mask).last_hidden_state)

    def _patches(self, pixels: Tensor) -> Tensor:
        """Run the vision tower up to the layer that the connector reads, (N, 3, H, W) to (N, patches, width)."""
        return self.vision_tower(pixels, output_hidden_states=True).hidden_states[self.config.vision_feature_layer]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Run towers and decoder.

        Args:
            input_ids: (B, T), with one placeholder id for every token of a picture, video or sound.
            attention_mask: (B, T), zero for padding, on either side.
            position_ids: (B, T), by default counted from the first token on.
            past_key_values: keys and values of what came before.
            inputs_embeds: (B, T, hidden) instead of ``input_ids``; then without pictures, videos and sounds.
            pixel_values: (images, 3, H, W).
            pixel_values_videos: (videos, frames, 3, H, W).
            input_features: (sounds, frames, mel bins).
            input_features_mask: (sounds, frames), zero for the padding of shorter sounds.
            cache: the same as ``past_key_values``, by its name in transformers 5.24 and later.
            kwargs: for the decoder.

        Raises:
            UserError: if there are more or fewer placeholder ids than tokens for them.
        """
        media = (pixel_values, pixel_values_videos, input_features)
        caches = _named(past_key_values=past_key_values, cache=cache)
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("Pass either input_ids or inputs_embeds, and not both.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
            before = next(iter(caches.values()), None)
            if before is None or not before.get_seq_length() or any(m is not None for m in media):
                inputs_embeds = self._place(input_ids, inputs_embeds, *media, input_features_mask)
        elif any(one is not None for one in media):
            raise UserError("Pictures, videos and sounds need input_ids, which say where their tokens go.")
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **caches,
            **kwargs,
        )

    def _place(self, ids, embeds, pixel_values, pixel_values_videos, input_features, input_features_mask) -> Tensor:
        """Write the towers' tokens where their placeholder ids are, (B, T, hidden) to (B, T, hidden)."""
        found = {}
        if pixel_values is not None:
            found["image"] = self.get_image_features(pixel_values).flatten(0, 1)  # (tokens, hidden)
        if pixel_values_videos is not None:
            found["video"] = self.get_video_features(pixel_values_videos).flatten(0, 1)
        if input_features is not None:
            features = self.get_audio_features(input_features, input_features_mask)
            if input_features_mask is None:
                found["audio"] = features.flatten(0, 1)
            else:
                found["audio"] = features[token_mask(input_features_mask, self.config.audio_config)]
        for kind in ("image", "video", "audio"):
            where = ids == getattr(self.config, f"{kind}_token_id")  # (B, T)
            places, tokens = int(where.sum()), len(found.get(kind, ()))
            if places != tokens:
                raise UserError(
                    f"There are {places} {kind} placeholder ids in input_ids but {tokens} {kind} tokens to put there: "
                    "pass what the processor made of one text, unchanged."
                )
            if places:
                embeds = embeds.masked_scatter(where[..., None], found[kind].to(embeds.device, embeds.dtype))
        return embeds


class VideoLlama2ForConditionalGeneration(VideoLlama2PreTrainedModel, GenerationMixin):
    """The model with its language head.

    A converted model generates greedily and without a repetition penalty: ``generate`` would count the prompt's tokens
    as repeated. The released code penalises generated tokens only, by 1.05; to do so, pass ``generate`` a
    ``logits_processor=[RepetitionPenaltyLogitsProcessor(1.05, prompt_ignore_length=inputs["input_ids"].shape[1])]``.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: VideoLlama2Config):
        super().__init__(config)
        self.model = VideoLlama2Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the language head."""
        return self.lm_head

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Predict the next token everywhere.

        Args:
            input_ids: this and the others up to ``input_features_mask``, and ``cache``: see
                :meth:`VideoLlama2Model.forward`.
            labels: (B, T), the ids themselves, -100 where they do not count.
            logits_to_keep: so many of the last places, or their positions, get logits; 0 for all.
            kwargs: for decoder and loss.

        Returns:
            Loss if there are labels, and logits (B, T, vocabulary).
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            input_features=input_features,
            input_features_mask=input_features_mask,
            return_dict=True,
            **_named(past_key_values=past_key_values, cache=cache),
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.text_config.vocab_size, **kwargs)
        rest = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **rest)


def _named(**caches: Cache | None) -> dict[str, Cache]:
    """Keep the names that hold a cache."""
    return {name: cache for name, cache in caches.items() if cache is not None}
