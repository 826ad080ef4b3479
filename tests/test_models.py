"""Loading: shipped names, folders and hub ids, and a clear sentence for everything else."""

import json
import shutil

import families
import pytest
import tiny
import tiny_folders
import torch
import transformers
from safetensors.torch import load_file, save_file

import tamp
from tamp import models
from tamp.errors import UserError
from tamp.files import data_folder


def test_the_shipped_model_is_a_plain_llava_next(shipped):
    model, processor = shipped
    assert type(model) is transformers.LlavaNextForConditionalGeneration
    assert type(processor) is transformers.LlavaNextProcessor
    assert not model.training
    assert len(models.blocks(model)) >= 8
    sample = tamp.calibration_set("mini-vqa", processor, n=1)[0]
    codes = models.modality(model, sample)
    assert (codes == models.VISUAL).sum() >= 80
    with torch.no_grad():
        assert model(**sample).logits.isfinite().all()


def test_dtype_and_device_are_as_asked():
    assert tamp.load("mini-llava-next", dtype="bfloat16")[0].dtype == torch.bfloat16
    assert tamp.load("mini-llava-next", dtype=torch.float32, device="cpu")[0].dtype == torch.float32
    if not torch.cuda.is_available():
        assert tamp.load("mini-llava-next")[0].dtype == torch.float32, "half precision is widened on a CPU"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mini-llava-nxt", {}, "no model 'mini-llava-nxt'. Did you mean 'mini-llava-next'?"),
        ("./nowhere/at-all", {}, "There is no model"),
        ("nobody/nothing-of-the-kind", {}, "from the model hub"),
        ("mini-llava-next", {"device": "gpu9"}, "Device 'gpu9' is not available"),
        ("mini-llava-next", {"dtype": "float12"}, "There are: auto, float32, bfloat16, float16"),
    ],
)
def test_what_cannot_be_loaded_says_why(name, settings, message):
    with pytest.raises(UserError) as error:
        tamp.load(name, **settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no config.json"):
        tamp.load(tmp_path)


def test_pickled_weights_are_not_read(tmp_path):
    model, _ = tiny.build("llama")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tiny_folders.tokenizer([]).save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        tamp.load(tmp_path)


def test_remote_code_is_not_run(tmp_path, shipped):
    folder = tmp_path / "remote"
    shutil.copytree(data_folder() / "mini-llava-next", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "architectures": ["Strange"], "auto_map": {"AutoConfig": "code.Strange"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match="Could not load"):
        tamp.load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_model_without_decoder_blocks_is_refused():
    with pytest.raises(UserError, match="decoder blocks"):
        models.blocks(
            transformers.ResNetModel(transformers.ResNetConfig(hidden_sizes=[8], depths=[1], embedding_size=8))
        )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_only_linears_of_the_language_model_are_found(family):
    model, _ = tiny.build(family)
    found = {f"{prefix}.{name}" for prefix, block in models.blocks(model).items() for name in models.linears(block)}
    assert len(found) == 7 * models.text_config(model).num_hidden_layers
    assert not [name for name in found if any(word in name for word in ("vision", "projector", "connector", "lm_head"))]


KEY = "language_model.model.layers.2.mlp.up_proj.weight"
DAMAGES = {
    "a tensor is missing": (lambda state: state.pop(KEY), "1 tensors are missing"),
    "a tensor is renamed": (lambda state: state.update({KEY + "s": state.pop(KEY)}), "1 tensors do not belong"),
    "a tensor has another shape": (lambda state: state.update({KEY: state[KEY][:-1].clone()}), "another shape"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_do_not_fit_the_model_are_refused_and_the_tensor_named(damage, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(data_folder() / "mini-llava-next", folder)
    state = load_file(folder / "model.safetensors")
    spoil, message = DAMAGES[damage]
    spoil(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message) as error:
        tamp.load(folder)
    assert "layers.2.mlp.up_proj.weight" in str(error.value)


@pytest.mark.parametrize("family", ["dbrx", "jetmoe", "step3p7", "idefics"])
def test_weights_that_pruning_does_not_reach_are_refused_with_their_share_unless_they_may_be_left_out(family, tmp_path):
    recipe = tamp.Recipe.preset("wanda")
    for call in (tamp.prune, tamp.plan):
        model, samples = families.build(family)
        with pytest.raises(UserError, match=r"\d\d\.\d% of the decoder.*allow_partial"):
            call(model, samples, recipe, progress=False)
    report = tamp.prune(model, samples, recipe, progress=False, allow_partial=True)
    assert report.sparsity == pytest.approx(0.5, abs=1e-3) and report.coverage < 0.7
    assert "dense stay" in str(report)
    tamp.save(model, None, tmp_path / "pruned", report=report)
    written = tamp.verify(tmp_path / "pruned")["report"]
    assert written["coverage"] == report.coverage and written["left_out"].keys() == report.left_out.keys()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_linears_of_a_dense_family_are_its_whole_decoder(family):
    model, _ = tiny.build(family)
    assert not models.left_out(model)


def test_encoder_decoders_are_refused():
    small = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 32, "pad_token_id": 0}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    bart = transformers.BartForConditionalGeneration(transformers.BartConfig(**small, **heads))
    t5 = transformers.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, vocab_size=32)
    for model in (bart, transformers.T5ForConditionalGeneration(t5)):
        with pytest.raises(UserError, match="encoder-decoder"):
            tamp.prune(model, None, tamp.Recipe.preset("magnitude"), progress=False)
