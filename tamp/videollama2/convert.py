"""Conversion of a published checkpoint: every tensor gets the port's name, and none is changed."""

import json
import logging
import re
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, SiglipImageProcessorPil

from tamp import files
from tamp.errors import UserError
from tamp.videollama2.configuration import VideoLlama2Config
from tamp.videollama2.modeling import VideoLlama2ForConditionalGeneration
from tamp.videollama2.processing import TOKENS, VideoLlama2Processor

AUDIO = "model.audio_tower."
DROPPED = (  # the audio classifier, and the other layers' copies of the first one's table
    re.compile(r"model\.audio_tower\.predictor\."),
    re.compile(r"model\.audio_tower\.encoder\.layers\.[1-9]\d*\.self_attn\.relative_attention_bias\."),
)
RENAMED = (  # the first that fits the start of a name
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower."),
    ("model.mm_projector_a.", "model.audio_projector."),
    ("model.mm_projector.", "model.vision_projector."),
    (f"{AUDIO}encoder.pos_conv.0.weight_g", f"{AUDIO}pos_conv.gain"),
    (f"{AUDIO}encoder.pos_conv.0.weight_v", f"{AUDIO}pos_conv.direction"),
    (f"{AUDIO}encoder.pos_conv.0.parametrizations.weight.original0", f"{AUDIO}pos_conv.gain"),  # later torch
    (f"{AUDIO}encoder.pos_conv.0.parametrizations.weight.original1", f"{AUDIO}pos_conv.direction"),
    (f"{AUDIO}encoder.pos_conv.0.bias", f"{AUDIO}pos_conv.bias"),
    (f"{AUDIO}encoder.layers.0.self_attn.relative_attention_bias.", f"{AUDIO}relative_attention_bias."),
    (f"{AUDIO}encoder.layer_norm.", f"{AUDIO}embed_norm."),  # not the same as the other layer_norm below
    (f"{AUDIO}encoder.layers.", f"{AUDIO}layers."),
    (f"{AUDIO}layer_norm.", f"{AUDIO}patch_norm."),
    (f"{AUDIO}post_extract_proj.", f"{AUDIO}patch_proj."),
    (f"{AUDIO}patch_embedding.", f"{AUDIO}patch_embedding."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
    ("lm_head.", "lm_head."),
)
GATES = {".self_attn.grep_linear.": ".self_attn.gate_proj.", ".self_attn.grep_a": ".self_attn.gate_scale"}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer_config.json")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
CHUNK = 2**24  # bytes copied at a time

log = logging.getLogger(__name__)


def port_name(published: str) -> str | None:
    """Return what a published tensor is called in the port.

    Returns:
        The name, None if the port does without the tensor.

    Raises:
        UserError: if no published tensor of this model is called so.
    """
    if any(pattern.match(published) for pattern in DROPPED):
        return None
    for old, new in RENAMED:
        if published.startswith(old):
            name = new + published.removeprefix(old)
            for gate, renamed in GATES.items():
                name = name.replace(gate, renamed)
            return name
    raise UserError(f"The checkpoint has a tensor {published}, which is not part of VideoLLaMA 2 with sound.")


def convert(source: str | Path, destination: str | Path, overwrite: bool = False, **settings) -> Path:
    """Rewrite a published checkpoint of VideoLLaMA 2 with sound so that :func:`tamp.load` reads it.

    Everything is checked before anything is written. Tensors are copied as they are stored, a few megabytes at a time.
    The generation settings become greedy and without a repetition penalty, for the reason that
    :class:`VideoLlama2ForConditionalGeneration` gives.

    Args:
        source: the folder with ``config.json``, safetensors files and, if it is to load by itself, the tokenizer.
        destination: where to; must not exist unless ``overwrite``.
        overwrite: replace the destination.
        settings: fields of :class:`VideoLlama2Config` that the published configuration does not tell or tells wrongly.

    Returns:
        The destination.

    Raises:
        UserError: if a file is missing or broken, a tensor is missing, unknown or of another shape, a part of the model
            is of a type that is not ported, the destination exists, or writing fails.
    """
    source, destination = Path(source), files.check_free(destination, overwrite)
    if source.resolve() == destination or {source.resolve(), destination} & {
        *source.resolve().parents,
        *destination.parents,
    }:
        raise UserError(f"{destination} and {source} lie in each other: convert into a folder elsewhere.")
    config = VideoLlama2Config.from_published(_json(source / "config.json"), **settings)
    config.architectures = [VideoLlama2ForConditionalGeneration.__name__]
    tokenizer = _tokenizer(source)
    if tokenizer is not None:
        for kind, token in TOKENS.items():
            setattr(config, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(token))
    last = max(getattr(config, f"{kind}_token_id") for kind in TOKENS)
    if last >= config.text_config.vocab_size:
        raise UserError(
            f"The placeholder ids go up to {last}, the embedding has {config.text_config.vocab_size} rows: the "
            f"tokenizer in {source} does not belong to this checkpoint."
        )
    shards = {path: _header(path) for path in _shards(source)}
    names = _check(shards, config)
    with files.finished(destination, overwrite) as folder:
        weight_map, total = {}, 0
        for path, (header, start) in shards.items():
            total += _rewrite(path, folder / path.name, header, start, names)
            weight_map |= {names[name]: path.name for name in header if names[name]}
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        config.save_pretrained(folder)
        _generation(source, config).save_pretrained(folder)
        if tokenizer is not None:
            _processor(config, tokenizer).save_pretrained(folder)
        else:
            log.warning("There is no tokenizer in %s: %s has weights but no processor", source, destination)
    return destination


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"There is no {path}: give the folder of a published checkpoint.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def _shards(source: Path) -> list[Path]:
    """List the weight files, all of them present."""
    if (source / INDEX).is_file():
        paths = [source / name for name in sorted(set(_json(source / INDEX)["weight_map"].values()))]
    else:
        paths = [source / SINGLE]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing)}: download the checkpoint completely.")
    return paths


