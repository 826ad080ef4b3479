"""Converting a published VideoLLaMA 2: all names, all shapes, the same numbers, and nothing if anything is wrong."""

import json
import logging

import oracles
import pytest
import tiny_videollama2 as tiny
import torch
from safetensors import safe_open
from transformers import AutoProcessor

import tamp
from tamp import cli
from tamp.errors import UserError
from tamp.videollama2 import VideoLlama2Config, VideoLlama2ForConditionalGeneration, VideoLlama2Processor
from tamp.videollama2.convert import RENAMED, convert, port_name

SEVEN_B = tiny.PUBLISHED | {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "torch_dtype": "bfloat16",
    "num_frames": 8,
}


def published_name(port: str) -> str:
    """Invert the renaming, in the older spelling of the weight norm."""
    for new, old in (("gate_proj.", "grep_linear."), ("gate_scale", "grep_a")):
        if port.startswith("model.audio_tower.layers."):
            port = port.replace(f".self_attn.{new}", f".self_attn.{old}")
    old, new = max(
        ((old, new) for old, new in RENAMED if port.startswith(new) and "parametrizations" not in old),
        key=lambda pair: len(pair[1]),
    )
    return old + port.removeprefix(new)


def on_meta(config: VideoLlama2Config) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return VideoLlama2ForConditionalGeneration._from_config(config).state_dict()


def dropped(config: VideoLlama2Config, classes: int) -> dict[str, tuple[int, ...]]:
    """Name the published tensors that the port does without, with their shapes."""
    audio = config.audio_config
    table = (audio.num_buckets, audio.num_attention_heads)
    encoder = "model.audio_tower.encoder.layers.{}.self_attn.relative_attention_bias.weight"
    return {
        **{encoder.format(layer): table for layer in range(1, audio.num_hidden_layers)},
        "model.audio_tower.predictor.weight": (classes, audio.hidden_size),
        "model.audio_tower.predictor.bias": (classes,),
    }


def test_every_published_name_has_a_place_and_every_place_a_name():
    state = on_meta(tiny.configuration())
    published = tiny.published_shapes()
    renamed = {name: port_name(name) for name in published}
    assert {name for name in renamed.values() if name} == set(state)
    assert {name for name, port in renamed.items() if port is None} == set(dropped(tiny.configuration(), 7))
    for name, port in renamed.items():
        assert port is None or (tuple(published[name]) == tuple(state[port].shape) and published_name(port) == name)


def test_an_unconverted_folder_is_not_loaded_but_told_how_to_convert(tmp_path):
    for kind in ("videollama2_qwen2", "videollama2_mistral"):
        with pytest.raises(UserError, match="as its authors publish it.*tamp convert-videollama2"):
            tamp.load(tiny.publish(tmp_path / kind, model_type=kind))


def test_the_large_model_is_the_published_one_to_the_parameter():
    config = VideoLlama2Config.from_published(SEVEN_B)
    state = on_meta(config)
    published = {published_name(name): tuple(tensor.shape) for name, tensor in state.items()}
    published |= dropped(config, 527)
    assert len(published) == 1156 and len(state) == 1143
    assert sum(torch.Size(shape).numel() for shape in published.values()) == 8_527_095_391
    assert {port_name(name) for name in published} == {*state, None}
    linears = [
        tensor.numel()
        for name, tensor in state.items()
        if name.startswith("model.language_model.layers.") and name.endswith("proj.weight")
    ]
    assert len(linears) == 28 * 7 and sum(linears) == 6_525_288_448


def test_the_large_configuration_is_read_from_the_flat_file():
    config = VideoLlama2Config.from_published(SEVEN_B)
    assert config.to_dict() == VideoLlama2Config(dtype="bfloat16", text_config=config.text_config).to_dict()
    text = config.text_config
    assert text.rope_parameters["rope_theta"] == 1e6 and text.sliding_window is None
    assert (config.num_frames, config.vision_feature_layer) == (8, -2)
    assert (config.image_token_id, config.video_token_id, config.audio_token_id) == (151646, 151647, 151648)
    assert VideoLlama2Config.from_published({**SEVEN_B, "num_frames": 16}).num_frames == 16
    assert VideoLlama2Config().text_config.to_dict() | {"dtype": None} == text.to_dict() | {"dtype": None}


def test_both_spellings_of_the_weight_norm_mean_the_same():
    start = "model.audio_tower.encoder.pos_conv.0."
    for old, new, port in (("weight_g", "original0", "gain"), ("weight_v", "original1", "direction")):
        assert port_name(start + old) == port_name(f"{start}parametrizations.weight.{new}")
        assert port_name(start + old) == f"model.audio_tower.pos_conv.{port}"


