"""What only a GPU can show: recorded cases, every preset, attention rows of its kernels, blocks brought one at a time."""

import importlib.util
import inspect
import os

import oracles
import pytest
import tiny
import torch

import tamp
from tamp import criteria, models, selection, walk
from tamp.recipe import PRESETS

REHEARSED = "TAMP_REHEARSE" in os.environ
DEVICE = torch.device("cpu" if REHEARSED else "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (REHEARSED or torch.cuda.is_available()), reason="no GPU"),
]


def zeros(model) -> dict[str, torch.Tensor]:
    """Return where the matrices of a model are zero."""
    return {name: linear.weight.cpu() == 0 for name, linear in models.all_linears(model).items()}


def pruned(family: str, preset: str, device: torch.device, **options) -> tuple:
    """Prune a tiny model on a device; return its zeros and the report."""
    model, samples = tiny.build(family)
    if "device" not in options:
        model.to(device)
    report = tamp.prune(model, samples, tamp.Recipe.preset(preset, sparsity=0.5), progress=False, **options)
    return zeros(model), report


@pytest.mark.parametrize("case", sorted(oracles.golden("amia")))
def test_selection_matches_the_released_code(case):
    fields = {name: value.to(DEVICE) for name, value in oracles.golden("amia")[case].items()}
    mask = selection.amia(fields["outputs"], fields["attention"], fields["modality"])
    assert mask.sum() == fields["picked"]
    torch.testing.assert_close((fields["inputs"][mask] ** 2).mean(0), fields["mean_square"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "videollama2", "llama"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_finds_nearly_the_masks_of_the_cpu(preset, family):
    """Sums are rounded otherwise, so near ties fall otherwise; AMIA's picks and ECoFLaP's directions may differ more."""
    expected, _ = pruned(family, preset, torch.device("cpu"))
    found, report = pruned(family, preset, DEVICE)
    weights = sum(report.plan.sizes)
    assert sum(int(mask.sum()) for mask in found.values()) >= round(0.5 * weights)
    differing = sum(int((expected[name] != found[name]).sum()) for name in expected) / weights
    assert differing <= {"ecoflap": 0.2, "amia": 0.1, "tamp": 0.1}.get(preset, 0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tokens_of_half_precision_are_multiplied_exactly(dtype):
    tokens = torch.randn(64, 48, device=DEVICE).to(dtype)
    found = criteria.Hessian(48, DEVICE)
    found.add(tokens)
    torch.testing.assert_close(found.total.double(), tokens.double().T @ tokens.double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kernel", ["sdpa", "flash_attention_2", "flex_attention"])
def test_the_attention_row_of_a_kernel_is_that_of_eager_attention(kernel):
    if kernel == "flash_attention_2" and not importlib.util.find_spec("flash_attn"):
        pytest.skip("flash_attn is not installed")
    rows = []
    for name in ("eager", kernel):
        model, samples = tiny.build("llama", torch.bfloat16, name)
        captured = walk.capture(model.to(DEVICE), samples, progress=False)
        rows.append([row.attention for step in walk.walk(model, captured, attention=True) for row in step])
    for one, other in zip(*rows):
        torch.testing.assert_close(one, other, atol=5e-3, rtol=5e-2)


@pytest.mark.skipif(
    "device" not in inspect.signature(tamp.prune).parameters, reason="blocks are not brought one at a time"
)
@pytest.mark.parametrize("preset", ["wanda", "tamp", "sparsegpt"])
def test_blocks_brought_one_at_a_time_give_the_same_masks(preset):
    resident, _ = pruned("llava_next", preset, DEVICE)
    brought, _ = pruned("llava_next", preset, DEVICE, device=DEVICE, states="host")
    assert all(torch.equal(resident[name], brought[name]) for name in resident)
