"""The training of the model with experts, and the measurement of what it can lose, scaled down."""

import numpy as np
import pandas as pd
import pytest
import torch
import trained_experts
from training import experts
from training.answering import answer_logits
from training.running import export


def test_unevenness_is_one_where_all_experts_are_used_alike_and_grows_with_favourites():
    even = torch.eye(8) + torch.eye(8).roll(1, 1)  # every token has two favourites, every expert two tokens
    assert experts.unevenness(even).item() == pytest.approx(1)
    logits = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    logits[:, 3] += 2
    chances = [[value / sum(row) for value in row] for row in logits.exp().tolist()]
    share = [0.0] * 8
    for row in chances:
        for expert in sorted(range(8), key=lambda expert: -row[expert])[:2]:
            share[expert] += 1 / 2 / len(chances)
    mean = [sum(row[expert] for row in chances) / len(chances) for expert in range(8)]
    by_hand = 8 * sum(a * b for a, b in zip(share, mean))
    assert experts.unevenness(logits).item() == pytest.approx(by_hand, rel=1e-5) and by_hand > 1.2


@pytest.fixture(scope="module")
def trainer():
    made = experts.ExpertsTrainer(experts.ExpertsRecipe(), 0)
    made.stage = made.STAGES.index("language")
    made._begin_stage()
    return made


def test_the_model_is_the_small_one_with_experts(trainer):
    config = trainer.model.config.text_config
    assert (config.num_local_experts, config.num_experts_per_tok, config.intermediate_size) == (8, 2, 128)
    assert (config.num_hidden_layers, config.hidden_size) == (8, 192)


def test_routers_are_seen_by_their_tokens_and_what_evens_them_out_reaches_them(trainer):
    batch = trainer._batches(np.random.default_rng(0), 0.0)[0]
    logits = answer_logits(trainer.worker, batch)
    assert torch.equal(trainer._answer_logits(batch), logits) and len(trainer._routed) == 8
    beside = trainer._beside(batch)
    assert beside.item() > trainer.recipe.evenness
    gate = trainer.worker.model.language_model.layers[0].mlp.gate.weight
    (gradient,) = torch.autograd.grad(beside, gate)
    assert gradient.abs().max() > 0
    padding = (batch.exchange < 0).flatten()
    assert padding.any()
    for seen in trainer._routed:
        seen.data[padding] = torch.inf  # no token of a lesson
    assert trainer._beside(batch).item() == pytest.approx(beside.item())


def test_trained_experts_are_dropped_by_every_kind_of_score(trainer, tmp_path):
    export(trainer, tmp_path / "model", final=10)
    small = ["--model", str(tmp_path / "model"), "--n-questions", "10", "--n-samples", "2", "--kept", "4"]
    small += ["--calibration-seeds", "0", "--methods", "all", "words", "count", "random", "--out", str(tmp_path)]
    result = trained_experts.main(small)
    rows = pd.DataFrame(result["routed"])
    assert len(rows) == 64 and rows.groupby("block")["visual"].sum().nunique() == 1  # two choices for every token
    kept = {cell["method"]: cell["kept"] for cell in result["cells"]}
    assert kept.pop("dense") is None and len({str(each) for each in kept.values()}) == 4
    for block, layer in (rows["visual"] + rows["text"]).groupby(rows["block"]):
        most = sorted(sorted(range(8), key=lambda expert: (-layer.iloc[expert], expert))[:4])
        assert kept["count"][block] == most
    assert "| REAP, `all`, questions without pictures |" in trained_experts.table(result)
    assert trained_experts.main(small) == result