def _header(path: Path) -> tuple[dict[str, dict], int]:
    """Read what a safetensors file says it holds: (name to dtype, shape and place, where its data start)."""
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(start - 8)) if start <= path.stat().st_size else {}
        except ValueError:
            header = {}
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=-1)
    if start + end != path.stat().st_size:
        raise UserError(f"{path} is not a complete safetensors file: download it again.")
    return header, start


def _check(shards: dict[Path, tuple[dict, int]], config: VideoLlama2Config) -> dict[str, str | None]:
    """Compare what the files have with what the model needs; return the new name of every tensor."""
    with torch.device("meta"):
        needed = VideoLlama2ForConditionalGeneration._from_config(config).state_dict()
    names: dict[str, str | None] = {}
    for path, (header, _) in shards.items():
        for name, entry in header.items():
            renamed = port_name(name)
            if renamed and renamed in names.values():
                raise UserError(f"{path}: {name} is there twice, perhaps under another name.")
            names[name] = renamed
            if renamed is None:
                continue
            if renamed not in needed:
                raise UserError(f"{path} has a tensor {name}, which the model in its config.json has no place for.")
            shape, wanted = tuple(entry["shape"]), tuple(needed[renamed].shape)
            if shape != wanted:
                raise UserError(f"{path}: {name} has shape {shape}, its config.json asks for {wanted}.")
    missing = sorted(needed.keys() - names.values())
    if missing:
        raise UserError(f"The checkpoint lacks {len(missing)} tensors, among them the port's {missing[0]}.")
    return names


def _rewrite(path: Path, target: Path, header: dict, start: int, names: dict[str, str | None]) -> int:
    """Copy a shard's tensors under their new names; return how many bytes of data were written."""
    kept = sorted((entry["data_offsets"], name) for name, entry in header.items() if names[name])
    made, end = {"__metadata__": {"format": "pt"}}, 0
    for (first, last), name in kept:
        made[names[name]] = {**header[name], "data_offsets": [end, end + last - first]}
        end += last - first
    text = json.dumps(made).encode()
    text += b" " * (-len(text) % 8)  # data start at a multiple of eight bytes
    with path.open("rb") as old, target.open("wb") as new:
        new.write(len(text).to_bytes(8, "little") + text)
        for (first, last), _ in kept:
            old.seek(start + first)
            for place in range(first, last, CHUNK):
                new.write(old.read(min(CHUNK, last - place)))
    return end


def _tokenizer(source: Path) -> PreTrainedTokenizerBase | None:
    """Read the tokenizer, if there is one, and give it the placeholders."""
    if not any((source / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"The tokenizer in {source} cannot be read: {error}") from error
    tokenizer.add_tokens(list(TOKENS.values()), special_tokens=True)
    return tokenizer


def _generation(source: Path, config: VideoLlama2Config) -> GenerationConfig:
    """Keep the ids that start, end and pad, and nothing of how to sample."""
    path = source / "generation_config.json"
    published = {**config.text_config.to_dict(), **(_json(path) if path.is_file() else {})}
    ids = {name: published.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return GenerationConfig(**ids, do_sample=False, repetition_penalty=1.0)


def _processor(config: VideoLlama2Config, tokenizer: PreTrainedTokenizerBase) -> VideoLlama2Processor:
    """Make the processor that fits a configuration."""
    side = config.vision_config.image_size
    return VideoLlama2Processor(
        SiglipImageProcessorPil(size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer,
        num_frames=config.num_frames,
        patch_size=config.vision_config.patch_size,
        downsample=config.projector_downsample,
    )