def test_two_tensors_with_one_meaning_keep_apart():
    assert port_name("model.audio_tower.layer_norm.bias") == "model.audio_tower.patch_norm.bias"
    assert port_name("model.audio_tower.encoder.layer_norm.bias") == "model.audio_tower.embed_norm.bias"
    assert port_name("model.layers.0.mlp.gate_proj.weight") == "model.language_model.layers.0.mlp.gate_proj.weight"


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("spelling", ["weight_g", "original0"])
def test_a_converted_checkpoint_gives_the_released_logits(tmp_path, shards, spelling):
    weights = tiny.published_weights()
    if spelling == "original0":
        start = "model.audio_tower.encoder.pos_conv.0."
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            weights[f"{start}parametrizations.weight.{new}"] = weights.pop(start + old)
    source = tiny.publish(tmp_path / "source", weights, shards)
    folder = convert(source, tmp_path / "deep" / "port", **tiny.TOWERS)
    model, processor = tamp.load(folder, device="cpu")
    assert type(model) is VideoLlama2ForConditionalGeneration and type(processor) is VideoLlama2Processor
    with torch.no_grad():
        logits = model(**tiny.av()).logits
    torch.testing.assert_close(logits, oracles.golden("videollama2")["av"]["logits"], atol=1e-4, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), tiny.build().state_dict().values()))
    names = sorted(path.name for path in source.glob("*.safetensors"))
    assert sorted(path.name for path in folder.glob("*.safetensors")) == names
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["port"]


def test_configuration_generation_and_processor_are_converted_too(tmp_path):
    folder = convert(tiny.publish(tmp_path / "source", num_frames=6), tmp_path / "port", **tiny.TOWERS)
    model, processor = tamp.load(folder, device="cpu")
    assert tamp.models.placeholder_ids(model) == {tiny.IMAGE: 0, tiny.VIDEO: 0, tiny.AUDIO: 1}
    assert model.config.num_frames == processor.num_frames == 6
    assert processor.visual_tokens == 12 and processor.image_processor.size == {"height": 20, "width": 20}
    generation = model.generation_config
    assert generation.repetition_penalty in (None, 1.0) and not generation.do_sample
    assert generation.eos_token_id == [2, 0] and generation.temperature is None
    again = tamp.save(model, processor, tmp_path / "again")
    assert tamp.load(again, device="cpu")[0].config.num_frames == 6
    assert AutoProcessor.from_pretrained(again).num_frames == 6


def test_tensors_are_copied_as_stored(tmp_path, monkeypatch):
    monkeypatch.setattr("tamp.videollama2.convert.CHUNK", 100)
    weights = {name: tensor.bfloat16() for name, tensor in tiny.published_weights().items()}
    weights["model.norm.weight"] = weights["model.norm.weight"].float()  # types may be mixed
    folder = convert(tiny.publish(tmp_path / "source", weights), tmp_path / "port", **tiny.TOWERS)
    found = {}
    for path in folder.glob("*.safetensors"):
        assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0, "data are aligned"
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    expected = {port_name(name): tensor for name, tensor in weights.items() if port_name(name)}
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == expected[name].dtype for name in found)
    assert all(torch.equal(found[name], expected[name]) for name in found)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == found.keys()
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in found.values())


def test_without_a_tokenizer_the_weights_are_converted_and_it_says_so(tmp_path, caplog):
    source = tiny.publish(tmp_path / "source")
    for path in source.glob("*token*"):
        path.unlink()
    ids = {"image_token_id": 90, "video_token_id": 91, "audio_token_id": 92}
    with caplog.at_level(logging.WARNING):
        folder = convert(source, tmp_path / "port", **tiny.TOWERS, **ids)
    assert "no tokenizer" in caplog.text
    model = VideoLlama2ForConditionalGeneration.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), tiny.build().state_dict().values()))
    assert tamp.models.placeholder_ids(model) == {90: 0, 91: 0, 92: 1}


def reshape(weights):
    weights["model.norm.weight"] = weights["model.norm.weight"][:31].clone()


def unknown(weights):
    weights["model.mm_projector_b.0.weight"] = torch.zeros(2)


def too_deep(weights):
    weights["model.layers.2.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"].clone()


def twice(weights):
    start = "model.audio_tower.encoder.pos_conv.0."
    weights[f"{start}parametrizations.weight.original0"] = weights[f"{start}weight_g"].clone()


def incomplete(weights):
    del weights["model.audio_tower.encoder.layers.2.fc1.bias"]


