"""What the methods do on a GPU, on a pretended one: no mix of devices, the CPU's masks, and few waits, kernels and bytes."""

import numpy as np
import pretend
import pytest
import tiny
import torch
import transformers
from transformers.integrations import sdpa_attention

import tamp
from tamp import accumulators, criteria, estimate, masks, planning, pruning, scores, selection, updates, walk
from tamp.captured import Captured
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
def test_a_preset_mixes_no_devices_and_finds_the_masks_of_the_cpu(preset, monkeypatch):
    monkeypatch.setattr(scores, "direction", pretend.direction)
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
    with pytest.raises(pretend.Mix, match=r"tamp/accumulators.py:\d+"):
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


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_keys_are_repeated_where_no_kernel_shares_them(capability, monkeypatch):
    """On compute capability 7.5, sharing them between heads leads to the kernel that is no kernel."""
    attention, shared = torch.nn.functional.scaled_dot_product_attention, []

    def note(*args, **kwargs):
        shared.append(kwargs.get("enable_gqa", False))
        return attention(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", note)
    model, samples = tiny.build("llama")
    before = sdpa_attention.use_gqa_in_sdpa
    with pretend.device(capability=capability) as recorder:
        pretend.move(model, recorder)
        tamp.prune(model, samples[:1], tamp.Recipe(), progress=False)
    assert len(shared) > 6 and set(shared) == {capability >= (8, 0)}
    assert sdpa_attention.use_gqa_in_sdpa is before


def draw(seed: int, tokens: int, linears: int, dtype: torch.dtype):
    """Draw tokens around eight centres per linear, peaked attention, and words around a picture."""
    chance = torch.Generator().manual_seed(seed)
    outputs = []
    for _ in range(linears):
        centres = torch.randn(8, 48, generator=chance)
        which = torch.randint(8, (tokens,), generator=chance)
        outputs.append((centres[which] + torch.randn(tokens, 48, generator=chance)).to(dtype))
    attention = torch.rand(tokens, generator=chance).pow(4)
    modality = torch.full((tokens,), 2, dtype=torch.int8)
    modality[4 : tokens * 9 // 10] = 0
    return outputs, attention / attention.sum(), modality


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_device_picks_what_the_cpu_picks(dtype):
    """The device multiplies tokens of half precision as they are: near ties may differ, and none is here."""
    sets = [draw(seed, 40 + 9 * seed, 3, dtype) for seed in range(12)]
    sets[3][2][-5:] = -1  # padding
    sets[5][2][::3] = 2  # modalities that take turns
    expected = selection.amia_batch(sets)
    with pretend.device() as recorder:
        there = [([o.to("cuda") for o in outputs], *(p.to("cuda") for p in parts)) for outputs, *parts in sets]
        masks = selection.amia_batch(there)
        recorder.reset()
        places = selection.amia_places(there)
        assert recorder.n_waits() <= 2 + max(len(p) for one in places for p in one) // 16 + 1
        assert not any("mul" in launch.name and launch.read[0].shape == (40, 48) for launch in recorder.launches)
    for mask, positions, one in zip(masks, places, expected):
        assert torch.equal(mask.held, one)
        assert [sorted(each.held.tolist()) for each in positions] == [row.nonzero().flatten().tolist() for row in one]


def test_a_pick_takes_at_most_thirty_kernels():
    """Counted between 64 and 32 forced picks, seven linears at once."""
    with pretend.device() as recorder:
        outputs, *parts = draw(0, 200, 7, torch.bfloat16)
        one = [o.to("cuda") for o in outputs], *(part.to("cuda") for part in parts)
        launches = []
        for picks in (32, 64):
            recorder.reset()
            selection.amia_batch([one], at_least=picks)
            launches.append(len(recorder.launches))
    assert (launches[1] - launches[0]) / 32 <= 30


def test_few_passes_over_all_pairs_of_tokens():
    """Each reads or writes 4 bytes per pair and linear: all that runs on float32 matrices with a row per token."""
    tokens, linears = 540, 2
    with pretend.device() as recorder:
        outputs, *parts = draw(0, tokens, linears, torch.bfloat16)
        one = [o.to("cuda") for o in outputs], *(part.to("cuda") for part in parts)
        recorder.reset()
        selection.amia_places([one])
        moved = sum(
            pretend.nbytes(tensor)
            for launch in recorder.launches
            for tensor in (*launch.read, *launch.written)
            if tensor.dtype == torch.float32 and tensor.ndim >= 2 and tensor.shape[-1] > 300 and tensor.shape[-2] > 300
        )
    assert moved / (linears * tokens**2) <= 4 * 20


def waits(preset: str, samples: int) -> int:
    """Count how often the host waits while a tiny model's blocks are pruned, outside the walk's replay."""
    model, made = tiny.build("llava_next")
    with pretend.device() as recorder:
        pretend.move(model, recorder)
        captured = walk.capture(model, [made[0]] * samples, progress=False)
        recipe = tamp.Recipe.preset(preset, sparsity=0.5)
        recorder.reset()
        for step in walk.walk(model, captured, attention=recipe.rules[1].looks_at == "attention"):
            pruning.collect(step, recipe)
    return recorder.n_waits()


@pytest.mark.parametrize(("preset", "allowed"), [("wanda", 2), ("das", 2), ("tamp", 3), ("sparsegpt", 2)])
def test_the_host_waits_seldom_per_block_and_sample(preset, allowed):
    """Statistics are gathered without a look at the device but for whether all is finite, and one per 16 picks."""
    blocks, more = 3, 4
    assert (waits(preset, 1 + more) - waits(preset, 1)) / (blocks * more) <= allowed
    assert waits(preset, 1) <= blocks * (allowed + 3)


BLOCK = 436_207_616  # bytes in bfloat16: 2 x 4096^2 + 2 x 4096 x 1024 + 3 x 4096 x 14336 weights


@pytest.fixture
def block_of_8b():
    """One block of Llama 3 8B and one sample of 2,900 tokens on a pretended device, shapes alone: a walk and a recorder."""
    config = transformers.LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=8,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    with pretend.device(numbers=False) as recorder:
        pretend.move(model, recorder)
        assert BLOCK < recorder.held < 1.01 * BLOCK
        state = torch.empty(1, 2900, 4096, dtype=torch.bfloat16, device="cuda")
        angles = [torch.empty(1, 2900, 128, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
        calls = [((), {"position_embeddings": tuple(angles), "attention_mask": None})]
        modality = recorder.wrap(torch.tensor([[2] * 4 + [0] * 2880 + [2] * 16], dtype=torch.int8))
        sample = Captured(state, calls, modality, {})
        del state
        recorder.reset()
        yield model, [sample, *walk.copies([sample])], recorder


def test_a_block_of_8b_takes_less_than_two_gigabytes_and_a_third(block_of_8b):
    """The weights, what the block runs on, cosines."""
    model, samples, recorder = block_of_8b
    recipe = tamp.Recipe.preset("tamp", sparsity=0.5)
    for step in walk.walk(model, samples[:1], attention=True, change=True):
        collected = pruning.collect(step, recipe)
        for name, linear in step.linears.items():
            metric = criteria.wanda(linear.weight, collected.statistics[name].value())
            linear.weight.masked_fill_(masks.unstructured(metric, drop=metric.numel() // 2 + 77), 0)
        step.replay()
    assert 4 * 7 * 2900**2 + BLOCK < recorder.peak < 2.3e9, (recorder.peak, recorder.peak_where)


DOWN = 4 * 14336**2  # bytes of the largest Hessian


@pytest.mark.parametrize("method", ["sparsegpt", "wanda:update=least_squares"])
def test_a_block_of_8b_takes_no_more_with_hessians(method, block_of_8b, monkeypatch):
    """Beside the block: the sums of all inputs while it runs, then those of the widest and what is made of them."""
    monkeypatch.setattr(criteria, "_take_columns", lambda part, *_: torch.zeros_like(part))  # one kernel per column
    model, samples, recorder = block_of_8b
    recipe = tamp.Recipe.spelled(method, 0.5)
    for step in walk.walk(model, samples, change=True):
        collected = pruning.collect(step, recipe)
        assert DOWN < recorder.held - BLOCK < 1.5 * DOWN
        for name, linear in step.linears.items():
            statistic, hessian = collected.statistics.pop(name), collected.hessians.pop(name, None)
            if hessian is None:
                pruning.prune_linear(linear, statistic, linear.weight.numel() // 2, recipe)
                continue
            mask = torch.ones(linear.weight.shape, dtype=torch.bool, device="cuda")
            apply = updates.UPDATES[recipe.update].apply
            linear.weight.copy_(apply(linear.weight, lambda *_, mask=mask: mask, hessian, recipe.options))
        step.replay()
    assert BLOCK + 2 * DOWN < recorder.peak < 2.3e9, (recorder.peak, recorder.peak_where)
    transient = estimate.need(estimate.Sizes.of(model), recipe, [2900]).transient
    assert recorder.peak - BLOCK < transient < 1.5 * (recorder.peak - BLOCK)


@pytest.mark.parametrize("strip", [5, 16, 64])
def test_a_factor_in_place_is_that_of_the_inverse(strip, monkeypatch):
    """Against numpy: U upper triangular with U'U the inverse of the damped Hessian; dead inputs apart from the others."""
    monkeypatch.setattr(criteria, "STRIP", strip)
    monkeypatch.setattr(accumulators, "STRIP", strip)
    tokens = torch.randn(200, 48, generator=torch.Generator().manual_seed(0)) @ torch.randn(48, 48) / 7
    tokens[:, [3, 40]] = 0
    with pretend.device() as recorder:
        sums = criteria.Hessian(48, "cuda")
        sums.add(tokens.to("cuda"))
        recorder.reset()
        factor, dead = criteria.spreading(sums.value(), 0.01)
        assert recorder.n_waits() <= 4
    moments = tokens.double().numpy().T @ tokens.double().numpy() / 200
    np.testing.assert_allclose(sums.total.held / 200, moments, atol=1e-4)
    alive = np.delete(np.arange(48), [3, 40])
    expected = moments / moments.diagonal()[alive].mean()
    expected[[3, 40], [3, 40]] = 1
    expected += 0.01 * expected.diagonal().mean() * np.eye(48)
    found = factor.held.double().numpy()
    assert dead.held.nonzero().flatten().tolist() == [3, 40] and not np.tril(found, -1).any()
    np.testing.assert_allclose(found.T @ found @ expected, np.eye(48), atol=2e-3)


def test_a_hessian_that_has_no_factor_is_refused_on_a_device_too():
    with pretend.device():
        for bad, said in (
            (torch.tensor([[1.0, 2], [2, 1]]), "positive definite"),
            (torch.full((4, 4), torch.inf), "NaN or infinity"),
        ):
            with pytest.raises(ValueError, match=said):
                criteria.spreading(bad.to("cuda"), 0.01)


def test_matrices_with_one_input_share_one_factor(monkeypatch):
    """q, k and v; o; gate and up; down: four of seven, and none is left when the block is done."""
    made, factor = [], criteria.spreading

    def note(hessian, damping):
        made.append(tuple(hessian.shape))
        return factor(hessian, damping)

    monkeypatch.setattr(criteria, "spreading", note)
    pruned("llama", "sparsegpt")
    assert made == [(32, 32), (32, 32), (32, 32), (48, 48)] * 3


def test_rows_that_are_moved_apart_are_moved_as_together(monkeypatch):
    weight, chance = torch.randn(40, 24), torch.Generator().manual_seed(1)
    inputs = torch.randn(300, 24, generator=chance) @ torch.randn(24, 24, generator=chance)
    mask = torch.rand(40, 24, generator=chance) < 0.5
    found = []
    for entries in (updates.ENTRIES, 100):
        monkeypatch.setattr(updates, "ENTRIES", entries)
        with pretend.device():
            moved = [each.to("cuda") for each in (weight, mask, inputs.T @ inputs)]
            found.append(updates.least_squares(*moved).held)
    torch.testing.assert_close(*found)


def test_ecoflap_draws_its_directions_on_the_device_whatever_else_is_drawn():
    model, samples = tiny.build("llama")
    with pretend.device() as recorder:
        pretend.move(model, recorder)
        weights = {name: linear.weight for name, linear in next(iter(walk.walk(model, []))).linears.items()}
        recorder.reset()
        drawn = dict(zip(weights, scores.direction(weights, (0, 1))))
        backwards = dict(reversed(weights.items()))
        again = dict(zip(backwards, scores.direction(backwards, (0, 1))))
        other = dict(zip(weights, scores.direction(weights, (0, 2))))
        assert not recorder.n_waits()
    assert all(torch.equal(each.held, again[name].held) for name, each in drawn.items())
    assert not any(torch.equal(each.held, other[name].held) for name, each in drawn.items())
    assert not torch.equal(drawn["self_attn.k_proj"].held, drawn["self_attn.v_proj"].held)
