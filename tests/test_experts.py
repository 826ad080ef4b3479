"""Experts that go: what is left computes what the whole model does without them, and loads in plain transformers."""

import json

import families
import pytest
import torch
from barring import GROUPED, barred, build, gone, logits

import tamp
from tamp import cli, experts, models, shrinking, walk
from tamp.errors import UserError

QUICK = (
    "aria",  # experts stored transposed
    "ernie4_5_vl_moe",  # text and vision experts apart, corrections of shape (1, experts)
    "gemma4_moe",  # router and experts in the decoder layer itself, a scale per expert
    "glm4v_moe",  # sigmoid router with a correction in a buffer
    "gpt_oss",  # the best are chosen before the softmax, biases per expert
    "granitemoehybrid",
    "llama4",  # experts are given tokens that are already weighed
    "muse_spark",  # a norm behind every expert
    "nemotron_h_omni",  # experts without a gate
    "phimoe",  # a router that masks its own choice
    "qwen2_moe",  # softmax over all, not renormalized
    "qwen3_5_moe",
    "qwen3_omni_moe_thinker",
    "qwen3_vl_moe",
)
SLOW = (
    *("deepseek_ocr2", "dots3_note", "ernie4_5_moe", "glm4_moe", "glm5_next", "granitemoe", "jamba", "llama4_text"),
    *("minimax_m3_vl", "mistral_large4", "mixtral", "nemo_speechlm", "olmoe", "qwen3_moe", "qwen3_next", "qwen4_exp"),
    "unlimited_ocr",
)
REFUSED = {
    "dbrx": "code of its own",
    "inkling2": "away from its own forward pass",
    "inkling_mm_model": r"gate.weight of shape \(4, 32\), not \(5, 32\)",
    "jetmoe": "code of its own",
    "llama": "has no experts",
    "longcat_flash": "code of its own",
    "step3p7": "code of its own",
}
EVERY = pytest.mark.parametrize("family", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])


def drop(model, samples, keep=3, **changes):
    return experts.drop_experts(model, samples, keep, progress=False, **changes)


def check_whole(model, whole, samples, report, folder):
    """Compare a cut model with the whole one, and with what plain transformers reads of its folder."""
    before = [logits(whole, sample) for sample in samples]
    with barred(whole, gone(report)):
        expected = [logits(whole, sample) for sample in samples]
    for sample, right in zip(samples, expected):
        assert torch.isfinite(right).all()
        torch.testing.assert_close(logits(model, sample), right, rtol=1e-4, atol=1e-5)
    if any(report.lost().values()):
        assert max((one - right).norm() / right.norm() for one, right in zip(before, expected)) > 1e-3
    tamp.save(model, None, folder, report=report)
    again, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(logits(again.eval(), samples[0]), logits(model, samples[0]), rtol=1e-4, atol=1e-5)


@EVERY
def test_a_cut_model_is_the_whole_one_without_the_others(family, tmp_path):
    model, samples = build(family)
    whole, _ = build(family)
    size = sum(parameter.numel() for parameter in model.parameters())
    report = drop(model, samples)
    assert all(len(numbers) == 1 for numbers in gone(report).values())
    check_whole(model, whole, samples, report, tmp_path / "cut")
    lost = 0
    for name in gone(report):
        holder = whole.get_submodule(name.rpartition(".")[0])
        per_expert = [
            tensor.numel() // 4
            for part, tensor in holder.named_parameters()
            if part.split(".")[0] in ("experts", "gate", "router") and 4 in tensor.shape[:2]
        ]
        lost += sum(per_expert)
        assert len(model.get_submodule(name).down_proj) == 3
    assert report.weights == (size, size - lost)


