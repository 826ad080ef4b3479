"""VideoLLaMA 2 with sound (Cheng et al. 2024, arXiv 2406.07476) for transformers, which has no such architecture.

Importing this makes transformers' ``Auto`` classes know it; importing ``tamp`` does so. Weights as the authors
published them have to be converted once, see :mod:`tamp.videollama2.convert`.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from tamp.videollama2.beats import BeatsModel
from tamp.videollama2.configuration import BeatsConfig, VideoLlama2Config
from tamp.videollama2.modeling import VideoLlama2ForConditionalGeneration, VideoLlama2Model
from tamp.videollama2.processing import VideoLlama2Processor

AutoConfig.register(VideoLlama2Config.model_type, VideoLlama2Config, exist_ok=True)
AutoModel.register(VideoLlama2Config, VideoLlama2Model, exist_ok=True)
AutoModelForImageTextToText.register(VideoLlama2Config, VideoLlama2ForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(VideoLlama2Config, VideoLlama2ForConditionalGeneration, exist_ok=True)
AutoProcessor.register(VideoLlama2Config, VideoLlama2Processor, exist_ok=True)

__all__ = [
    "BeatsConfig",
    "BeatsModel",
    "VideoLlama2Config",
    "VideoLlama2ForConditionalGeneration",
    "VideoLlama2Model",
    "VideoLlama2Processor",
]
