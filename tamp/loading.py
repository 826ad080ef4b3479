"""Loading a model and its processor by a shipped name, from a folder or from the hub."""

from pathlib import Path

import torch
import transformers
from PIL import Image

from tamp import zoo
from tamp.errors import UserError, missing_package, unknown

TORCHVISION_FILTERS = {Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC}
"""What torchvision resizes tensors with; transformers prefers it to PIL wherever it is installed."""


def load(name_or_path: str | Path, device: str = "auto", dtype: str | torch.dtype = "auto"):
    """Load a model and its processor.

    Args:
        name_or_path: a shipped name (``"mini-llava-next"``), one over weights that are fetched once (``"smol-llava-next"``
            and ``"smol-videollama2"``, see :mod:`training.smol`, or ``"smollm2-135m-instruct"`` alone), a local folder,
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
    folder = zoo.folder(name) if name in zoo.MODELS else Path(name)
    if folder.is_dir():
        source = str(folder)
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} does not hold a model: there is no config.json in it.")
    elif folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise unknown("model", name, zoo.MODELS, "A local folder or a hub id such as 'owner/model' works too.")
    else:
        source = name

    try:
        import tamp.videollama2  # registers its classes with transformers

        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        named = (config.architectures or ["?"])[0]
        architecture = getattr(transformers, named, None) or getattr(tamp.videollama2, named, None)
        if architecture is None:
            raise UserError(
                f"transformers {transformers.__version__} has no architecture {config.architectures}, "
                f"which {name!r} asks for, and remote code is not run."
            )
        if isinstance(dtype, str) and dtype != "auto":
            dtype = _dtype(dtype)
        model, loaded = architecture.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported with the others below
        )
        _check_complete(name, loaded)
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
                f"or give a local folder. Known by name: {', '.join(zoo.MODELS)}."
            ) from error
        raise UserError(f"Could not load {name!r}: {first}") from error
    if dtype == "auto" and device.type == "cpu" and model.dtype in (torch.float16, torch.bfloat16):
        model.stored_dtypes = {key: tensor.dtype for key, tensor in model.state_dict().items()}  # what save writes
        model = model.float()  # half precision is slow on most CPUs, and widening loses nothing
    if name in zoo.MODELS:
        model.config._name_or_path = name  # what a report calls it, wherever its folder is
    return model.to(device).eval(), processor


def _check_complete(name: str, loaded: dict) -> None:
    """Check that every tensor of a model came from its files, and every tensor of its files went into it.

    Args:
        name: what was loaded.
        loaded: transformers' own account of it.

    Raises:
        UserError: naming the tensors; transformers would fill the missing ones with random numbers and go on.
    """
    faults = {
        "are missing": loaded["missing_keys"],
        "have another shape than the model": [key for key, *_ in loaded["mismatched_keys"]],
        "do not belong to the model": loaded["unexpected_keys"],
    }
    said = []
    for fault, keys in faults.items():
        if keys:
            first = ", ".join(sorted(keys)[:3])
            said.append(f"{len(keys)} tensors {fault} ({first}{', ...' if len(keys) > 3 else ''})")
    if said:
        raise UserError(
            f"The files of {name!r} do not fit its configuration: {'; '.join(said)}. Download the model again, or correct "
            "the names in its files."
        )


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


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device of a name; ``"auto"`` is a GPU if there is one.

    Raises:
        UserError: if torch does not know the name or the device is not available.
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
