"""What cannot be loaded, in a sentence that names the model and the way out; and what loads with an odd configuration."""

import json
import shutil

import pytest
import tiny
import tiny_folders
import torch
import transformers

import tamp
from tamp.errors import UserError
from tamp.files import data_folder


@pytest.fixture
def folder(tmp_path):
    """A copy of the shipped model."""
    return shutil.copytree(data_folder() / "mini-llava-next", tmp_path / "model")


def change(folder, **entries):
    """Change entries of a folder's configuration; those that are None go."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def refusal(folder) -> str:
    with pytest.raises(UserError) as error:
        tamp.load(folder, device="cpu")
    said = str(error.value)
    assert str(folder) in said and "\n" not in said and len(said) < 600
    return said


@pytest.mark.parametrize(
    ("entry", "method"),
    [
        *(
            ({"quant_method": method}, method)
            for method in ("gptq", "awq", "compressed-tensors", "fp8", "bitsandbytes")
        ),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"bits": 4}, "in its own way"),
    ],
)
def test_a_quantized_model_is_to_be_pruned_before_it_is_quantized(entry, method, folder):
    change(folder, quantization_config=entry)
    assert f"is quantized ({method}): prune the original model, then quantize" in refusal(folder)
    change(folder, quantization_config=None, text_config={"model_type": "llama", "quantization_config": entry})
    assert f"is quantized ({method})" in refusal(folder)


@pytest.mark.parametrize(
    ("kind", "named", "instead"),
    [
        ("llava_llama", "LlavaLlamaForCausalLM", "llava-hf/llava-v1.6-vicuna-7b-hf"),
        ("llava", "LlavaLlamaForCausalLM", "llava-hf/llava-v1.6-vicuna-7b-hf"),
        ("llava_mistral", "LlavaMistralForCausalLM", "llava-hf/llava-v1.6-mistral-7b-hf"),
        ("llava_qwen", "LlavaQwenForCausalLM", "llava-hf/llava-onevision-qwen2-7b-ov-hf"),
        ("llava_llama", "LlavaLlamaModel", "llava-hf/"),
    ],
)
def test_llava_as_its_authors_publish_it(kind, named, instead, folder):
    change(folder, model_type=kind, architectures=[named])
    assert f"authors' format ({kind}), which transformers does not read: use the llava-hf version" in refusal(folder)
    assert instead in refusal(folder)


@pytest.mark.parametrize("kind", ["minicpmv", "llava_next"])
def test_remote_code_is_not_run_and_the_way_out_is_named(kind, folder, tmp_path):
    change(folder, model_type=kind, architectures=["Strange"], auto_map={"AutoConfig": "code.C", "AutoModel": "code.M"})
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    said = refusal(folder)
    assert "remote code" in said and "is not run" in said and "a version made for transformers itself" in said
    assert not (tmp_path / "ran").exists()


def test_remote_code_that_nobody_needs_does_no_harm(folder):
    change(folder, auto_map={"AutoModel": "code.Strange"})
    assert type(tamp.load(folder)[0]) is transformers.LlavaNextForConditionalGeneration


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


def bare(folder):
    for path in [*folder.glob("*processor*"), *folder.glob("token*")]:
        path.unlink()


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FAULTS = {
    "a model type of nobody": (lambda f: change(f, model_type="nonsense"), "does not know the model type 'nonsense'"),
    "no model type": (lambda f: change(f, model_type=None), "names no model_type"),
    "a type of the wrong kind": (lambda f: change(f, architectures=3), "files are damaged, or do not fit transformers"),
    "half a download": (cut, "model.safetensors is damaged or not whole"),
    "a pointer of git-lfs": (lambda f: (f / "model.safetensors").write_text(LFS), "model.safetensors is damaged"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no file named model.safetensors"),
    "pickled weights": (pickled, "only safetensors are read"),
    "a broken configuration": (lambda f: (f / "config.json").write_text("{"), "not a valid JSON file"),
    "a configuration of something else": (lambda f: (f / "config.json").write_text("[]"), "Download them again"),
    "a field of the wrong type": (
        lambda f: change(f, text_config={"model_type": "llama", "hidden_size": "x"}),
        "'hidden_size' expected int, got str",
    ),
    "neither processor nor tokenizer": (bare, "has no processor that can be loaded"),
    "no processor": (lambda f: (f / "processor_config.json").unlink(), "put the processor files of the original model"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no processor that can be loaded"),
    "a broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "has no processor that can be loaded"),
    "a processor of nobody": (
        lambda f: (f / "processor_config.json").write_text('{"processor_class": "Nobody"}'),
        "there is only a tokenizer",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_folder_is_refused_in_a_sentence(fault, folder):
    spoil, message = FAULTS[fault]
    spoil(folder)
    assert message in refusal(folder)


def llama(folder, **settings):
    """Write a tiny Llama in several files, with a tokenizer."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**tiny.TEXT, **settings))
    model.save_pretrained(folder, max_shard_size="50KB")
    tiny_folders.tokenizer([]).save_pretrained(folder)
    return model


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda parts, index: parts[1].unlink(), "No such file or directory"),
        (lambda parts, index: parts[1].write_bytes(b"no"), "model-00002-of-00003.safetensors is damaged"),
        (lambda parts, index: index.write_text("{"), "files are damaged"),
        (lambda parts, index: index.write_text("{}"), "KeyError: 'weight_map'"),
    ],
)
def test_a_model_in_several_files_of_which_one_is_bad(spoil, message, tmp_path):
    llama(tmp_path)
    spoil(sorted(tmp_path.glob("model-*.safetensors")), tmp_path / INDEX)
    assert message in refusal(tmp_path)


