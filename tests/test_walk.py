"""Capture and replay: bit for bit what a plain forward pass computes, in every family."""

import families
import pytest
import tiny
import torch
import transformers
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tamp import attention, models, passes, pruning, walk
from tamp.errors import UserError
from tamp.recipe import Recipe

EVERY = pytest.mark.parametrize("family", tiny.FAMILIES)


def pad(samples: list[dict], side: str) -> dict:
    """Put text-only samples into one padded batch."""
    longest = max(each["input_ids"].shape[1] for each in samples)
    rows = {"input_ids": [], "attention_mask": []}
    for each in samples:
        missing = longest - each["input_ids"].shape[1]
        for key, row in rows.items():
            row.append(torch.nn.functional.pad(each[key], (missing, 0) if side == "left" else (0, missing)))
    return {key: torch.cat(row) for key, row in rows.items()}


@EVERY
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_replay_gives_the_hidden_states_of_a_plain_forward_bit_for_bit(family, kernel):
    model, samples = tiny.build(family, attention=kernel)
    with torch.no_grad():
        plain = [model(**each, use_cache=False, output_hidden_states=True).hidden_states for each in samples]
        captured = walk.capture(model, samples, progress=False)
        for batch, states in zip(captured, plain):
            assert torch.equal(batch.hidden, states[0])
            for position, block in enumerate(models.blocks(model).values()):
                batch.hidden = batch.run(block, position)
                if position < len(states) - 2:  # the library's last entry has gone through the final norm
                    assert torch.equal(batch.hidden, states[position + 1])
            norm = model.get_decoder().norm
            assert torch.equal(norm(batch.hidden), states[-1])


@EVERY
def test_the_attention_row_is_the_last_row_of_eager_attention(family):
    model, samples = tiny.build(family, attention="eager")
    rows = []
    with torch.no_grad():
        full = [model(**each, use_cache=False, output_attentions=True).attentions for each in samples]
        for batch in walk.capture(model, samples, progress=False):
            for position, block in enumerate(models.blocks(model).values()):
                with attention.attention_row(block) as row:
                    row.last = attention.last_valid(batch.modality)
                    after = batch.run(block, position)
                assert torch.equal(after, batch.run(block, position)), "looking must not change the output"
                rows.append(row.value)
                batch.hidden = after
    expected = [layer[:, :, -1].mean(1) for layers in full for layer in layers]
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected):
        torch.testing.assert_close(row, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "family",
    ["gpt_oss", "gemma2", "gemma3", "cohere2", "gpt_neox", "llama4", "gemma4_moe", "deepseek_v3", "aya_vision"],
)
def test_sinks_windows_soft_caps_and_chunks_are_in_the_attention_row(family):
    model, samples = families.build(family)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        full = [model(**each, use_cache=False, output_attentions=True).attentions for each in samples]
        found = []
        captured = walk.capture(model, samples, progress=False)
        for step in walk.walk(model, captured, attention=True):
            found.append([row.attention for row in step])
    for number, layers in enumerate(full):
        for position, layer in enumerate(layers):
            torch.testing.assert_close(found[position][number], layer[0, :, -1].float().mean(0), atol=2e-6, rtol=1e-4)


def flat_mask(module, query, key, value, mask, scaling=None, **kwargs):
    """An attention function that takes a (B, T) mask, as flash attention does."""
    length = query.shape[2]
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    seen = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    if mask is not None:
        seen = seen & mask[:, None, None, :].bool() | torch.eye(length, dtype=torch.bool)
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


