"""What tamp needs to know about a model: its decoder blocks, their linears, and the modality of every token.

Nothing here is a table of families. The blocks are found through the decoder of the model, the linears by their type, the
modality of a token by the ids that the model's own configuration reserves for images, video and audio.
"""

import hashlib
import logging
from pathlib import Path

import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from tamp import videollama2
from tamp.errors import UserError, missing_package, unknown
from tamp.shipped import smol, smol_av, smollm2
from tamp.shipped.places import data_folder

VISUAL, AUDIO, TEXT, PADDING = 0, 1, 2, -1
MODALITY_NAMES = {VISUAL: "visual", AUDIO: "audio", TEXT: "text"}
PLACEHOLDERS = {"image": VISUAL, "video": VISUAL, "audio": AUDIO}
SHIPPED = ("mini-llava-next",)
FETCHED = {kind.NAME: kind.folder for kind in (smol, smol_av, smollm2)}  # name: makes its folder, once

TORCHVISION_FILTERS = {Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC}
"""What torchvision resizes tensors with; transformers prefers it to PIL wherever it is installed."""

log = logging.getLogger(__name__)


def load(name_or_path: str | Path, device: str = "auto", dtype: str | torch.dtype = "auto"):
    """Load a model and its processor.

    Args:
        name_or_path: a shipped name (``"mini-llava-next"``), one over weights that are fetched once (``"smol-llava-next"``
            and ``"smol-videollama2"``, see :mod:`tamp.shipped.smol`, or ``"smollm2-135m-instruct"`` alone), a local folder,
            or a hub id such as ``"llava-hf/llama3-llava-next-8b-hf"``. Only safetensors are read and no remote code is run.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ...
        dtype: ``"auto"`` (as stored; float32 instead of half precision on a CPU), ``"float32"``, ``"bfloat16"`` or
            ``"float16"``. Half precision that was widened on a CPU is saved as half precision again.

    Returns:
        (model, processor), the model in evaluation mode; for a text-only model the processor is a tokenizer.

    Raises:
        UserError: if there is no such model, it cannot be fetched, a package that its processor needs is missing, or
            device or dtype do not exist.
    """
    name = str(name_or_path)
    device = resolve_device(device)
    known = (*SHIPPED, *FETCHED)
    folder = data_folder() / name if name in SHIPPED else FETCHED[name]() if name in FETCHED else Path(name)
    if folder.is_dir():
        source = str(folder)
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} holds no model: there is no config.json in it.")
    elif name in SHIPPED:
        raise UserError(f"The files of {name!r} are missing from {data_folder()}: install tamp from its repository.")
    elif folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise unknown("model", name, known, "A local folder or a hub id such as 'owner/model' works too.")
    else:
        source = name

    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        named = (config.architectures or ["?"])[0]
        architecture = getattr(transformers, named, None) or getattr(videollama2, named, None)
        if architecture is None:
            raise UserError(
                f"transformers {transformers.__version__} has no architecture {config.architectures}, "
                f"which {name!r} asks for, and remote code is not run."
            )
        if isinstance(dtype, str) and dtype != "auto":
            dtype = _dtype(dtype)
        model = architecture.from_pretrained(source, dtype=dtype, use_safetensors=True, trust_remote_code=False)
        processor = _processor(source)
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, UserError):
            raise
        if isinstance(error, ImportError):
            raise UserError(f"Could not load {name!r}: {missing_package(error)}") from error
        if isinstance(error, ValueError) and _published_videollama2(source):
            raise UserError(
                f"{name!r} is a VideoLLaMA 2 as its authors publish it, in their own format: download it and convert it "
                "once, tamp convert-videollama2 FOLDER OUT, then load OUT."
            ) from error
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if source == name and not folder.is_dir():
            raise UserError(
                f"Could not fetch {name!r} from the model hub: {first} Check the spelling and the network, "
                f"or give a local folder. Known by name: {', '.join(known)}."
            ) from error
        raise UserError(f"Could not load {name!r}: {first}") from error
    if dtype == "auto" and device.type == "cpu" and model.dtype in (torch.float16, torch.bfloat16):
        model.stored_dtypes = {key: tensor.dtype for key, tensor in model.state_dict().items()}  # what save writes
        model = model.float()  # half precision is slow on most CPUs, and widening loses nothing
    if name in known:
        model.config._name_or_path = name  # what a report calls it, wherever its folder is
    return model.to(device).eval(), processor