@pytest.mark.parametrize("family", GROUPED)
def test_a_router_that_chooses_groups_first_keeps_as_many_of_each(family, tmp_path):
    model, samples = build(family)
    whole, _ = build(family)
    report = drop(model, samples, 0.55)
    assert report.keep == 4
    for name, numbers in gone(report).items():
        assert sum(number < 4 for number in numbers) == 2, name
    check_whole(model, whole, samples, report, tmp_path / "cut")
    with pytest.raises(UserError, match="chooses among 2 groups of experts: keep a multiple of 2, not 5"):
        drop(build(family)[0], samples, 5)
    with pytest.raises(UserError, match="does not run with 2 of 8 experts"):
        drop(build(family)[0], samples, 2)  # the two best of a group are asked for


def by_hand(model, samples, mass) -> dict[str, list[float]]:
    """Score experts token by token, each run alone by the model's own module: mean of the weight times the norm."""
    sums: dict[tuple[str, int], list[float]] = {}
    holders = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "down_proj") and hasattr(module, "gate_up_proj") and module.down_proj.ndim == 3
    }
    for sample in samples:
        calls = {}
        handles = [
            module.register_forward_hook(
                lambda module, args, output, name=name, calls=calls: calls.update({name: (args, output)})
            )
            for name, module in holders.items()
        ]
        logits(model, sample)
        for handle in handles:
            handle.remove()
        media = {getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video", "audio")}
        weights = mass([number not in media for number in sample["input_ids"][0].tolist()])
        for name, (args, output) in calls.items():
            if len(args) == 1:  # laid out by expert, weighed before
                inputs, left = (
                    part.view(len(holders[name].down_proj), -1, part.shape[-1]) for part in (args[0], output)
                )
                for expert, token in (inputs != 0).any(-1).nonzero().tolist():
                    sums.setdefault((name, expert), []).append(
                        (left[expert, token].double().norm().item(), weights[token])
                    )
                continue
            hidden, index, gates = args
            one = torch.ones(1, 1)
            for token, picks in enumerate(index.tolist()):
                for place, expert in enumerate(picks):
                    with torch.no_grad():
                        out = holders[name](hidden[token : token + 1], torch.tensor([[expert]]), one)
                    value = abs(gates[token, place].item()) * out.double().norm().item()
                    sums.setdefault((name, expert), []).append((value, weights[token]))
    means = {}
    for (name, expert), values in sums.items():
        total = sum(weight for _, weight in values)
        means[name, expert] = sum(value * weight for value, weight in values) / total if total else 0.0
    return means


def every(words):
    return [1.0] * len(words)


def text(words):
    return [float(word) for word in words]


def equal_shares(words):
    n, said = len(words), sum(words)
    if said in (0, n):
        return every(words)
    return [0.5 * n / said if word else 0.5 * n / (n - said) for word in words]


CHOICES = [
    *((family, "all", every) for family in ("qwen3_vl_moe", "gpt_oss", "aria", "glm4v_moe", "llama4", "muse_spark")),
    *(("qwen3_omni_moe_thinker", name, mass) for name, mass in (("text", text), ("balanced", equal_shares))),
]


@pytest.mark.parametrize(("family", "tokens", "mass"), CHOICES)
def test_a_score_is_the_mean_of_what_an_expert_adds_to_the_tokens_that_count(family, tokens, mass):
    model, samples = families.build(family)
    expected = by_hand(model, samples, mass)
    report = drop(model, samples, tokens=tokens)
    found = {(row["experts"], row["expert"]): row["score"] for row in report.rows}
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    assert not any(score for key, score in found.items() if key not in expected)
    for name, numbers in gone(report).items():
        scores = [found[name, expert] for expert in range(4)]
        assert numbers == [max(expert for expert, value in enumerate(scores) if value == min(scores))]
    routed = sum(row["visual"] + row["audio"] + row["text"] for row in report.rows)
    if family != "llama4":
        assert routed == 2 * len(gone(report)) * sum(sample["input_ids"].numel() for sample in samples)


@pytest.mark.parametrize("tokens", ["atv", "amia"])
def test_tokens_are_chosen_as_in_pruning(tokens):
    model, samples = families.build("qwen3_vl_moe")
    report = drop(model, samples, tokens=tokens)
    counts = report.table[["visual", "audio", "text"]].sum(axis=1)
    assert (report.table["counted"] <= counts).all() and report.table["counted"].sum() < 0.9 * counts.sum()
    assert report.table["counted"].sum() > 0 and report.summary()["tokens"]["tokens"] == tokens


def test_a_function_chooses_and_an_option_reaches_its_choice():
    model, samples = families.build("qwen3_vl_moe")
    own = drop(model, samples, tokens=lambda row: row.codes == models.TEXT).rows
    assert own == drop(families.build("qwen3_vl_moe")[0], samples, tokens="text").rows
    shares = drop(families.build("qwen3_vl_moe")[0], samples, tokens="balanced", text_share=1.0)
    assert [row["score"] for row in shares.rows] != [row["score"] for row in own]
    with pytest.raises(UserError, match="text_share has no effect with tokens='all'"):
        drop(families.build("qwen3_vl_moe")[0], samples, text_share=0.2)
    with pytest.raises(UserError, match="pattern does not say which experts go"):
        drop(families.build("qwen3_vl_moe")[0], samples, pattern="2:4")


def test_experts_that_no_chosen_token_reaches_are_scored_by_all_tokens():
    model, samples = families.build("ernie4_5_vl_moe")
    for sample in samples:  # the marks around media are text here: leave them to the text experts
        sample["moe_mm_token_type_ids"] = (models.modality(model, sample) != models.TEXT).int()
    report = drop(model, samples, tokens="text")
    visual = [row for row in report.rows if ".vision_moe." in row["experts"]]
    assert set(report.all_tokens) == {row["experts"] for row in visual}
    assert "which no chosen token reached" in str(report)
    assert all((row["score"] > 0) == (row["visual"] > 0) for row in visual)
    assert not any(row["visual"] for row in report.rows if ".text_moe." in row["experts"])


def test_the_order_of_samples_and_their_padding_do_not_matter():
    model, samples = families.build("qwen3_moe")
    rows = drop(model, samples).rows
    again = drop(families.build("qwen3_moe")[0], samples).rows
    back = drop(families.build("qwen3_moe")[0], samples[::-1]).rows
    longest = max(sample["input_ids"].shape[1] for sample in samples)
    padded = {
        name: torch.cat(
            [torch.nn.functional.pad(sample[name], (longest - sample[name].shape[1], 0)) for sample in samples]
        )
        for name in ("input_ids", "attention_mask")
    }
    batch = drop(families.build("qwen3_moe")[0], [padded]).rows
    assert again == rows
    for other in (back, batch):
        for one, two in zip(rows, other):
            assert one.pop("score") == pytest.approx(two.pop("score"), rel=1e-4) if "score" in one else True
            two.pop("score", None)
            assert one == two


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "gpt_oss", "glm4v_moe", "llama4"])
def test_half_precision_is_cut_too(family):
    model, samples = families.build(family, torch.bfloat16)
    report = drop(model, samples)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.isfinite(logits(model, samples[0])).all() and report.keep == 3


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_cut_right_is_refused_and_stays_as_it_was(family):
    model, samples = families.build(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    with pytest.raises(UserError, match=REFUSED[family]):
        drop(model, samples)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.to_dict() == config


def test_a_router_that_chooses_in_a_way_of_its_own_is_refused():
    model, samples = families.build("qwen3_moe")
    router = model.model.layers[1].mlp.gate
    forward = router.forward

    def rotated(hidden):
        scores, weights, index = forward(hidden)
        return scores, weights, (index + 1) % router.num_experts

    router.forward = rotated
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match="its router does not choose as tamp expects"):
        drop(model, samples)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.num_experts == router.num_experts == 4 and router.forward is rotated


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (4, "keep at least 2 and fewer than 4, not 4"),
        (1, "keep at least 2 and fewer than 4, not 1"),
        (0.1, "keep at least 2 and fewer than 4, not 0"),
        (1.5, "a share of them between 0 and 1, not 1.5"),
        (True, "not True"),
        ("half", "not 'half'"),
    ],
)
def test_a_number_that_does_not_fit_is_refused_before_the_work(keep, said, monkeypatch):
    model, samples = families.build("qwen3_moe")
    monkeypatch.setattr(walk, "capture", lambda *args: pytest.fail("the samples were run"))
    with pytest.raises(UserError, match=said):
        drop(model, samples, keep)
    with pytest.raises(UserError, match="needs calibration samples and got none"):
        drop(model, [])