@pytest.mark.parametrize("kernel", ["eager", "flat", "flex_attention", "compiled"])
def test_masks_of_every_kind_and_compiled_blocks_give_the_masks_of_sdpa(kernel, monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flat", flat_mask)
    monkeypatch.setitem(
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "flat", ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"]
    )
    found = []
    for name in ("sdpa", kernel):
        model, samples = tiny.build("llama")
        if name == "compiled":
            for block in models.blocks(model).values():
                block.compile(backend="eager")
        else:
            model.set_attn_implementation(name)
        pruning.prune(model, [pad(samples, "left")], Recipe.preset("tamp"), progress=False)
        found.append([linear.weight == 0 for linear in models.all_linears(model).values()])
        assert name != "compiled" or all(block._compiled_call_impl for block in models.blocks(model).values())
    assert sum(int((one != other).sum()) for one, other in zip(*found)) <= 4


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_attention_row_of_a_padded_batch_is_that_of_its_rows(side):
    model, samples = tiny.build("llama")
    block = next(iter(models.blocks(model).values()))

    def row_of(batch):
        with torch.no_grad(), attention.attention_row(block) as row:
            row.last = attention.last_valid(batch.modality)
            batch.run(block, 0)
        return row.value

    padded = walk.capture(model, [pad(samples, side)], progress=False)[0]
    together = row_of(padded)
    for number, alone in enumerate(walk.capture(model, samples, progress=False)):
        valid = padded.modality[number] >= 0
        torch.testing.assert_close(together[number][valid], row_of(alone)[0], atol=1e-6, rtol=1e-5)
        assert not together[number][~valid].any()


def test_the_attention_setting_is_gone_afterwards_even_after_an_exception():
    model, _ = tiny.build("llama")
    block = next(iter(models.blocks(model).values()))
    names = set(ALL_ATTENTION_FUNCTIONS)
    with pytest.raises(RuntimeError, match="stop"), attention.attention_row(block):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == "sdpa"
    assert set(ALL_ATTENTION_FUNCTIONS) == names


def test_blocks_called_with_different_arguments_are_replayed_with_their_own():
    config = dict(tiny.TEXT, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**config, head_dim=8, use_sliding_window=True)
    ).eval()
    samples = [tiny.sample(tiny.tokens(12 + n, n)) for n in range(2)]
    with torch.no_grad():
        for each, batch in zip(samples, walk.capture(model, samples, progress=False)):
            assert len({id(call) for call in batch.calls}) == 3
            states = model(**each, use_cache=False, output_hidden_states=True).hidden_states
            for position, block in enumerate(models.blocks(model).values()):
                assert torch.equal(batch.hidden, states[position])
                batch.hidden = batch.run(block, position)