def test_a_language_model_without_a_tokenizer(tmp_path):
    llama(tmp_path)
    for path in tmp_path.glob("token*"):
        path.unlink()
    assert "has no tokenizer that can be loaded" in refusal(tmp_path)


@pytest.mark.parametrize("named", [None, [], ["LlavaNextForSomethingElse"], ["logging"]])
def test_an_architecture_that_is_missing_or_unknown_follows_from_the_type(named, folder, shipped):
    change(folder, architectures=named)
    model, _ = tamp.load(folder, device="cpu")
    assert type(model) is type(shipped[0])
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), shipped[0].state_dict().values()))


def test_a_type_without_a_model_that_generates_text_is_refused(tmp_path):
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.ViTModel(transformers.ViTConfig(**vision)).save_pretrained(tmp_path)
    change(tmp_path, architectures=None)
    assert "no model that generates text for the type 'vit'" in refusal(tmp_path)


def headless(folder, tied: bool):
    """Write the base of a tiny Llama, as an embedding model is published."""
    model = llama(folder / "whole", tie_word_embeddings=tied)
    model.model.save_pretrained(folder / "base")
    tiny_folders.tokenizer([]).save_pretrained(folder / "base")
    assert json.loads((folder / "base" / "config.json").read_text())["architectures"] == ["LlamaModel"]
    return model, folder / "base"


def test_a_model_without_a_head_gets_that_of_its_embedding_if_they_are_tied(tmp_path):
    whole, base = headless(tmp_path, tied=True)
    model, _ = tamp.load(base, device="cpu")
    assert type(model) is transformers.LlamaForCausalLM
    ids = torch.tensor([tiny.tokens(9, 0)])
    assert torch.equal(model(ids).logits, whole.eval()(ids).logits)
    saved, _ = tamp.load(tamp.save(model, tiny_folders.tokenizer([]), tmp_path / "saved"), device="cpu")
    assert torch.equal(saved(ids).logits, model(ids).logits)


def test_a_model_that_lacks_its_head_is_refused(tmp_path):
    _, base = headless(tmp_path, tied=False)
    assert "holds a LlamaModel, a model without the head that gives logits" in refusal(base)


def test_a_whole_model_that_calls_itself_a_base_loads(tmp_path):
    whole = llama(tmp_path)
    change(tmp_path, architectures=["LlamaModel"])
    model, _ = tamp.load(tmp_path, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), whole.state_dict().values()))


TALKER = {
    "vocab_size": 64,
    "embedding_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rope_parameters": tiny.QWEN_TEXT["rope_parameters"],
}
WAVES = {
    "dit_config": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 16,
        "emb_dim": 16,
        "num_embeds": 64,
        "mel_dim": 8,
        "enc_emb_dim": 8,
        "enc_dim": 8,
        "enc_channels": [8, 8, 8, 8, 24],
        "enc_attention_channels": 8,
        "enc_se_channels": 8,
    },
    "bigvgan_config": {
        "mel_dim": 8,
        "upsample_initial_channel": 16,
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3, 5]],
        "upsample_rates": [2],
        "upsample_kernel_sizes": [4],
    },
}


def test_a_model_that_talks_is_loaded_and_saved_whole_with_its_voices(tmp_path, monkeypatch):
    """Qwen2.5-Omni names an architecture that transformers does not have, and its own loader wants a file of voices."""
    config = transformers.Qwen2_5OmniConfig(
        thinker_config=tiny.qwen2_5_omni()[0].config.to_dict(), talker_config=TALKER, token2wav_config=WAVES
    )
    source = tmp_path / "source"
    transformers.Qwen2_5OmniForConditionalGeneration(config).save_pretrained(source)
    change(source, architectures=["Qwen2_5OmniModel"])
    torch.save({"Chelsie": {"cond": torch.ones(2)}}, source / "spk_dict.pt")
    monkeypatch.setattr("tamp.loading._processor", lambda *given: None)  # it would need torchvision
    model, _ = tamp.load(source, device="cpu")
    assert type(model) is transformers.Qwen2_5OmniForConditionalGeneration and list(model.speaker_map) == ["Chelsie"]
    again = type(model).from_pretrained(tamp.save(model, None, tmp_path / "saved"))
    assert list(again.speaker_map) == ["Chelsie"]
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
