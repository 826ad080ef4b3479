"""Which weights are pruned: experts too; adapters, routers and what nobody calls not; what cannot be written is named."""

import families
import pytest
import tiny
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import tamp
from tamp import criteria, matrices, models, plans, walk
from tamp.errors import UserError
from tamp.recipe import Recipe


def pruned(model, samples, preset="wanda", **changes):
    return tamp.prune(model, samples, Recipe.preset(preset, **changes), progress=False)


def second(model) -> nn.Linear:
    return model.model.layers[1].mlp.up_proj


def share(model):
    model.model.layers[2].mlp.up_proj.weight = second(model).weight


def tie_to_the_head(model):
    config = transformers.LlamaConfig(**{**tiny.TEXT, "intermediate_size": 128})
    model.__dict__ = transformers.LlamaForCausalLM(config).eval().__dict__
    model.lm_head.weight = second(model).weight


class Packed(torch.Tensor):
    """A weight that is not what it looks like, as quantizing libraries keep them."""


SPOILED = {
    "weight norm": (lambda m: parametrizations.weight_norm(second(m)), "computed from other tensors"),
    "torch's own pruning": (
        lambda m: torch_prune.l1_unstructured(second(m), "weight", 0.3),
        "computed from other tensors",
    ),
    "shared by two blocks": (share, "are one weight"),
    "shared with the head": (tie_to_the_head, "are one weight"),
    "float8": (lambda m: second(m).to(torch.float8_e4m3fn), "prune before quantizing"),
    "whole numbers": (
        lambda m: setattr(second(m), "weight", nn.Parameter(torch.ones(48, 32, dtype=torch.int8), requires_grad=False)),
        "prune before quantizing",
    ),
    "packed": (
        lambda m: setattr(second(m), "weight", nn.Parameter(torch.randn(48, 32).as_subclass(Packed))),
        "Packed: prune before quantizing",
    ),
    "not in memory": (lambda m: second(m).to("meta"), "meta device"),
}


@pytest.mark.parametrize("fault", SPOILED)
@pytest.mark.parametrize("preset", ["magnitude", "tamp"])
def test_a_weight_that_cannot_be_written_is_named_before_any_is(fault, preset):
    model, samples = tiny.build("llama")
    spoil, message = SPOILED[fault]
    spoil(model)
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    with pytest.raises(UserError, match=message) as error:
        pruned(model, samples, preset)
    assert "layers.1.mlp.up_proj" in str(error.value)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, before)


def test_pruning_goes_on_once_a_computed_weight_is_made_permanent():
    model, samples = tiny.build("llama")
    torch_prune.l1_unstructured(second(model), "weight", 0.3)
    torch_prune.remove(second(model), "weight")
    assert pruned(model, samples).sparsity == pytest.approx(0.5, abs=1e-4)


