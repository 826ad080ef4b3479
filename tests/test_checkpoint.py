"""Saving: what comes back is what was pruned, and a folder that looks finished is finished."""

import errno
import json

import pytest
import tiny
import torch
import transformers

import tamp
from tamp import checkpoint
from tamp.errors import UserError


def prune(model, processor, **recipe):
    samples = tamp.calibration_set("mini-vqa", processor, n=4)
    return tamp.prune(model, samples, tamp.Recipe(**recipe), progress=False)


def test_a_saved_model_loads_with_plain_transformers_and_gives_the_same_logits(mini, tmp_path):
    model, processor = mini
    report = prune(model, processor, sparsity=0.6)
    folder = tamp.save(model, processor, tmp_path / "deep" / "pruned", report=report)
    again = transformers.LlavaNextForConditionalGeneration.from_pretrained(folder).eval()
    for (name, tensor), (other_name, other) in zip(model.state_dict().items(), again.state_dict().items()):
        assert name == other_name and torch.equal(tensor, other)
    inputs = tamp.calibration_set("mini-vqa", transformers.AutoProcessor.from_pretrained(folder), n=1)[0]
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again(**inputs).logits)
    loaded, _ = tamp.load(folder, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize("tied", [False, True])
def test_half_precision_that_was_widened_on_a_cpu_is_saved_as_half_precision(shipped, tmp_path, tied):
    model, processor = tamp.load("mini-llava-next", device="cpu", dtype="bfloat16")
    if tied:
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
        model.tie_weights()
    model.save_pretrained(tmp_path / "dense")
    processor.save_pretrained(tmp_path / "dense")
    model, processor = tamp.load(tmp_path / "dense", device="cpu")
    assert model.dtype == torch.float32
    tamp.prune(model, None, tamp.Recipe.preset("magnitude", sparsity=0.5), progress=False)
    tamp.save(model, processor, tmp_path / "pruned")
    assert model.dtype == torch.float32
    size = (tmp_path / "dense" / "model.safetensors").stat().st_size
    assert (tmp_path / "pruned" / "model.safetensors").stat().st_size == pytest.approx(size, rel=0.01)
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert config["dtype"] == config["text_config"]["dtype"] == "bfloat16"
    plain = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "pruned")
    assert plain.dtype == torch.bfloat16
    state = plain.state_dict()
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in model.state_dict().items())


def test_a_model_that_was_asked_for_in_float32_is_saved_so(tmp_path):
    model, processor = tamp.load("mini-llava-next", device="cpu", dtype="float32")
    tamp.save(model, processor, tmp_path / "wide")
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"


def test_the_manifest_records_recipe_and_weights_and_verify_checks_them(mini, tmp_path):
    model, processor = mini
    folder = tamp.save(model, processor, tmp_path / "pruned", report=prune(model, processor, pattern="2:4"))
    manifest = tamp.verify(folder)
    assert manifest["report"]["recipe"]["pattern"] == "2:4"
    assert manifest["report"]["sparsity"] == 0.5
    assert (folder / "tamp.csv").read_text().startswith("block,linear,weights")
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match="not what was saved"):
        tamp.verify(folder)
    weights.unlink()
    with pytest.raises(UserError, match="is missing"):
        tamp.verify(folder)
    with pytest.raises(UserError, match=r"no tamp.json"):
        tamp.verify(tmp_path)


def test_an_existing_folder_is_refused_unless_told_otherwise(mini, tmp_path):
    target = tmp_path / "there"
    target.mkdir()
    tamp.save(*mini, target)  # an empty folder is no loss
    (target / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        tamp.save(*mini, target)
    assert (target / "precious.txt").read_text() == "mine"
    tamp.save(*mini, target, overwrite=True)
    assert not (target / "precious.txt").exists()
    tamp.verify(target)


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_a_crash_leaves_nothing_or_the_old_folder(mini, tmp_path, monkeypatch, existing, fault):
    model, processor = mini
    target = tmp_path / "out"
    if existing:
        tamp.save(model, processor, target)

    def fail(folder, *arguments, **settings):
        (folder / "model.safetensors").write_bytes(b"half")
        raise fault

    monkeypatch.setattr(model, "save_pretrained", fail)
    with pytest.raises(UserError if isinstance(fault, OSError) else KeyboardInterrupt) as error:
        tamp.save(model, processor, target, overwrite=existing)
    if isinstance(fault, OSError):
        assert "No space left" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if existing else [])
    if existing:
        tamp.verify(target)


def test_a_place_that_cannot_be_written_is_named(mini, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        tamp.save(*mini, tmp_path / "file" / "out")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llama"])
def test_other_families_are_saved_without_a_processor(family, tmp_path):
    model, samples = tiny.build(family)
    report = tamp.prune(model, samples, tamp.Recipe(sparsity=0.6), progress=False)
    folder = tamp.save(model, None, tmp_path / "out", report=report)
    again = type(model).from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    assert json.loads((folder / checkpoint.MANIFEST).read_text())["report"]["sparsity"] == report.sparsity


def test_a_link_leads_to_its_folder_and_a_tilde_home(mini, tmp_path, monkeypatch):
    real = tmp_path / "real"
    real.mkdir()
    link = tmp_path / "link"
    link.symlink_to(real)
    monkeypatch.setenv("HOME", str(tmp_path))
    tamp.save(*mini, link)
    assert link.is_symlink() and (real / "config.json").is_file()
    tamp.save(*mini, "~/home")
    assert (tmp_path / "home" / "config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "link", "real"], "nothing is left beside them"
