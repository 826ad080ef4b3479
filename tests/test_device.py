"""What the methods do on a GPU, on a pretended one: no mix of devices, the CPU's masks, and few waits, kernels and bytes."""

import pretend
import pytest
import tiny
import torch

import tamp
from tamp import criteria, planning
from tamp.recipe import PRESETS


@pytest.fixture(autouse=True)
def weights_of_any_class(monkeypatch):
    """Let weights be pretended tensors, which pruning would take for quantized ones."""
    monkeypatch.setattr(planning, "_check_weight", lambda name, linear: None)


def zeros(model) -> dict[str, torch.Tensor]:
    """Return where the matrices of a model are zero."""
    return {name: getattr(weight, "held", weight) == 0 for name, weight in model.named_parameters() if weight.ndim == 2}


def pruned(family: str, preset: str, **options):
    """Prune a tiny model on the pretended device; return it and what was recorded."""
    model, samples = tiny.build(family)
    with pretend.device() as recorder:
        pretend.move(model, recorder)
        tamp.prune(model, samples, tamp.Recipe.preset(preset, sparsity=0.5, **options), progress=False)
    return model, recorder


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_mixes_no_devices_and_finds_the_masks_of_the_cpu(preset):
    model, samples = tiny.build("llava_next")
    tamp.prune(model, samples, tamp.Recipe.preset(preset, sparsity=0.5), progress=False)
    there, _ = pruned("llava_next", preset)
    expected, found = zeros(model), zeros(there)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_a_planted_mix_is_caught(monkeypatch):
    class Astray(criteria.MeanSquare):
        def __init__(self, width, device="cpu"):
            super().__init__(width, "cpu")

    monkeypatch.setitem(criteria.CRITERIA, "wanda", criteria.Criterion(metric=lambda *_: None, statistic=Astray))
    with pytest.raises(pretend.Mix, match=r"tamp/criteria.py:\d+"):
        pruned("llama", "wanda")


@pytest.mark.parametrize("wait", ["item", "tolist", "nonzero", "cpu", "bool", "index"])
def test_a_planted_wait_is_caught(wait):
    calls = {
        "bool": lambda tensor: bool(tensor.sum()),
        "item": lambda tensor: tensor.sum().item(),
        "index": lambda tensor: tensor[tensor > 1],
    }
    with pretend.device() as recorder:
        tensor = torch.ones(3, device="cuda")
        tensor = tensor + torch.tensor([1.0, 2, 3], device="cuda")
        recorder.reset()
        calls.get(wait, lambda tensor: getattr(tensor, wait)())(tensor)
    ((where, _),) = recorder.waits
    assert recorder.n_waits() == 1 and where.startswith("tests/test_device.py")


def test_a_generator_of_the_host_is_a_mix():
    with pretend.device(), pytest.raises(pretend.Mix, match="generator"):
        torch.randn(3, device="cuda", generator=torch.Generator().manual_seed(0))


def test_kernels_bytes_and_the_peak_are_counted():
    with pretend.device() as recorder:
        tensor = torch.zeros(256, 4, device="cuda")
        view = tensor.T[:2]
        assert (recorder.held, len(recorder.launches)) == (4096, 1)
        view += 1
        double = tensor.double()
        assert recorder.peak == recorder.held == 3 * 4096
        del double
        assert recorder.held == 4096
    assert [launch.nbytes for launch in recorder.launches] == [4096, 2 * 2048, 3 * 4096]