def _processor(source: str):
    """Load a model's processor, with PIL's image processor where torchvision lacks the filter that it resizes with."""
    processor = transformers.AutoProcessor.from_pretrained(source, trust_remote_code=False)
    pictures = getattr(processor, "image_processor", None)
    resample = getattr(pictures, "resample", None)
    if resample is not None and Image.Resampling(resample) not in TORCHVISION_FILTERS:
        processor.image_processor = transformers.AutoImageProcessor.from_pretrained(
            source, backend="pil", trust_remote_code=False
        )
    return processor


def _published_videollama2(source: str) -> bool:
    """Whether transformers does not know a model because it is VideoLLaMA 2 under one of its authors' own types."""
    kind = transformers.PreTrainedConfig.get_config_dict(source)[0].get("model_type") or ""
    return kind.startswith("videollama2_")


def name_of(model: nn.Module) -> str:
    """Return what a model is called: its name or path, or else its class."""
    return getattr(model.config, "_name_or_path", "") or type(model).__name__


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn a name into a device that exists; ``"auto"`` is a GPU if there is one.

    Raises:
        UserError: if the name means nothing to torch or the device is not there.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"Device {str(device)!r} is not available here; 'auto' takes what there is.") from error
    return torch.device(device)


def _dtype(name: str) -> torch.dtype:
    names = ("float32", "bfloat16", "float16")
    if name not in names:
        raise unknown("dtype", name, ("auto", *names))
    return getattr(torch, name)


def text_config(model: nn.Module):
    """Return the configuration of the language model inside ``model``."""
    return model.config.get_text_config(decoder=True)


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Find the decoder blocks of the language model, in order.

    Returns:
        ``{name inside the model: block}``.

    Raises:
        UserError: if the model has no list of decoder blocks.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    depth = getattr(text_config(model), "num_hidden_layers", None)
    for module in decoder.modules():  # outermost first
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) == depth and linears(child[0]):
                names = {id(part): name for name, part in model.named_modules()}
                return {names[id(block)]: block for block in child}
    raise UserError(
        f"{type(model).__name__} has no list of {depth} decoder blocks with linears in them; "
        "tamp prunes transformers language models."
    )


def linears(block: nn.Module) -> dict[str, nn.Linear]:
    """Return the linears inside a block by their name in it, in order of definition."""
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}


def all_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linears of all decoder blocks by their name inside the model, block after block."""
    return {
        f"{prefix}.{name}": linear for prefix, block in blocks(model).items() for name, linear in linears(block).items()
    }


def fingerprint(model: nn.Module) -> str:
    """Condense names, shapes and the first weights of the decoder's linears, to tell models apart in no time.

    Returns:
        SHA-256, in hexadecimal; the same for every device, and for a model that was widened from half precision.
    """
    condensed = hashlib.sha256()
    for name, linear in all_linears(model).items():
        condensed.update(f"{name} {tuple(linear.weight.shape)}".encode())
        condensed.update(linear.weight.detach()[0, :16].float().cpu().numpy().tobytes())
    return condensed.hexdigest()


def placeholder_ids(model: nn.Module) -> dict[int, int]:
    """Read from the model's configuration which token ids stand for images, video and audio: ``{id: modality}``."""
    found = {}
    for kind, modality in PLACEHOLDERS.items():
        for attribute in (f"{kind}_token_id", f"{kind}_token_index"):
            identifier = getattr(model.config, attribute, None)
            if isinstance(identifier, int) and identifier >= 0:
                found[identifier] = modality
    return found


def modality(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Tell the modality of every token of a processor's output.

    Args:
        model: the model whose configuration names the placeholder ids.
        batch: at least ``input_ids`` (B, T), and ``attention_mask`` (B, T) if padded.

    Returns:
        (B, T) int8 of VISUAL, AUDIO, TEXT and PADDING.
    """
    ids = batch["input_ids"]
    codes = torch.full_like(ids, TEXT, dtype=torch.int8)
    for identifier, code in placeholder_ids(model).items():
        codes[ids == identifier] = code
    mask = batch.get("attention_mask")
    return codes if mask is None else codes.masked_fill(mask == 0, PADDING)
