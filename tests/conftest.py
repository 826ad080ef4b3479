"""What several test files share: the shipped model, loaded once."""

import copy
import os

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


@pytest.fixture(autouse=True)
def _same_threads():
    """A test that changes the number of threads must not change it for the next one."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
