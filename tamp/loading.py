"""Loading a model and its processor by a shipped name, from a folder or from the hub."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers.models.auto import modeling_auto

from tamp import missing, zoo
from tamp.cache import waiting
from tamp.errors import UserError, unknown
from tamp.files import located, recovered
from tamp.onloading import resolve_device, settle

TORCHVISION_FILTERS = {Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC}
"""What torchvision resizes tensors with; transformers prefers it to PIL wherever it is installed."""

GENERATORS = (
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING,
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
)
"""Where to look up the class that generates text, by the class of a configuration, first come first served."""

LLAVA_HF = {
    "mistral": "llava-hf/llava-v1.6-mistral-7b-hf",
    "qwen": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "": "llava-hf/llava-v1.6-vicuna-7b-hf",
}
"""Part of the name of an architecture of LLaVA's authors, and a model in transformers' format with that language model."""


def load(
    name_or_path: str | Path,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    offload: bool | str = False,
):
    """Load a model and its processor.

    The class is the one that the model's configuration names. If it names none that transformers knows, or a model without
    the head that gives logits, it is the class that generates text for this type of configuration.

    Args:
        name_or_path: a shipped name (``"mini-llava-next"``), one over weights that are fetched once (``"smol-llava-next"``
            and ``"smol-videollama2"``, see :mod:`training.smol`, or ``"smollm2-135m-instruct"`` alone), a local folder,
            plain or compact, or a hub id such as ``"llava-hf/llama3-llava-next-8b-hf"``. Weights are read from safetensors
            only, and no remote code is run.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ...
        dtype: ``"auto"`` (as stored; float32 instead of half precision on a CPU), ``"float32"``, ``"bfloat16"`` or
            ``"float16"``. Half precision that was widened on a CPU is saved as half precision again.
        offload: True to leave the weights in the host's memory, as stored: they are mapped from their files, and read when a
            block is computed. :func:`tamp.prune` and :func:`tamp.plan` then bring one block at a time to ``device``.
            ``"auto"`` does so, and says so, if the weights would fill more than 70 % of a GPU's free memory.

    Returns:
        (model, processor), the model in evaluation mode; for a text-only model the processor is a tokenizer.

    Raises:
        UserError: if there is no such model, it cannot be fetched, is quantized, needs remote code, is in a format of its
            authors', is damaged or incomplete, has no processor, a package that its processor needs is missing, or device or
            dtype do not exist.
    """
    if offload not in (True, False, "auto"):
        raise unknown("offload", str(offload), ("True", "False", "auto"))
    name = str(name_or_path)
    device = resolve_device(device)
    if isinstance(dtype, str) and dtype != "auto":
        dtype = _dtype(dtype)
    source, folder = _source(name)
    with _told(name, source):
        from tamp import compact  # as late, since it imports what a misfit torchvision breaks

        config, architecture, base = _described(name, source)
        processor = _processor(name, source, config)
        settings = {
            "dtype": dtype,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,  # they are reported with the others below
        }
        if compact.files(folder):
            model, loaded = _from_compact(_weights(architecture), folder, config, settings)
        else:
            model, loaded = _weights(architecture)(source, use_safetensors=True, trust_remote_code=False, **settings)
        _check_complete(name, loaded, base)
        if hasattr(model, "load_speakers"):
            _speakers(model, source)
    if offload is True or offload and device.type != "cpu":
        model.computed_on = str(device)  # by what comes; moving the model does not change it
    elif dtype == "auto" and device.type == "cpu" and model.dtype in (torch.float16, torch.bfloat16):
        model.stored_dtypes = {key: tensor.dtype for key, tensor in model.state_dict().items()}  # what save writes
        model = model.float()  # half precision is slow on most CPUs, and widening loses nothing
    if name in zoo.MODELS:
        model.config._name_or_path = name  # what a report calls it, wherever its folder is
    if not hasattr(model, "computed_on"):
        model.to(device)
    elif offload == "auto":
        settle(model)
    return model.eval(), processor


def skeleton(name_or_path: str | Path) -> tuple[torch.nn.Module, int]:
    """Build a model without its weights, on the device ``"meta"`` and in the stored type, and measure its files.

    Returns:
        (model, bytes of the tensors in its files).

    Raises:
        UserError: see :func:`load`.
    """
    name = str(name_or_path)
    source, folder = _source(name)
    with _told(name, source):
        config, architecture, _ = _described(name, source)
        if os.path.isdir(folder):
            paths = [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.compact")]
            held = sum(path.stat().st_size for path in paths)
        else:
            found = huggingface_hub.get_safetensors_metadata(source).files_metadata.values()
            held = sum(
                end - begin for file in found for begin, end in (each.data_offsets for each in file.tensors.values())
            )
        with torch.device("meta"):
            model = architecture._from_config(config, dtype=config.dtype or torch.float32)
    if name in zoo.MODELS:
        model.config._name_or_path = name
    return model.eval(), held


def _source(name: str) -> tuple[str, Path]:
    """Return where a model is: (folder or hub id for transformers, folder).

    Raises:
        UserError: if it is neither known, nor a folder with a model, nor spelled like a hub id.
    """
    folder = zoo.folder(name) if name in zoo.MODELS else Path(name)
    if name.startswith("~"):
        folder = located(folder)
        name = str(folder)
    recovered(folder)
    if os.path.isdir(folder):  # which takes a name that is too long
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} does not hold a model: there is no config.json in it.")
        return str(folder), folder
    if folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise unknown(
            "model", f"{name:.200}", zoo.MODELS, "A local folder or a hub id such as 'owner/model' works too."
        )
    return name, folder


def _described(name: str, source: str):
    """Read what a model is from its configuration: (configuration, class, see :func:`_class`)."""
    import tamp.videollama2  # noqa: F401  registers its classes with transformers

    with waiting(f"the model hub, asked for {name!r}"):
        said = transformers.PreTrainedConfig.get_config_dict(source)[0]
    _check_format(name, said)
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    return config, *_class(name, config, "auto_map" in said)


def _check_format(name: str, said: dict[str, Any]) -> None:
    """Check that a model is in a format that can be loaded and pruned, before anything but its configuration is read.

    Args:
        name: what is loaded.
        said: its ``config.json``.

    Raises:
        UserError: with the model to take instead: if it is quantized, in a format of its authors', or not for transformers.
    """
    kind, named = str(said.get("model_type") or ""), str((said.get("architectures") or [""])[0])
    for part in (said, *(part for part in said.values() if isinstance(part, dict))):
        if found := part.get("quantization_config") or part.get("compression_config"):
            by_bits = any(key.startswith("load_in_") for key in found)
            how = found.get("quant_method") or ("bitsandbytes" if by_bits else "in its own way")
            raise UserError(f"{name!r} is quantized ({how}): prune the original model, then quantize the result.")
    native = kind in transformers.CONFIG_MAPPING
    llava = named.startswith("Llava") and named.endswith("ForCausalLM")  # which no class of transformers is called
    if native and not llava:
        return
    if kind.startswith("videollama2_"):
        raise UserError(
            f"{name!r} is a VideoLLaMA 2 as its authors publish it, in their own format: download it and convert it "
            "once, tamp convert-videollama2 FOLDER OUT, then load OUT."
        )
    if llava or kind.startswith("llava_"):
        instead = next(model for part, model in LLAVA_HF.items() if part in (kind + named).lower())
        raise UserError(
            f"{name!r} is a LLaVA in its authors' format ({kind or named}), which transformers does not read: use the "
            f"llava-hf version of it, such as {instead}."
        )
    if "auto_map" in said:
        raise _remote(name, kind or named)
    if not kind:
        raise UserError(f"Could not load {name!r}: its config.json names no model_type, so it is not for transformers.")
    raise UserError(
        f"Could not load {name!r}: transformers {transformers.__version__} does not know the model type {kind!r}. Update "
        "transformers, or use a model that it knows."
    )


def _remote(name: str, what: str) -> UserError:
    return UserError(
        f"Could not load {name!r}: {what!r} is remote code, Python files beside the weights, and is not run. Use a version "
        "made for transformers itself; the names of many end in -hf."
    )


def _class(name: str, config, remote: bool) -> tuple[type, str | None]:
    """Find the class to load a model with.

    Args:
        name: what is loaded.
        config: its configuration.
        remote: whether the model comes with code of its own.

    Returns:
        (class, the name of the model without a head that the configuration asks for, if it does).

    Raises:
        UserError: if neither the name of the architecture nor the type of the configuration leads to a class.
    """
    import tamp.videollama2

    named = (config.architectures or [""])[0]
    known = getattr(transformers, named, None) or getattr(tamp.videollama2, named, None) if named else None
    if not (isinstance(known, type) and issubclass(known, transformers.PreTrainedModel)):
        known = None
    if known is None and named and remote:
        raise _remote(name, named)
    generator = next((found for table in GENERATORS if (found := table.get(type(config), None))), None)
    if generator is not None and (known is None or known is modeling_auto.MODEL_MAPPING.get(type(config), None)):
        return generator, named if known else None
    if known is None:
        raise UserError(
            f"Could not load {name!r}: transformers {transformers.__version__} has no architecture {named!r}, and no model "
            f"that generates text for the type {config.model_type!r}. Use a model with a language model in it."
        )
    return known, None


def _weights(architecture: type):
    """Return the function that loads a class; that of Qwen2.5-Omni itself cannot say which tensors it loaded."""
    own = hasattr(architecture, "load_speakers")
    return super(architecture, architecture).from_pretrained if own else architecture.from_pretrained


def _from_compact(build, folder: Path, config, settings: dict):
    """Build a model from a compact folder as ``from_pretrained`` does from a plain one: (model, what was loaded)."""
    from tamp import compact

    model, loaded = build(None, config=config, state_dict=compact.state(folder), **settings)
    model.config._name_or_path = model.name_or_path = str(folder)
    if (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return model, loaded


def _speakers(model, source: str) -> None:
    """Load the voices of a model that talks, if they lie beside it."""
    from tamp.checkpoint import SPEAKERS

    path = transformers.utils.cached_file(source, SPEAKERS, _raise_exceptions_for_missing_entries=False)
    if path is not None:
        model.load_speakers(path)


def _check_complete(name: str, loaded: dict, base: str | None) -> None:
    """Check that every tensor of a model came from its files, and every tensor of its files went into it.

    Args:
        name: what was loaded.
        loaded: transformers' own account of it.
        base: the model without a head that the files hold, if they say so.

    Raises:
        UserError: naming the tensors; transformers would fill the missing ones with random numbers and go on.
    """
    faults = {
        "are missing": loaded["missing_keys"],
        "have another shape than the model": [key for key, *_ in loaded["mismatched_keys"]],
        "do not belong to the model": loaded["unexpected_keys"],
    }
    if base and any(faults.values()):
        raise UserError(
            f"{name!r} holds a {base}, a model without the head that gives logits, so it cannot be evaluated: use the "
            "version of it that generates text, whose architecture ends in ForCausalLM or ForConditionalGeneration."
        )
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


def _processor(name: str, source: str, config):
    """Load a model's processor, with PIL's image processor where torchvision lacks the filter that it resizes with.

    Raises:
        UserError: if there is none, or only the tokenizer of a model that takes more than text.
    """
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING  # which imports torchvision

    mixed = type(config) in PROCESSOR_MAPPING
    problem = None
    try:
        processor = transformers.AutoProcessor.from_pretrained(source, trust_remote_code=False)
        if mixed and not isinstance(processor, transformers.ProcessorMixin):
            problem = "there is only a tokenizer"
    except (OSError, ValueError) as error:
        problem = _first_line(error).split(". ")[0]
    if problem:
        kind, files = ("processor", "preprocessor_config.json, ") if mixed else ("tokenizer", "")
        raise UserError(
            f"{name!r} has no {kind} that can be loaded ({problem.rstrip('.,')}): put the {kind} files of the original "
            f"model beside the weights ({files}tokenizer.json, tokenizer_config.json, ...)."
        )
    pictures = getattr(processor, "image_processor", None)
    resample = getattr(pictures, "resample", None)
    if resample is not None and Image.Resampling(resample) not in TORCHVISION_FILTERS:
        processor.image_processor = transformers.AutoImageProcessor.from_pretrained(
            source, backend="pil", trust_remote_code=False
        )
    return processor


@contextlib.contextmanager
def _told(name: str, source: str) -> Iterator[None]:
    """Report whatever transformers, safetensors and huggingface_hub raise in a sentence that names the model."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"Could not load {name!r}: {missing.named(error)}") from error
    except Exception as error:
        misfit = missing.torchvision()  # found on its first import, wherever that is
        raise UserError(f"Could not load {name!r}: {misfit}" if misfit else _said(name, Path(source), error)) from error