class Adapted(nn.Module):
    """A linear with a low-rank side, as PEFT wraps it."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 8, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(8, base.out_features, bias=False)})

    def forward(self, tokens):
        return self.base_layer(tokens) + self.lora_B["default"](self.lora_A["default"](tokens))


def test_what_adapts_a_layer_from_beside_stays_dense():
    model, samples = tiny.build("llama")
    for block in model.model.layers:
        block.mlp.up_proj = Adapted(block.mlp.up_proj)
    report = pruned(model.eval(), samples, "tamp")
    assert report.sparsity == pytest.approx(0.5, abs=1e-4)
    assert "model.layers.1.mlp.up_proj.base_layer" in report.plan.linears
    assert {reason for _, reason in report.left_out.values()} == {"adapter"}
    assert all((side.weight != 0).all() for name, side in model.named_modules() if name.endswith("default"))


def test_a_matrix_that_is_never_called_is_out_of_the_plan_and_said():
    model, samples = tiny.build("llama")
    model.model.layers[0].spare = nn.Linear(32, 32)
    report = pruned(model, samples, "tamp")
    assert report.left_out == {"model.layers.0.spare": (1024, "never called")}
    assert (model.model.layers[0].spare.weight != 0).all() and report.sparsity == pytest.approx(0.5, abs=1e-4)


def test_a_block_that_no_sample_reaches_is_named():
    model, samples = families.build("mllama")
    words = [sample for sample in samples if "pixel_values" not in sample]
    for preset in ("wanda", "tamp"):
        with pytest.raises(UserError, match="No calibration sample reaches block .* give samples with pictures"):
            pruned(model, words, preset)


@pytest.mark.parametrize(
    "preset", ["wanda", "tamp", "text", "atv", "sparsegpt", "owl", "alphapruning", "ecoflap", "magnitude"]
)
@pytest.mark.parametrize("family", ["qwen3_omni_moe_thinker", "llama4"])
def test_experts_are_pruned_exactly_by_every_method(family, preset):
    for changes in ({"sparsity": 0.4}, {"pattern": "2:4"}):
        model, samples = families.build(family)
        report = pruned(model, samples, preset, **changes)
        target = changes.get("sparsity", 0.5)
        assert report.sparsity == pytest.approx(target, abs=2e-3)
        experts = [row for row in report.rows if "[" in row["linear"]]
        assert experts and all(row["got"] == pytest.approx(row["asked"], abs=1e-9) for row in experts)
        if "pattern" in changes and preset not in ("tamp", "owl", "alphapruning", "ecoflap"):
            for name, matrix in models.all_linears(model).items():
                groups = (matrix.weight == 0).unflatten(1, (-1, 4)).sum(-1)
                assert (groups == 2).all(), name


def test_das_scores_experts_on_their_own_outputs_and_the_plan_names_them(tmp_path):
    model, samples = families.build("qwen3_vl_moe")
    plan = tamp.plan(model, samples, Recipe(sparsity=0.5), progress=False)
    names = [name for name in plan.linears if "layers.1.mlp.experts.gate_up_proj" in name]
    assert [name.rpartition("[")[2] for name in names] == ["0]", "1]", "2]", "3]"]
    scores = dict(zip(plan.linears, plan.scores))
    assert len({scores[name] for name in names}) == 4
    read = plans.Plan.read(plan.write(tmp_path / "plan.json"))
    report = tamp.prune(model, samples, Recipe(sparsity=0.5), progress=False, plan=read)
    assert report.plan == read and report.sparsity == pytest.approx(0.5, abs=2e-3)


def test_experts_that_few_tokens_reached_use_the_statistic_of_all_and_are_listed(monkeypatch):
    model, samples = families.build("qwen3_moe")
    report = pruned(model, samples)
    few = {
        f"model.layers.{r['block']}.{r['linear']}"
        for r in report.rows
        if r["kept"] * 3 < criteria.FEW and "[" in r["linear"]
    }
    assert set(report.pooled) == few and few
    assert f"{len(few)} with too few use the statistic of all experts" in str(report)
    assert "tokens that counted for each: least" in str(report) and report.summary()["pooled"] == list(report.pooled)
    statistics = {f"tensor[{n}]": criteria.MeanSquare(2) for n in range(3)}
    statistics["tensor[0]"].add(torch.ones(40, 2))
    statistics["tensor[1]"].add(3 * torch.ones(10, 2))
    assert criteria.pool(statistics) == ["tensor[1]", "tensor[2]"]
    assert statistics["tensor[0]"].value().tolist() == [1, 1]
    assert statistics["tensor[2]"].value().tolist() == pytest.approx([(40 + 90) / 50] * 2)


def test_amia_chooses_among_the_tokens_routed_to_an_expert():
    model, samples = families.build("qwen3_moe")
    kept = {}
    for preset in ("wanda", "amia"):
        report = pruned(families.build("qwen3_moe")[0], samples, preset)
        kept[preset] = [row["kept"] for row in report.rows if "[" in row["linear"]]
    assert all(few <= every for few, every in zip(kept["amia"], kept["wanda"]))
    assert sum(kept["amia"]) < 0.9 * sum(kept["wanda"])
    router_sees = sum(sample["input_ids"].shape[1] for sample in samples) / len(samples)
    per_block = sum(kept["wanda"]) / len(kept["wanda"]) * 4  # four experts, each token goes to two
    assert per_block == pytest.approx(2 * router_sees)


def test_a_block_without_readable_attention_counts_all_tokens_and_says_so():
    model, samples = families.build("lfm2_vl")
    report = pruned(model, samples, "tamp")
    assert 0 < report.unread < len(models.blocks(model))
    assert f"all tokens counted in {report.unread} blocks whose attention cannot be read" in str(report)
    assert "cannot be read" not in str(pruned(families.build("lfm2_vl")[0], samples))


def test_gates_and_routers_stay_dense():
    model, samples = families.build("qwen2_moe")
    report = pruned(model, samples)
    assert {reason for _, reason in report.left_out.values()} == {"router"}
    assert matrices.by_rule("mlp.gate", (4, 32)) == matrices.by_rule("mlp.router.proj", (4, 32)) == "router"
    assert matrices.by_rule("mlp.shared_gate", (1, 32)) == "narrow"
    assert matrices.by_rule("mlp.gate", (48, 32)) is None and matrices.by_rule("mlp.gate_proj", (16, 32)) is None


def omni():
    thinker, samples = tiny.FAMILIES["qwen2_5_omni"]()
    config = transformers.Qwen2_5OmniConfig(thinker_config=thinker.config.to_dict(), enable_audio_output=False)
    torch.manual_seed(0)
    whole = transformers.Qwen2_5OmniForConditionalGeneration(config)
    whole.thinker.load_state_dict(thinker.state_dict())
    return thinker.eval(), whole.eval(), samples


def test_a_whole_omni_model_is_pruned_like_its_thinker():
    thinker, whole, samples = omni()
    reports = [pruned(model, samples, "tamp") for model in (thinker, whole)]
    assert [f"thinker.{name}" for name in reports[0].plan.linears] == list(reports[1].plan.linears)
    assert reports[0].plan.drops == reports[1].plan.drops
    for one, other in zip(thinker.parameters(), whole.thinker.parameters()):
        assert torch.equal(one, other)


def test_tokens_that_experts_get_in_parts_are_found_in_the_sequence():
    """The same row among others may differ in the last bits of a product, by which rows are looked up."""
    model, samples = families.build("ernie4_5_vl_moe")
    for step in walk.walk(model, walk.capture(model, samples, progress=False)):
        for row in step:
            assert all((places >= 0).all() for places in row.places.values())
