"""Saving a model that carries an adapter, or whose ``save_pretrained`` writes less than the model: refused, nothing left."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tamp
from tamp import checkpoint
from tamp.errors import UserError


@pytest.fixture
def pruned():
    """A tiny Llama, half of whose weights are zero."""
    model, _ = tiny.build("llama")
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            module.weight.data[:, ::2] = 0
    return model


class Layer(nn.Module):
    """A linear with low-rank matrices beside it, as PEFT wraps it."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.base_layer = linear
        self.lora_A, self.lora_B = nn.Linear(linear.in_features, 2), nn.Linear(2, linear.out_features)


class Wrapper(nn.Module):
    """A model whose ``save_pretrained`` writes the adapter alone, as PEFT's does."""

    def __init__(self, model: nn.Module, prompt: bool = False):
        super().__init__()
        self.base_model, self.peft_config = model, {"default": {}}
        if not prompt:
            attention = model.model.layers[0].self_attn
            attention.q_proj = Layer(attention.q_proj)

    def get_base_model(self):
        return self.base_model

    def save_pretrained(self, folder, **settings):
        save_file({"lora_A": torch.zeros(4, 4)}, folder / "adapter_model.safetensors")


def test_a_wrapped_model_is_refused_before_anything_is_written(pruned, tmp_path):
    with pytest.raises(
        UserError, match=r"only the adapter would be saved.*tamp\.save\(model\.unload\(\).*fill the zeros"
    ):
        tamp.save(Wrapper(pruned), None, tmp_path / "deep" / "out")
    with pytest.raises(UserError, match=r"add the adapter afterwards"):
        tamp.save(pruned, None, tmp_path / "deep" / "out")  # the layers inside are still wrapped
    assert not list(tmp_path.iterdir())


def test_a_learned_prompt_is_an_adapter_too(pruned, tmp_path):
    with pytest.raises(UserError, match=r"tamp\.save\(model\.get_base_model\(\)"):
        tamp.save(Wrapper(pruned, prompt=True), None, tmp_path / "out")


def without(state, name):
    del state[name]


def dense(state, name):
    state[name] = torch.ones_like(state[name])


KEY = "model.layers.2.mlp.up_proj.weight"


@pytest.mark.parametrize("damage", [without, dense])
def test_a_folder_that_lacks_weights_or_zeros_is_not_finished(damage, pruned, tmp_path, monkeypatch):
    write = pruned.save_pretrained

    def spoil(folder, **settings):
        write(folder, **settings)
        state = load_file(folder / "model.safetensors")
        damage(state, KEY)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(pruned, "save_pretrained", spoil)
    with pytest.raises(
        UserError, match=r"save_pretrained of LlamaForCausalLM wrote [\d,]+ weights.*Nothing was left there"
    ):
        tamp.save(pruned, None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["mixtral", "qwen2_5_vl", "videollama2"])
def test_names_and_pieces_of_the_files_may_differ_from_the_model(family, tmp_path, monkeypatch):
    """Experts are written one by one, towers under older names, and long tensors are read in pieces."""
    import transformers

    monkeypatch.setattr(checkpoint, "CHUNK", 100)
    if family == "mixtral":
        model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**tiny.TEXT, num_local_experts=4))
    else:
        model, _ = tiny.build(family)
    for parameter in model.parameters():
        parameter.data[..., ::2] = 0
    folder = tamp.save(model, None, tmp_path / "out")
    held = checkpoint._held(model, model.state_dict())
    pieces = [piece for path in folder.glob("*.safetensors") for piece in checkpoint._pieces(path)]
    assert checkpoint._count(pieces) == held and held[1] > held[0] / 3
    assert max(len(piece) for piece in pieces if piece.ndim > 1) < tiny.TEXT["vocab_size"]


def test_tied_weights_are_written_once(tmp_path):
    import transformers

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**tiny.TEXT, tie_word_embeddings=True))
    tamp.save(model, None, tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


def test_with_peft_itself(pruned, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    zeros = checkpoint._held(pruned, pruned.state_dict())[1]
    wrapped = peft.get_peft_model(pruned, config)
    with pytest.raises(UserError, match=r"model\.unload\(\)"):
        tamp.save(wrapped, None, tmp_path / "out")
    plain = wrapped.unload()
    folder = tamp.save(plain, None, tmp_path / "out")
    assert sum(int((tensor == 0).sum()) for tensor in load_file(folder / "model.safetensors").values()) == zeros
    plain.add_adapter(config)
    with pytest.raises(UserError, match="add the adapter afterwards"):
        tamp.save(plain, None, tmp_path / "again")
    assert json.loads((folder / checkpoint.MANIFEST).read_text())["files"].keys() == {"model.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
