"""VideoLLaMA 2 with sound: the released code's numbers, every kind of input, generation, saving and pruning."""

import copy

import oracles
import pytest
import tiny_videollama2 as tiny
import torch
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, RepetitionPenaltyLogitsProcessor

import tamp
from tamp import models
from tamp.errors import UserError
from tamp.videollama2 import BeatsConfig, BeatsModel, VideoLlama2Config, VideoLlama2ForConditionalGeneration
from tamp.videollama2.beats import BeatsPositionalConv, position_buckets

KINDS = {
    "av": tiny.av,
    "video": tiny.video_only,
    "audio": tiny.audio_only,
    "picture": tiny.picture,
    "text": tiny.text_only,
}
EVERY = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def model():
    return tiny.build()


@pytest.fixture(scope="module")
def golden():
    return oracles.golden("videollama2")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest deviation relative to the largest number."""
    assert found.shape == expected.shape
    return ((found.float() - expected).abs().max() / expected.abs().max()).item()


def pad(samples: list[dict], side: str = "right") -> dict:
    """Make one batch of several samples, with their media in order."""
    length = max(one["input_ids"].shape[1] for one in samples)
    batch = {}
    for key in ("input_ids", "attention_mask"):
        rows = [one[key][0] for one in samples]
        fill = [torch.zeros(length - len(row), dtype=row.dtype) for row in rows]
        batch[key] = torch.stack([torch.cat((r, f) if side == "right" else (f, r)) for r, f in zip(rows, fill)])
    for key in {key for one in samples for key in one} - batch.keys():
        batch[key] = torch.cat([one[key] for one in samples if key in one])
    return batch


def ragged() -> dict:
    other = tiny.sample([5] + [tiny.VIDEO] * tiny.VIDEO_TOKENS + [12], pixel_values_videos=tiny.pixels("video2"))
    return pad([tiny.av(), other])


def test_towers_give_the_released_numbers(model, golden):
    sample, expected = tiny.av(), golden["av"]
    beats = model.model.audio_tower(sample["input_features"]).last_hidden_state
    patches = model.model._patches(sample["pixel_values_videos"][0])[None]
    assert off(beats, expected["beats"]) < 5e-6
    assert off(model.model.get_audio_features(sample["input_features"]), expected["aproj"]) < 5e-6
    assert off(patches, expected["stc_in"]) < 5e-6
    assert off(model.model.vision_projector(patches), expected["stc_out"]) < 5e-6


@pytest.mark.parametrize("kind", ["av", "video", "audio"])
def test_logits_and_masks_are_the_released_ones(model, golden, kind):
    sample, expected = KINDS[kind](), golden[kind]
    assert off(model(**sample).logits, expected["logits"]) < 2e-5
    codes = models.modality(model, sample)
    assert torch.equal(codes == models.VISUAL, expected["video_mask"])
    assert torch.equal(codes == models.AUDIO, expected["audio_mask"])


def test_a_ragged_batch_gives_the_released_numbers(model, golden):
    batch, expected = ragged(), golden["ragged"]
    valid = batch["attention_mask"].bool()
    media = (batch["input_ids"] == tiny.VIDEO) | (batch["input_ids"] == tiny.AUDIO)
    made = model(**batch, labels=batch["input_ids"].masked_fill(media | ~valid, -100))
    assert off(made.logits[valid], expected["logits"][valid]) < 2e-5
    assert made.loss.item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    codes = models.modality(model, batch)
    assert torch.equal(codes == models.VISUAL, expected["video_mask"])
    assert torch.equal(codes == models.AUDIO, expected["audio_mask"])
    assert torch.equal(codes == models.PADDING, ~valid)


def test_the_loss_is_the_released_one(model, golden):
    sample = tiny.av()
    labels = sample["input_ids"].clone()
    labels[:, : 3 + tiny.VIDEO_TOKENS + tiny.AUDIO_TOKENS + 1] = -100
    assert model(**sample, labels=labels).loss.item() == pytest.approx(golden["av"]["loss"].item(), rel=1e-5)


def test_greedy_generation_gives_the_released_ids(model, golden):
    sample = tiny.av()
    made = model.generate(**sample, max_new_tokens=8)
    assert torch.equal(made[:, sample["input_ids"].shape[1] :], golden["generate"]["ids"])


def test_the_filter_bank_is_centred_and_scaled(model):
    seen = []
    hook = model.model.audio_tower.patch_embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.model.audio_tower(tiny.bank())
    hook.remove()
    torch.testing.assert_close(seen[0][:, 0], (tiny.bank() - 15.41663) / 13.11164)


def test_the_positional_convolution_cannot_divide_by_zero():
    conv = BeatsPositionalConv(BeatsConfig(hidden_size=8, conv_pos_kernel=4, conv_pos_groups=2))
    for parameter in conv.parameters():
        torch.nn.init.ones_(parameter)
    conv.direction[..., 0] = 0
    conv.direction[..., 1] = 1e-4
    weight = conv.weight()
    assert (weight[..., 0] == 0).all()
    torch.testing.assert_close(weight[..., 1], torch.full((8, 4), 1e-4 / (32 * 1e-8 + 1e-6) ** 0.5))


def test_buckets_are_exact_near_by_and_logarithmic_beyond():
    distance = torch.arange(-1495, 1496)
    buckets = dict(zip(distance.tolist(), position_buckets(distance, 320, 800).tolist()))
    assert all(buckets[d] == d + 160 and buckets[-d] == d for d in range(1, 81))
    assert buckets[0] == 0 and buckets[100] == 160 + 87 and buckets[-799] == 159 and buckets[1495] == 319
    grown = [buckets[-d] for d in range(1496)]
    assert grown == sorted(grown)


@EVERY
def test_eager_and_sdpa_attention_agree(model, kind):
    assert off(tiny.build(attention="eager")(**KINDS[kind]()).logits, model(**KINDS[kind]()).logits) < 1e-5


def test_the_attention_setting_reaches_every_part():
    parts = tiny.build(attention="eager").model
    for part in (parts.vision_tower, parts.audio_tower, parts.language_model):
        assert part.config._attn_implementation == "eager"


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_near(model, kind, dtype):
    logits = tiny.build(dtype)(**KINDS[kind]()).logits
    assert logits.dtype == dtype and logits.isfinite().all()
    assert off(logits, model(**KINDS[kind]()).logits) < (0.15 if dtype == torch.bfloat16 else 0.05)


def test_a_picture_is_a_video_in_which_nothing_moves(model):
    still = tiny.picture()
    ids = still["input_ids"].masked_fill(still["input_ids"] == tiny.IMAGE, tiny.VIDEO)
    frames = still["pixel_values"][:, None].expand(-1, 4, -1, -1, -1)
    torch.testing.assert_close(model(**still).logits, model(input_ids=ids, pixel_values_videos=frames).logits)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_ragged_batch_is_its_samples_one_by_one(model, side):
    samples = [make() for make in KINDS.values()]
    batch = pad(samples, side)
    logits = model(**batch).logits
    for row, sample in enumerate(samples):
        alone = model(**sample).logits[0]
        assert off(logits[row][batch["attention_mask"][row].bool()], alone) < 1e-5


def test_sounds_of_different_lengths_do_not_see_their_padding(model):
    banks = [tiny.bank(40), tiny.bank(23, "other"), tiny.bank(64, "third")]
    samples = [tiny.sample([5] + [tiny.AUDIO] * (bank.shape[1] // 16 * 8) + [9], input_features=bank) for bank in banks]
    padded = torch.nn.utils.rnn.pad_sequence([bank[0] for bank in banks], batch_first=True)  # (3, 64, 128)
    mask = torch.arange(64) < torch.tensor([40, 23, 64])[:, None]
    texts = pad([{k: v for k, v in one.items() if k != "input_features"} for one in samples])
    logits = model(**texts, input_features=padded, input_features_mask=mask).logits
    for row, sample in enumerate(samples):
        assert off(logits[row][texts["attention_mask"][row].bool()], model(**sample).logits[0]) < 1e-5


@pytest.mark.parametrize("change", ["more", "fewer", "none", "nothing", "no place"])
def test_placeholders_and_features_must_match(model, change):
    sample = tiny.av()
    if change == "more":
        sample["pixel_values_videos"] = sample["pixel_values_videos"].repeat(2, 1, 1, 1, 1)
    elif change == "fewer":
        sample["input_features"] = sample["input_features"][:, :31]
    elif change in ("none", "nothing"):
        del sample["input_features"]
        if change == "nothing":
            del sample["pixel_values_videos"]
    else:
        sample["input_ids"] = sample["input_ids"].masked_fill(sample["input_ids"] == tiny.AUDIO, 3)
    counts = {
        "more": "8 video .* 16 video",
        "fewer": "16 audio .* 8 audio",
        "none": "16 audio .* 0 audio",
        "nothing": "8 video .* 0 video",
        "no place": "0 audio .* 16 audio",
    }
    with pytest.raises(UserError, match=counts[change]):
        model(**sample)


def test_media_need_ids_to_say_where_they_go(model):
    embeds = model.get_input_embeddings()(torch.tensor([[1, 2]]))
    with pytest.raises(UserError, match="need input_ids"):
        model(inputs_embeds=embeds, input_features=tiny.bank())
    with pytest.raises(UserError, match="either input_ids or inputs_embeds"):
        model(input_ids=torch.tensor([[1, 2]]), inputs_embeds=embeds)


@EVERY
def test_generation_with_a_cache_is_generation_without(model, kind):
    settings = {"max_new_tokens": 6, "eos_token_id": None, "suppress_tokens": [tiny.IMAGE, tiny.VIDEO, tiny.AUDIO]}
    cached = model.generate(**KINDS[kind](), **settings)
    assert torch.equal(cached, model.generate(**KINDS[kind](), use_cache=False, **settings))


def test_left_padded_generation_is_generation_one_by_one(model):
    samples = [make() for make in KINDS.values()]
    batch = pad(samples, "left")
    settings = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
    for row, sample in enumerate(samples):
        assert torch.equal(together[row], model.generate(**sample, **settings)[0, sample["input_ids"].shape[1] :])


def test_a_repetition_penalty_can_leave_the_prompt_alone(model):
    sample = tiny.av()
    length = sample["input_ids"].shape[1]
    plain = model.generate(**sample, max_new_tokens=1)
    sample["input_ids"][0, 0] = plain[0, -1]  # the prompt holds the best first token
    best = model(**sample).logits[0, -1].argmax()
    penalty = RepetitionPenaltyLogitsProcessor(100.0, prompt_ignore_length=length)
    made = model.generate(**sample, max_new_tokens=4, eos_token_id=None, logits_processor=[penalty])[0, length:]
    assert made[0] == best and len(set(made.tolist())) == 4
    assert model.generation_config.repetition_penalty in (None, 1.0)


def test_a_saved_model_comes_back_whole(model, tmp_path):
    model.save_pretrained(tmp_path)
    for auto in (VideoLlama2ForConditionalGeneration, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        again, told = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert type(again) is VideoLlama2ForConditionalGeneration
        assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert again.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict()
        assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))
        assert off(again.eval()(**tiny.av()).logits, model(**tiny.av()).logits) < 1e-5
    assert type(again.config) is VideoLlama2Config and type(again.model.audio_tower) is BeatsModel


def test_every_parameter_is_initialised(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *a, **k: empty(*a, **k).fill_(1e30) if not k.get("device") else empty(*a, **k)
    )
    fresh = VideoLlama2ForConditionalGeneration(tiny.configuration())
    for name, parameter in fresh.named_parameters():
        assert parameter.isfinite().all() and parameter.abs().max() < 10, name


def test_decoder_blocks_and_only_they_are_found(model):
    assert list(models.blocks(model)) == ["model.language_model.layers.0", "model.language_model.layers.1"]
    assert model.get_decoder() is model.model.language_model
    assert models.placeholder_ids(model) == {tiny.IMAGE: 0, tiny.VIDEO: 0, tiny.AUDIO: 1}


@pytest.mark.parametrize("preset", ["tamp", "sparsegpt"])
def test_pruning_meets_its_budget_on_every_kind_of_sample(model, preset):
    pruned = copy.deepcopy(model)
    samples = [make() for make in KINDS.values()]
    report = tamp.prune(pruned, samples, tamp.Recipe.preset(preset, sparsity=0.37), progress=False)
    weights = {
        f"{prefix}.{name}.weight" for prefix, block in models.blocks(model).items() for name in models.linears(block)
    }
    after = pruned.state_dict()
    zeros = sum(int((after[name] == 0).sum()) for name in weights)
    assert zeros == round(sum(after[name].numel() for name in weights) * 0.37)
    assert report.sparsity == zeros / sum(after[name].numel() for name in weights)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, after[name]) == (name not in weights), name
    assert pruned(**tiny.av()).logits.isfinite().all()