def _said(name: str, folder: Path, error: Exception) -> str:
    """Say what is wrong with a model that could not be loaded, and what to do."""
    first = _first_line(error)
    fetching = isinstance(error, OSError) or type(error).__module__.startswith(("huggingface_hub", "httpx"))
    if fetching and not folder.is_dir():
        if "gated repo" in str(error):
            return f"Could not fetch {name!r}: accept its terms on the model hub, then log in with `hf auth login`."
        return (
            f"Could not fetch {name!r} from the model hub: {first} Check the spelling and the network, or give a local "
            f"folder. Known by name: {', '.join(zoo.MODELS)}."
        )
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as fault:
            return f"Could not load {name!r}: {path.name} is damaged or not whole ({_first_line(fault)}). Download it again."
    if isinstance(error, SafetensorError):
        return f"Could not load {name!r}: a file of its weights is damaged or not whole ({first}). Download it again."
    if list(folder.glob("*.bin")) and not list(folder.glob("*.safetensors")):
        return (
            f"Could not load {name!r}: its weights are pickled, and only safetensors are read. Load the model with "
            "transformers and save it again."
        )
    if isinstance(error, OSError):
        return f"Could not load {name!r}: {first.rstrip('.')}. Download what is missing or damaged."
    return (
        f"Could not load {name!r}: its files are damaged, or do not fit transformers {transformers.__version__} "
        f"({type(error).__name__}: {first.rstrip('.')}). Download them again, or install the version they were made with."
    )


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, and the second if that is what the first announces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{' '.join(lines[: 2 if lines[0].endswith(':') else 1]):.300}"


def _dtype(name: str) -> torch.dtype:
    names = ("float32", "bfloat16", "float16")
    if name not in names:
        raise unknown("dtype", name, ("auto", *names))
    return getattr(torch, name)