def test_shares_are_rounded_and_equals_go_by_their_place():
    pool = shrinking.Pool("mlp", "mlp.experts", 0, 5)
    assert [experts.how_many(share, [pool]) for share in (0.5, 0.29, 0.7, 3)] == [3, 1, 4, 3]
    assert experts.best(torch.tensor([1.0, 2.0, 2.0, 2.0]), 2).tolist() == [1, 2]
    assert experts.best(torch.tensor([4.0, 3.0, 2.0, 9.0, 1.0, 1.0]), 4, groups=2).tolist() == [0, 1, 3, 4]


def test_the_report_says_what_went_and_whose_tokens_it_served():
    model, samples = families.build("qwen3_vl_moe")
    report = drop(model, samples)
    table = report.table
    for name in ("visual", "text"):
        assert report.lost()[name] == table.loc[~table["kept"], name].sum() / table[name].sum()
    assert "audio" not in report.lost()
    for _, layer in table.groupby("experts"):
        usual = layer["visual"].sum() / (layer["visual"] + layer["text"]).sum()
        leaning = layer["visual"] / (layer["visual"] + layer["text"]) > usual
        assert (layer["leaning"] == leaning.map({True: "visual", False: "text"})).all()
    said = str(report)
    assert said.startswith("3 of 4 experts per layer stay (tokens: all); ")
    assert f"routed tokens whose expert is gone: visual {report.lost()['visual']:.1%}" in said
    assert json.loads(json.dumps(report.summary()))["experts"] == {"before": 4, "now": 3}