def test_a_model_that_cannot_be_walked_is_refused_before_a_weight_is_touched():
    model, samples = tiny.build("llama")
    second = list(models.blocks(model).values())[1]
    second.register_forward_pre_hook(
        lambda module, args: (args[0] + 1, *args[1:])
    )  # runs twice when the block is called
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for preset in ("wanda", "tamp"):
        with pytest.raises(UserError, match="ends .*% away from its own forward pass"):
            pruning.prune(model, samples, Recipe.preset(preset), progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(len(block._forward_pre_hooks) == (block is second) for block in models.blocks(model).values())
    assert not any("forward" in vars(block) for block in models.blocks(model).values())


@EVERY
def test_modality_is_read_from_the_configuration(family):
    model, samples = tiny.build(family)
    codes = models.modality(model, samples[0])
    counts = {name: int((codes == code).sum()) for code, name in models.MODALITY_NAMES.items()}
    ids, config = samples[0]["input_ids"], model.config
    for name, kinds in (("visual", ("image", "video")), ("audio", ("audio",))):
        reserved = [getattr(config, f"{kind}_token_id", None) for kind in kinds]
        assert counts[name] == sum(int((ids == each).sum()) for each in reserved if each is not None)
    assert sum(counts.values()) == codes.numel() and counts["text"] > 0
    assert sum(count > 0 for count in counts.values()) == tiny.MODALITIES.get(family, 2)


@pytest.mark.parametrize("family", ["phi4_multimodal", "kosmos_2", "kosmos_2_5", "fuyu", "glm4v", "molmo2", "mllama"])
def test_media_are_coded_where_ids_are_in_parts_of_the_configuration_or_marked_by_masks(family):
    model, samples = families.build(family)
    codes = models.modality(model, samples[0])
    assert (codes == models.VISUAL).any() and (codes == models.TEXT).any()
    words = {key: value for key, value in samples[0].items() if key in ("input_ids", "attention_mask")}
    words["input_ids"] = samples[-1]["input_ids"][:, -1:].expand_as(words["input_ids"])
    assert (models.modality(model, words) == models.TEXT).all()


BAD = {
    "an image without its token": (
        lambda s: s | {"input_ids": s["input_ids"].masked_fill(s["input_ids"] == tiny.IMAGE, 5)},
        "no visual token",
    ),
    "a token without its image": (
        lambda s: {k: v for k, v in s.items() if k in ("input_ids", "attention_mask")},
        "no visual input",
    ),
    "too few tokens for the image": (
        lambda s: (
            s
            | {
                k: s[k][:, 4:] if k != "input_ids" else torch.where(torch.arange(s[k].shape[1]) == 5, 5, s[k])[:, 4:]
                for k in ("input_ids", "attention_mask")
            }
        ),
        "Sample 1 does not fit",
    ),
    "too long": (
        lambda s: {
            k: torch.cat([s[k], torch.ones(1, 500, dtype=torch.long)], 1)
            if s[k].ndim == 2 and k != "image_sizes"
            else s[k]
            for k in s
        },
        "the model takes 512",
    ),
    "no tensors": (lambda s: {"input_ids": [[1, 2]]}, "return_tensors='pt'"),
    "not a processor output": (lambda s: "hello", "not a processor output"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_sample_that_does_not_fit_is_named(fault):
    model, samples = tiny.build("llava_next")
    spoil, message = BAD[fault]
    samples[1] = spoil(samples[1])
    with pytest.raises(UserError, match=message) as error:
        walk.capture(model, samples, progress=False)
    assert "ample 1" in str(error.value)


def test_float16_pixels_follow_the_model():
    model, samples = tiny.build("llava_next", dtype=torch.bfloat16)
    captured = walk.capture(model, samples, progress=False)
    assert captured[0].hidden.dtype == torch.bfloat16


def test_a_walk_gives_every_row_what_a_plain_forward_computes():
    model, samples = tiny.build("llava_next")
    seen: dict[str, list] = {}
    handles = [
        linear.module.register_forward_hook(
            lambda m, i, o, name=name: seen.setdefault(name, []).append((i[0][0], o[0]))
        )
        for name, linear in models.all_linears(model).items()
    ]
    with torch.no_grad(), passes.hooks(*handles):
        states = [model(**each, use_cache=False, output_hidden_states=True).hidden_states for each in samples]
    captured = walk.capture(model, samples, progress=False)
    for step in walk.walk(model, walk.copies(captured)):
        for row in step:
            assert torch.equal(row.before, states[row.sample][step.position][0])
            assert list(row.inputs) == list(row.outputs) == list(step.linears)
            for name in step.linears:
                entered, left = seen[f"{step.name}.{name}"][row.sample]
                assert torch.equal(row.inputs[name], entered) and torch.equal(row.outputs[name], left)
    assert all(torch.equal(batch.hidden, state[0]) for batch, state in zip(captured, states)), "copies moved, not these"


def test_a_walk_goes_on_whether_or_not_the_rows_are_read():
    model, samples = tiny.build("llama")

    def end(read):
        captured = walk.capture(model, samples, progress=False)
        for step in walk.walk(model, captured):
            for _ in zip(range(read), step):
                pass
        return [batch.hidden for batch in captured]

    for read in (0, 1):
        assert all(torch.equal(one, other) for one, other in zip(end(read), end(100)))


def test_rows_are_read_once_and_all_of_them_before_a_replay():
    model, samples = tiny.build("llama")
    first = next(walk.walk(model, walk.capture(model, samples, progress=False), change=True))
    with pytest.raises(ValueError, match="read all rows"):
        first.replay()
    assert len(list(first)) == len(samples)
    with pytest.raises(ValueError, match="read once"):
        list(first)
    assert first.replay() == 0.0


def test_an_exception_inside_a_walk_leaves_no_hook_and_no_attention_setting():
    model, samples = tiny.build("llama")
    names = set(ALL_ATTENTION_FUNCTIONS)
    with pytest.raises(RuntimeError, match="stop") as error:
        for step in walk.walk(model, walk.capture(model, samples, progress=False), attention=True):
            for _ in step:
                raise RuntimeError("stop")
    assert error.traceback and set(ALL_ATTENTION_FUNCTIONS) == names
    assert model.config._attn_implementation == "sdpa"
    assert not any(linear.module._forward_hooks for linear in models.all_linears(model).values())


def windowed():
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    config = dict(tiny.TEXT, sliding_window=6, layer_types=layers, head_dim=8, use_sliding_window=True)
    torch.manual_seed(0)
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**config)).eval()


@pytest.mark.parametrize("lengths", [(4, 20), (20, 4)])
def test_a_short_first_sample_does_not_decide_for_those_beyond_a_sliding_window(lengths):
    model = windowed()
    samples = [tiny.sample(tiny.tokens(length, length)) for length in lengths]
    with torch.no_grad():
        for each, batch in zip(samples, walk.capture(model, samples, progress=False)):
            states = model(**each, use_cache=False, output_hidden_states=True).hidden_states
            for position, block in enumerate(models.blocks(model).values()):
                assert torch.equal(batch.hidden, states[position])
                batch.hidden = batch.run(block, position)


def test_masks_do_not_depend_on_which_sample_comes_first():
    samples = [tiny.sample(tiny.tokens(length, length)) for length in (4, 20, 5, 30)]
    found = []
    for order in (samples, samples[::-1]):
        model = windowed()
        pruning.prune(model, order, Recipe.preset("wanda"), progress=False)
        found.append([linear.weight == 0 for linear in models.all_linears(model).values()])
    assert all(torch.equal(one, other) for one, other in zip(*found))
