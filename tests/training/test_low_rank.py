"""Low-rank updates, the files that ship of a model trained with them, and merging these with the language model."""

import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from training import low_rank, smol, smol_av
from training.low_rank import LowRank

from tamp import zoo
from tamp.errors import UserError
from tamp.files import data_folder

KITS = pytest.mark.parametrize("kit", [smol, smol_av], ids=lambda kit: kit.NAME)


@pytest.fixture
def trained(kit, small):
    """An assembled model with random low-rank updates, as after training."""
    model = kit.assemble(small).eval()
    low_rank.add_low_rank(model, rank=2)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(std=0.1)
    return model


@pytest.fixture
def shipped_folder(kit, trained, tmp_path):
    """The folder that ships of it."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    low_rank.write(trained, kit.build_processor(smol.language_model()[1]), folder)
    return folder


@pytest.fixture
def base(small, tmp_path, monkeypatch):
    """The folder of the tiny language model, beside an empty cache."""
    monkeypatch.setenv("TAMP_CACHE", str(tmp_path / "cache"))
    for part in (small, smol.language_model()[1]):
        part.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def folded(model):
    """The same model with every update added to its linear, in the precision of the shipped files."""
    with torch.no_grad():
        for module in list(model.modules()):
            for name, part in list(module.named_children()):
                if isinstance(part, LowRank):
                    up, down = part.up.bfloat16().float(), part.down.bfloat16().float()
                    part.linear.weight += zoo.LORA_SCALE * up @ down
                    setattr(module, name, part.linear)
    return model.bfloat16()


@KITS
def test_merged_model_equals_the_trained_one_bit_for_bit(kit, trained, shipped_folder, base):
    made = zoo.merged(kit.NAME, shipped_folder, base)
    merged = transformers.AutoModelForImageTextToText.from_pretrained(made, dtype=torch.bfloat16)
    expected = folded(trained)
    assert type(merged) is type(expected)
    state, wanted = merged.state_dict(), expected.state_dict()
    assert state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)
    settings = [each.generation_config.to_diff_dict() for each in (merged, expected)]
    assert {**settings[0], "transformers_version": None} == {**settings[1], "transformers_version": None}


@KITS
def test_merged_tokenizer_equals_that_of_training(kit, trained, shipped_folder, base, tmp_path):
    made = zoo.merged(kit.NAME, shipped_folder, base)
    kit.build_processor(smol.language_model()[1]).save_pretrained(tmp_path / "expected")
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (made / name).read_text() == (tmp_path / "expected" / name).read_text()


@KITS
def test_merged_model_computes_the_logits_of_the_trained_one(kit, trained, small):
    merged = kit.assemble(small, seed=9).eval()
    merged.load_state_dict(zoo.merge(merged.state_dict(), {}, low_rank.adapter(trained)))
    ids = torch.randint(20, 1000, (1, 12))
    with torch.no_grad():
        logits = merged(input_ids=ids).logits
        torch.testing.assert_close(logits, trained(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(logits[..., :49152], small(input_ids=ids).logits, atol=1e-3)


@KITS
def test_adapter_holds_updates_of_every_decoder_linear_and_no_other_decoder_weight(kit, trained):
    inside = [name for name in low_rank.adapter(trained) if name.startswith(zoo.DECODER)]
    assert len(inside) == 2 * 2 * 7 and all(name.endswith((".down", ".up")) for name in inside)


@KITS
def test_merging_refuses_an_adapter_with_a_foreign_or_a_missing_tensor(kit, trained, shipped_folder, base):
    path = shipped_folder / zoo.ADAPTER
    whole = load_file(path)
    around = next(name for name in whole if not name.startswith(zoo.DECODER))
    for broken in ({**whole, "model.other": torch.zeros(1)}, {k: v for k, v in whole.items() if k != around}):
        save_file(broken, path)
        with pytest.raises(UserError, match="does not fit"):
            zoo.merged(kit.NAME, shipped_folder, base)
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        zoo.merged(kit.NAME, shipped_folder, base)


@pytest.mark.parametrize("kit", [smol])
def test_merged_folder_is_cached_by_the_checksum_of_the_adapter(kit, trained, shipped_folder, base, tmp_path):
    first = zoo.merged(kit.NAME, shipped_folder, base)
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert zoo.merged(kit.NAME, shipped_folder, base) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made
    changed = load_file(shipped_folder / zoo.ADAPTER)
    changed["model.image_newline"] = changed["model.image_newline"] + 1
    save_file(changed, shipped_folder / zoo.ADAPTER)
    second = zoo.merged(kit.NAME, shipped_folder, base)
    assert second != first and sorted((tmp_path / "cache").iterdir()) == sorted([first, second])


@KITS
def test_training_writes_the_shipped_configuration(kit, tokenizer, tmp_path):
    source = tokenizer.name_or_path
    with torch.device("meta"):
        model = kit.assemble(transformers.LlamaForCausalLM(transformers.AutoConfig.from_pretrained(source)))
    low_rank.write_configuration(
        model, kit.build_processor(transformers.AutoTokenizer.from_pretrained(source)), tmp_path
    )
    shipped = {path.name: path for path in (data_folder() / kit.NAME).iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == set(shipped) - {zoo.ADAPTER, "training.json"}
    for path in tmp_path.iterdir():
        written, wanted = (
            re.sub('"transformers_version": "[^"]*"', "", each.read_text()) for each in (path, shipped[path.name])
        )
        assert written == wanted, path.name


@pytest.mark.parametrize("bias", [False, True])
def test_low_rank_update_has_the_values_and_gradients_of_its_formula(bias):
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 5, bias=bias).double().requires_grad_(False)
    update = LowRank(linear, 3).double()
    torch.nn.init.normal_(update.up)
    inputs = torch.randn(2, 4, 6, dtype=torch.double, requires_grad=True)
    plain = linear(inputs) + zoo.LORA_SCALE * inputs @ update.down.T @ update.up.T
    torch.testing.assert_close(update(inputs), plain)
    weights = torch.randn_like(plain)
    leaves = (inputs, update.down, update.up)
    for ours, expected in zip(
        torch.autograd.grad((update(inputs) * weights).sum(), leaves),
        torch.autograd.grad((plain * weights).sum(), leaves),
    ):
        torch.testing.assert_close(ours, expected)
    update.on = False
    assert torch.equal(update(inputs), linear(inputs))