def test_the_command_saves_and_the_folder_is_verified(tmp_path, monkeypatch, capsys):
    model, samples = families.build("qwen3_vl_moe")
    expected = drop(families.build("qwen3_vl_moe")[0], samples, 0.75, tokens="balanced", text_share=0.7)
    monkeypatch.setattr(tamp, "load", lambda *args: (model, None), raising=False)
    monkeypatch.setattr(tamp, "calibration_set", lambda *args, **chosen: samples, raising=False)
    out = tmp_path / "cut"
    asked = ["drop-experts", "any", "--calibration", "some.jsonl", "--out", str(out)]
    assert cli.main([*asked, "--keep", "0.75", "--tokens", "balanced", "--text-share", "0.7"]) == 0
    assert "3 of 4 experts per layer stay (tokens: balanced)" in capsys.readouterr().out
    assert json.loads((out / "tamp.json").read_text())["report"]["kept"] == expected.summary()["kept"]
    assert json.loads((out / "config.json").read_text())["text_config"]["num_local_experts"] == 3
    assert cli.main(["verify", str(out)]) == 0
    assert "3 of 4 experts per layer" in capsys.readouterr().out
    assert cli.main([*asked, "--keep", "0.75"]) == 2 and "exists" in capsys.readouterr().err
    assert cli.main([*asked[:-1], str(tmp_path / "other"), "--keep", "most"]) == 2
    assert "--keep 'most' is not a number" in capsys.readouterr().err


def test_what_a_walk_says_of_gates_is_what_the_router_gave():
    model, samples = families.build("mixtral")
    given = {}
    for position, layer in enumerate(model.model.layers):
        layer.mlp.experts.register_forward_hook(lambda module, args, output, at=position: given.update({at: args}))
    for step in walk.walk(model, walk.capture(model, samples[:1], progress=False)):
        for row in step:
            _, index, weights = given[step.position]
            for name, gates in row.gates.items():
                hit = index == int(name.partition("[")[2][:-1])
                assert torch.equal(row.places[name], hit.any(1).nonzero().flatten())
                assert torch.equal(gates, weights[hit])
