"""What the methods do on a GPU, on a pretended one: no mix of devices, the CPU's masks, and few waits, kernels and bytes."""

import pretend
import pytest
import tiny
import torch
import transformers

import tamp
from tamp import criteria, masks, planning, pruning, scores, selection, walk
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


def test_a_block_of_8b_takes_less_than_two_gigabytes_and_a_third():
    """One block of Llama 3 8B and one sample of 2,900 tokens, shapes alone: the weights, what the block runs on, cosines."""
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
    recipe = tamp.Recipe.preset("tamp", sparsity=0.5)
    with pretend.device(numbers=False) as recorder:
        pretend.move(model, recorder)
        assert BLOCK < recorder.held < 1.01 * BLOCK
        state = torch.empty(1, 2900, 4096, dtype=torch.bfloat16, device="cuda")
        angles = [torch.empty(1, 2900, 128, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
        calls = [((), {"position_embeddings": tuple(angles), "attention_mask": None})]
        modality = recorder.wrap(torch.tensor([[2] * 4 + [0] * 2880 + [2] * 16], dtype=torch.int8))
        sample = Captured(state, calls, modality, {})
        recorder.reset()
        for step in walk.walk(model, [sample], attention=True, change=True):
            collected = pruning.collect(step, recipe)
            for name, linear in step.linears.items():
                metric = criteria.wanda(linear.weight, collected.statistics[name].value())
                linear.weight.masked_fill_(masks.unstructured(metric, drop=metric.numel() // 2 + 77), 0)
            step.replay()
    assert 4 * 7 * 2900**2 + BLOCK < recorder.peak < 2.3e9, (recorder.peak, recorder.peak_where)


def test_ecoflap_draws_its_directions_on_the_device():
    model, samples = tiny.build("llama")
    with pretend.device() as recorder:
        pretend.move(model, recorder)
        weights = [linear.weight for linear in next(iter(walk.walk(model, []))).linears.values()]
        recorder.reset()
        twice = [list(scores.direction(weights, (0, 1))) for _ in range(2)]
        assert not recorder.n_waits()
    assert all(torch.equal(one.held, other.held) for one, other in zip(*twice))
