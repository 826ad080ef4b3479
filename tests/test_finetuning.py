"""Fine-tuning that keeps zeros: gradients against plain autograd, memory, every way of training, merging and saving."""

import copy
import json

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn

import tamp
from tamp import finetuning, models
from tamp.errors import UserError
from tamp.finetuning import KeepZeros, MaskedLora, masked_lora, merge_lora


def pruned(family="llama", dtype=torch.float32, **recipe):
    model, samples = tiny.build(family, dtype=dtype)
    report = tamp.prune(model, samples, tamp.Recipe(**{"sparsity": 0.6, **recipe}), progress=False)
    return model, samples, report


def zeros(model):
    return {name: matrix.weight == 0 for name, matrix in models.all_linears(model).items()}


def same_zeros(model, before) -> bool:
    after = zeros(model)
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def train(model, samples, factors, steps=3, rate=0.05):
    optimizer = torch.optim.AdamW(factors, lr=rate, weight_decay=0.1)
    losses = []
    for step in range(steps):
        sample = samples[step % len(samples)]
        loss = model(**sample, labels=sample["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def layer(rows=5, columns=7, rank=3, dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    linear = nn.Linear(columns, rows, bias=bias, dtype=dtype)
    linear.weight.data[torch.rand(rows, columns) < 0.6] = 0
    module = MaskedLora(linear, rank, alpha=6.0)
    module.up.data.normal_()
    return module


def by_hand(module, inputs):
    """The formula, with autograd's own derivative."""
    weight, scale = module.base_layer.weight, 6.0 / module.down.shape[0]
    kept = (weight.detach() != 0).to(weight.dtype)
    total = weight + scale * torch.einsum("or,ri->oi", module.up, module.down) * kept
    return torch.einsum("...i,oi->...o", inputs, total) + module.base_layer.bias


def test_forward_and_gradients_are_those_of_the_formula():
    module = layer()
    inputs = torch.randn(2, 4, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 4, 5, dtype=torch.float64)
    assert module.down.dtype == torch.float64
    outcomes = []
    for call in (module, lambda x: by_hand(module, x)):
        outputs = call(inputs)
        found = torch.autograd.grad((outputs * weights).sum(), [inputs, module.down, module.up])
        outcomes.append([outputs.detach(), *found])
    for ours, plain in zip(*outcomes):
        assert torch.allclose(ours, plain, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    module = layer()
    inputs = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)

    def call(x, down, up):
        return finetuning._Product.apply(x, module.weight, down, up, module.scale)

    assert torch.autograd.gradcheck(call, (inputs, module.down, module.up))


def saved_shapes(call) -> list[torch.Size]:
    """List the shapes of what autograd keeps for the backward pass, frozen parameters aside."""
    kept = []

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter):
            kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return kept


def test_nothing_of_the_size_of_the_weight_is_kept_for_the_backward_pass():
    module, inputs = layer(), torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.Size([5, 7]) in saved_shapes(lambda: by_hand(module, inputs))  # what the test can see
    assert torch.Size([5, 7]) not in saved_shapes(lambda: module(inputs))
    assert {parameter.shape for parameter in module.parameters() if parameter.requires_grad} == {(3, 7), (5, 3)}


def test_half_precision_trains_float32_factors_and_computes_what_the_merged_model_does():
    module = layer(dtype=torch.bfloat16)
    assert module.down.dtype == module.up.dtype == torch.float32
    inputs = torch.randn(4, 7, dtype=torch.bfloat16)
    outputs = module(inputs)
    outputs.sum().backward()
    assert outputs.dtype == torch.bfloat16 and module.up.grad.dtype == torch.float32
    total = finetuning.effective(module.weight, module.down, module.up, module.scale)
    assert torch.equal(outputs, inputs @ total.T + module.base_layer.bias)


def test_autocast_computes_in_its_type():
    module = layer(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = module(torch.randn(4, 7))
    outputs.sum().backward()
    assert outputs.dtype == torch.bfloat16 and module.up.grad.dtype == torch.float32 and module.up.grad.any()


@pytest.mark.parametrize("family", ["llama", "llava_next", "qwen2_5_vl"])
def test_a_wrapped_model_starts_as_the_pruned_one_learns_and_merges_with_its_zeros(family):
    model, samples, report = pruned(family)
    before, weights = zeros(model), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        dense = model(**samples[0]).logits
    factors = masked_lora(model, rank=4)
    assert factors and all(parameter.requires_grad for parameter in factors)
    assert sum(parameter.requires_grad for parameter in model.parameters()) == len(factors)
    with torch.no_grad():
        assert torch.allclose(model(**samples[0]).logits, dense, atol=1e-5)
    losses = train(model, samples[:1], factors, steps=4)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        trained = model(**samples[0]).logits
    assert merge_lora(model) == pytest.approx(report.sparsity)
    assert same_zeros(model, before) and model.state_dict().keys() == weights.keys()
    with torch.no_grad():
        assert torch.allclose(model(**samples[0]).logits, trained, atol=1e-5)
    linears = models.all_linears(model)
    for name, was in weights.items():
        kept = torch.equal(model.state_dict()[name], was)
        assert kept != (name.removesuffix(".weight") in linears), name


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_give_the_same_gradients(reentrant):
    gradients = []
    for checkpointed in (False, True):
        model, samples, _ = pruned()
        torch.manual_seed(1)
        factors = masked_lora(model, rank=2)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.train()
        model(**samples[0], labels=samples[0]["input_ids"]).loss.backward()
        gradients.append([factor.grad for factor in factors])
    for plain, again in zip(*gradients):
        assert torch.allclose(plain, again, atol=1e-6)


def test_training_a_model_in_bfloat16_keeps_its_zeros():
    model, samples, _ = pruned(dtype=torch.bfloat16)
    before = zeros(model)
    train(model, samples, masked_lora(model, rank=2))
    merge_lora(model)
    assert same_zeros(model, before) and model.dtype == torch.bfloat16


def test_named_linears_alone_are_trained():
    model, _, _ = pruned()
    factors = masked_lora(model, rank=2, targets=("q_proj", "mlp.up_proj"))
    wrapped = [name for name, module in model.named_modules() if isinstance(module, MaskedLora)]
    assert len(factors) == 2 * len(wrapped)
    assert {name.rpartition(".")[2] for name in wrapped} == {"q_proj", "up_proj"}


def test_what_was_merged_is_saved_with_a_true_manifest(tmp_path):
    model, samples, report = pruned()
    before = zeros(model)
    factors = masked_lora(model, rank=2)
    with pytest.raises(UserError, match="merge_lora"):
        tamp.save(model, None, tmp_path / "early", report=report)
    train(model, samples, factors)
    merge_lora(model)
    folder = tamp.save(model, None, tmp_path / "tuned", report=report)
    stored = load_file(folder / "model.safetensors")
    counted = sum(int((stored[f"{name}.weight"] == 0).sum()) for name in before)
    recorded = json.loads((folder / "tamp.json").read_text())["report"]
    assert counted == round(recorded["sparsity"] * recorded["weights"])
    tamp.verify(folder)


def test_experts_are_left_alone_with_a_sentence(caplog):
    from families.text_only import mixtral

    model, samples = mixtral()
    tamp.prune(model, samples, tamp.Recipe(allocation="uniform"), progress=False)
    masked_lora(model, rank=2)
    assert "experts in one tensor" in caplog.text


class Beside(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.base_layer, self.lora_A = linear, nn.Linear(linear.in_features, 2)


def test_what_cannot_be_trained_is_refused_before_anything_changes():
    model, _ = tiny.build("llama")
    for call in (masked_lora, KeepZeros):
        with pytest.raises(UserError, match="not pruned"):
            call(model)
    model, _, _ = pruned()
    names = list(model.state_dict())
    with pytest.raises(UserError, match="no linear 'q_prj'. Did you mean 'q_proj'"):
        masked_lora(model, targets=["q_prj"])
    with pytest.raises(UserError, match="rank"):
        masked_lora(model, rank=0)
    with pytest.raises(UserError, match="no masked LoRA to merge"):
        merge_lora(model)
    assert list(model.state_dict()) == names
    masked_lora(model)
    with pytest.raises(UserError, match="already"):
        masked_lora(model)
    model, _, _ = pruned()
    attention = model.model.layers[0].self_attn
    attention.q_proj = Beside(attention.q_proj)
    with pytest.raises(UserError, match="PEFT adapter"):
        masked_lora(model)


def test_a_diverged_update_is_not_merged():
    model, _, _ = pruned()
    factors, weights = masked_lora(model, rank=2), zeros(model)
    factors[0].data[0, 0] = float("nan")
    factors[3].data.fill_(1.0)
    with pytest.raises(UserError, match="lower learning rate"):
        merge_lora(model)
    assert any(isinstance(module, MaskedLora) for module in model.modules())
    assert weights.keys() == zeros(model).keys()


@pytest.mark.parametrize("family", ["llama", "llava_next"])
def test_zeros_are_put_back_after_every_step_of_a_loop(family):
    model, samples, report = pruned(family)
    before, keep = zeros(model), KeepZeros(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(**samples[0], labels=samples[0]["input_ids"]).loss.backward()
    optimizer.step()
    assert keep.sparsity < 0.1
    keep.step()
    assert same_zeros(model, before) and keep.sparsity == pytest.approx(report.sparsity)


def test_masks_are_kept_in_a_bit_per_weight():
    model, _, report = pruned()
    stored = KeepZeros(model).masks
    assert sum(mask.nbytes for mask in stored.values()) <= sum(report.plan.sizes) / 8 + len(stored)


def test_zeros_are_put_back_after_an_adapter_without_a_mask_was_merged():
    model, _, _ = pruned()
    before, keep, attention = zeros(model), KeepZeros(model), model.model.layers[0].self_attn
    attention.q_proj = Beside(attention.q_proj)
    attention.q_proj.base_layer.weight.data += 0.1  # as merging does
    attention.q_proj = attention.q_proj.base_layer
    assert not same_zeros(model, before)
    keep.step()
    assert same_zeros(model, before)


@pytest.mark.parametrize("shape", [(1, 8), (3, 5), (2, 17)])
def test_a_mask_survives_packing(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(finetuning._unpacked(finetuning._packed(mask), mask.shape), mask)


@pytest.mark.parametrize("way", ["whole", "masked_lora"])
def test_the_trainer_of_transformers_keeps_zeros(way, tmp_path):
    pytest.importorskip("accelerate")
    import transformers

    model, samples, report = pruned()
    before, state = zeros(model), copy.deepcopy(model.state_dict())
    lora = way == "masked_lora"
    callbacks = [] if lora else [KeepZeros(model)]
    if lora:
        masked_lora(model, rank=2)
    rows = [{"input_ids": sample["input_ids"][0, :8], "labels": sample["input_ids"][0, :8]} for sample in samples]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "trained"),
        max_steps=3,
        learning_rate=0.01,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        save_strategy="steps",
        save_steps=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=callbacks).train()
    if lora:
        merge_lora(model)
    else:
        written = load_file(tmp_path / "trained" / "checkpoint-2" / "model.safetensors")
        assert all(torch.equal(written[f"{name}.weight"] == 0, mask) for name, mask in before.items())
    assert same_zeros(model, before)
    assert finetuning.sparsity(model) == pytest.approx(report.sparsity)
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, state[name])]
    assert len(moved) >= len(before)
