"""Loading: shipped names, folders and hub ids, and a clear sentence for everything else."""

import json
import shutil

import pytest
import tiny
import torch
import transformers

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
