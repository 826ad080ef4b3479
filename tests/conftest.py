"""What several test files share: the shipped model, loaded once."""

import copy
import logging
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def shipped():
    """The shipped model and its processor; tests that change the model take ``mini`` instead."""
    import tamp

    return tamp.load("mini-llava-next", device="cpu")


@pytest.fixture
def mini(shipped):
    """A copy of the shipped model that a test may change, and the processor."""
    return copy.deepcopy(shipped[0]), shipped[1]


@pytest.fixture(scope="session")
def processor(shipped):
    """The shipped model's processor."""
    return shipped[1]


@pytest.fixture(scope="session")
def tokenizer():
    """SmolLM2's tokenizer."""
    import transformers

    from tamp import zoo
    from tamp.errors import UserError

    try:
        source = zoo.language_model()
    except UserError as error:
        pytest.skip(f"SmolLM2 cannot be fetched here: {error}")
    return transformers.AutoTokenizer.from_pretrained(source)


@pytest.fixture
def small(tokenizer, monkeypatch):
    """A tiny random language model in SmolLM2's place."""
    import transformers
    from training import smol

    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )

    def make():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            base = transformers.LlamaForCausalLM(config)
        return base.eval(), transformers.AutoTokenizer.from_pretrained(tokenizer.name_or_path)

    monkeypatch.setattr(smol, "language_model", make)
    return make()[0]


@pytest.fixture(autouse=True)
def _same_threads():
    """A test that changes the number of threads must not change it for the next one."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


PACKAGE = str(Path(__file__).parents[1] / "tamp")
BETWEEN = (f"{os.sep}torch{os.sep}", f"{os.sep}transformers{os.sep}utils{os.sep}", "logging", "warnings.py")
"""Files that stand between a call and its deprecation warning: modules' ``__call__``, decorators."""


def _named() -> str | None:
    """Return the line of the package that called what warns just now; None if the call came from elsewhere."""
    frame = sys._getframe(1)
    while frame and (frame.f_code.co_filename == __file__ or any(part in frame.f_code.co_filename for part in BETWEEN)):
        frame = frame.f_back
    ours = frame is not None and frame.f_code.co_filename.startswith(PACKAGE)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if ours else None


@pytest.fixture(autouse=True)
def deprecated_calls(monkeypatch):
    """Fail a test in which the package calls what transformers says is deprecated."""
    import transformers  # noqa: F401  its logger is set up once it is imported

    found = set()
    warn = warnings.warn

    def watch(message, category=None, stacklevel=1, *rest, **settings):
        if category is FutureWarning and (place := _named()):
            found.add(f"{place}: {message}")
        return warn(message, category, stacklevel + 1, *rest, **settings)

    class Watch(logging.Handler):
        def emit(self, record):
            if "deprecated" in record.getMessage() and (place := _named()):
                found.add(f"{place}: {record.getMessage()}")

    handler = Watch(logging.WARNING)
    logging.getLogger("transformers").addHandler(handler)
    monkeypatch.setattr(warnings, "warn", watch)
    yield found
    logging.getLogger("transformers").removeHandler(handler)
    assert not found, "\n".join(sorted(found))