MISTAKES = {  # how to break weights, configuration or folder, and what is said
    "shape": (reshape, {}, None, r"model.norm.weight has shape \(31,\), its config.json asks for \(32,\)"),
    "unknown tensor": (unknown, {}, None, "mm_projector_b.0.weight, which is not part"),
    "no place": (too_deep, {}, None, "model.layers.2.mlp.up_proj.weight, which the model in its config.json"),
    "twice": (twice, {}, None, "twice"),
    "missing tensor": (
        incomplete,
        {},
        None,
        "lacks 1 tensors, among them the port's model.audio_tower.layers.2.fc1.bias",
    ),
    "connector": (None, {"mm_projector_type": "stc_connector"}, None, "'stc_connector'.* only 'stc_connector_v35'"),
    "no sound": (None, {"mm_projector_a_type": None}, None, "mm_projector_a_type is None"),
    "class token": (None, {"mm_vision_select_feature": "cls_patch"}, None, "no class token"),
    "no size": (None, {"hidden_size": None, "rope_theta": None}, None, "lacks hidden_size, rope_theta"),
    "vocabulary": (None, {"vocab_size": 92}, None, "placeholder ids go up to 92"),
    "missing shard": (None, {}, "model-00002-of-00002.safetensors", "lacks model-00002-of-00002.safetensors"),
    "no weights": (None, {}, "model.safetensors.index.json", "lacks model.safetensors"),
    "no configuration": (None, {}, "config.json", "There is no .*config.json"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_wrong_is_said_and_nothing_written(tmp_path, mistake):
    change, settings, lost, message = MISTAKES[mistake]
    weights = tiny.published_weights()
    if change:
        change(weights)
    source = tiny.publish(tmp_path / "source", weights, **settings)
    if lost:
        (source / lost).unlink()
    with pytest.raises(UserError, match=message):
        convert(source, tmp_path / "port", **tiny.TOWERS)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("damage", ["cut", "long", "empty", "text"])
def test_a_broken_shard_is_named(tmp_path, damage):
    source = tiny.publish(tmp_path / "source")
    path = source / "model-00001-of-00002.safetensors"
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[:-1], "long": whole + b"x", "empty": b"", "text": b"version https://git-lfs"}[damage]
    )
    with pytest.raises(UserError, match="model-00001-of-00002.safetensors is not a complete safetensors file"):
        convert(source, tmp_path / "port", **tiny.TOWERS)
    assert not (tmp_path / "port").exists()


HEADERS = {
    "a shape that does not fill its place": lambda entry: entry["shape"].append(2),
    "an unknown type": lambda entry: entry.update(dtype="F12"),
    "a shape of texts": lambda entry: entry.update(shape=["2"]),
    "places that are no list": lambda entry: entry.update(data_offsets=3),
    "a place twice": lambda entry: entry.update(data_offsets=[0, 0]),
}


@pytest.mark.parametrize("damage", HEADERS)
def test_a_header_that_does_not_describe_its_data_is_refused(tmp_path, damage):
    source = tiny.publish(tmp_path / "source")
    path = source / "model-00001-of-00002.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    HEADERS[damage](next(entry for name, entry in header.items() if name != "__metadata__"))
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + whole[8 + length :])
    with pytest.raises(UserError, match="model-00001-of-00002.safetensors is not a complete safetensors file"):
        convert(source, tmp_path / "port", **tiny.TOWERS)


@pytest.mark.parametrize("index", [{"weight_map": 3}, {"weight_map": {"a": "../b"}}, {"weight_map": {}}, {}, []])
def test_an_index_that_does_not_name_files_is_refused(tmp_path, index):
    source = tiny.publish(tmp_path / "source")
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="model.safetensors.index.json .*Download it again"):
        convert(source, tmp_path / "port", **tiny.TOWERS)


@pytest.mark.parametrize("out", [".", "inside", ".."])
def test_the_source_is_never_written_over(tmp_path, out):
    source = tiny.publish(tmp_path / "source")
    before = sorted(path.name for path in source.iterdir())
    with pytest.raises(UserError, match="choose another folder"):
        convert(source, source / out, overwrite=True, **tiny.TOWERS)
    assert sorted(path.name for path in source.iterdir()) == before


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments, **settings):
        raise OSError("No space left on device")

    monkeypatch.setattr(VideoLlama2Processor, "save_pretrained", fail)
    source = tiny.publish(tmp_path / "source")
    with pytest.raises(UserError, match="No space left"):
        convert(source, tmp_path / "port", **tiny.TOWERS)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_existing_folder_is_kept_unless_told_otherwise(tmp_path):
    source = tiny.publish(tmp_path / "source")
    (tmp_path / "port").mkdir()
    (tmp_path / "port" / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        convert(source, tmp_path / "port", **tiny.TOWERS)
    convert(source, tmp_path / "port", overwrite=True, **tiny.TOWERS)
    assert not (tmp_path / "port" / "precious.txt").exists() and (tmp_path / "port" / "config.json").exists()


def test_the_command_converts_and_reports_errors(tmp_path, capsys, monkeypatch):
    source, out = tiny.publish(tmp_path / "source"), tmp_path / "port"
    assert cli.main(["convert-videollama2", str(source), str(out)]) == 2  # sizes of the large towers do not fit
    assert "has shape" in capsys.readouterr().err and not out.exists()
    read = VideoLlama2Config.from_published
    monkeypatch.setattr(VideoLlama2Config, "from_published", lambda published: read(published, **tiny.TOWERS))
    assert cli.main(["convert-videollama2", str(source), str(out)]) == 0
    assert f"saved to {out}" in capsys.readouterr().out and (out / "config.json").is_file()
    assert cli.main(["convert-videollama2", str(source), str(out)]) == 2
