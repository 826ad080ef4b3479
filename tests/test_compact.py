"""Compact folders: every bit comes back, whatever it was; damage is refused; no more in memory than must be."""

import json
import struct
import tracemalloc
import zlib

import families
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

import tamp
from tamp import checkpoint, compact, masks, models
from tamp.errors import UserError

WIDTHS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def any_bits(count: int, width: int, share: float = 0.5, seed: int = 0) -> np.ndarray:
    """Draw whole numbers of any bits, of which a share is zero."""
    chance = np.random.default_rng(seed)
    numbers = chance.integers(0, 2 ** (8 * width), count, dtype=WIDTHS[width])
    numbers[chance.random(count) < share] = 0
    return numbers


# Numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_numbers_of_any_bits_come_back(width, count, share):
    numbers = any_bits(count, width, share)
    again = compact.decode(compact.encode(numbers), count, width)
    assert again.dtype == numbers.dtype and (again == numbers).all()


def test_long_tensors_are_coded_in_pieces(monkeypatch):
    numbers = any_bits(1000, 2)
    whole = compact.encode(numbers)
    monkeypatch.setattr(compact, "CHUNK", 96)
    pieces = compact.encode(numbers)
    assert pieces != whole
    assert all((compact.decode(blob, 1000, 2) == numbers).all() for blob in (whole, pieces))


def test_the_sections_are_those_of_the_description():
    """Read by hand: mask bits, then the bytes of the kept numbers, rotated, the highest first."""
    numbers = np.array([0x8000, 0, 0x3F80, 0xBF81], dtype=np.uint16)  # -0.0, 0.0, 1.0 and about -1.0 in bfloat16
    blob = compact.encode(numbers)
    (count,) = struct.unpack_from("<I", blob)
    at, sections = 4, []
    while at < len(blob):
        deflated, length = struct.unpack_from("<?Q", blob, at)
        data = blob[at + 9 : at + 9 + length]
        sections.append(zlib.decompress(data, -15) if deflated else data)
        at += 9 + length
    assert count == 4 and sections == [bytes([0b1011_0000]), bytes([0x00, 0x7F, 0x7F]), bytes([0x01, 0x00, 0x03])]


def entropy(shares) -> float:
    return -sum(share * np.log2(share) for share in shares if share)


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.5, None), (0.7, None), (None, "2:4")])
def test_normal_weights_take_about_their_entropy(sparsity, pattern):
    """The bits of the mask, seven of the mantissa, one of the sign, and the entropy of the exponent of what is kept."""
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()
    size = weight.float().abs()
    dropped = masks.n_of_m(size, 2, 4) if pattern else masks.unstructured(size, sparsity)
    numbers = weight.masked_fill(dropped, 0).view(torch.int16).numpy().view(np.uint16).ravel()
    exponents = np.bincount((numbers[numbers != 0] >> 7) & 255) / (numbers != 0).sum()
    kept = (numbers != 0).mean()
    of_mask = np.log2(6) / 4 if pattern else entropy([kept, 1 - kept])
    least = of_mask + kept * (8 + entropy(exponents))
    bits = 8 * len(compact.encode(numbers)) / len(numbers)
    assert least <= bits <= 1.06 * least
    assert bits / 16 < 0.385, "less than a bitmask and whole values need: 1/16 + 1/2 at 50 %"


# Files ----------------------------------------------------------------------------------------------------------------

SPECIAL = [0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1.0, -1.0, 2.0**-14]


def tensors() -> dict[str, torch.Tensor]:
    """Make tensors of every type and of odd shapes."""
    made = {}
    for name, dtype in compact.DTYPES.items():
        if dtype == torch.bool:
            made[name] = torch.tensor([True, False, True])
            continue
        bits = any_bits(33, dtype.itemsize).view(np.uint8)
        made[name] = torch.from_numpy(bits).view(dtype).reshape(3, 11)
        if dtype.is_floating_point and dtype.itemsize > 1:
            made[f"{name} special"] = torch.tensor(SPECIAL, dtype=dtype)
    made |= {"empty": torch.zeros(0, 4), "scalar": torch.tensor(3.5), "zeros": torch.zeros(5, 13)}
    return made | {
        "full": torch.ones(5, 13),
        "experts": torch.from_numpy(any_bits(210, 4).view(np.float32)).reshape(2, 7, 15),
    }


@pytest.fixture
def coded(tmp_path):
    """A file of every type, and its compact version."""
    plain = tmp_path / "model.safetensors"
    save_file(tensors(), plain, metadata={"format": "pt"})
    target = tmp_path / "model.safetensors.compact"
    compact.write(plain, target)
    return plain, target


def test_every_type_and_every_value_comes_back(coded, tmp_path):
    plain, target = coded
    compact.read(target, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == plain.read_bytes()
    loaded, made = compact.state(tmp_path), tensors()
    assert loaded.keys() == made.keys()
    for name, tensor in made.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert torch.equal(loaded[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


def test_a_compact_file_is_a_safetensors_file(coded):
    with safe_open(coded[1], framework="pt") as opened:
        assert set(opened.keys()) == set(tensors())
        assert opened.metadata()["format"] == compact.FORMAT


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(coded, tmp_path):
    plain, target = coded
    whole = target.read_bytes()
    refused = 0
    for place in np.random.default_rng(0).integers(0, 8 * len(whole), 150).tolist():
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        target.write_bytes(damaged)
        try:
            compact.read(target, tmp_path / "again")
        except UserError as error:
            refused += 1
            assert "model.safetensors.compact is" in str(error)
        else:
            assert (tmp_path / "again").read_bytes() == plain.read_bytes()
    assert refused > 100


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_file_that_is_cut_off_is_refused(coded, length):
    target = coded[1]
    target.write_bytes(target.read_bytes()[:length])
    with pytest.raises(UserError, match="damaged or not whole: copy or download it again"):
        compact.state(target.parent)


def test_a_newer_format_is_named(coded, monkeypatch):
    monkeypatch.setattr(compact, "FORMAT", "tamp-compact-0")
    with pytest.raises(UserError, match="'tamp-compact-1': it needs a newer version"):
        compact.state(coded[1].parent)


def test_a_tensor_at_a_time_is_in_memory(tmp_path, monkeypatch):
    """Of 24 tensors: writing and expanding hold few, loading holds all and few more."""
    monkeypatch.setattr(compact, "CHUNK", 2**13)
    size = 4 * 256 * 512
    save_file({f"w{n}": torch.rand(256, 512) for n in range(24)}, tmp_path / "model.safetensors")

    def peak(call, *arguments):
        tracemalloc.start()
        made = call(*arguments)
        most = tracemalloc.get_traced_memory()[1] / size
        tracemalloc.stop()
        return most, made

    target = tmp_path / "model.safetensors.compact"
    assert peak(compact.write, tmp_path / "model.safetensors", target)[0] < 6
    assert peak(compact.read, target, tmp_path / "again")[0] < 6
    most, loaded = peak(compact.state, tmp_path)
    assert len(loaded) == 24 and most < 24 + 6


# Folders --------------------------------------------------------------------------------------------------------------


def pruned(mini, **level):
    model, processor = mini
    return model, processor, tamp.prune(model, None, tamp.Recipe.preset("magnitude", **level), progress=False)


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("level", [{"sparsity": 0.5}, {"pattern": "2:4"}])
def test_a_compact_folder_is_loaded_verified_and_expanded(mini, tmp_path, level):
    model, processor, report = pruned(mini, **level)
    plain = tamp.save(model, processor, tmp_path / "plain", report)
    small = tamp.save(model, processor, tmp_path / "small", report, format="compact")
    loaded, again = tamp.load(small, device="cpu")
    usual, _ = tamp.load(plain, device="cpu")
    for name, tensor in usual.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]) and tensor.dtype == loaded.state_dict()[name].dtype
    said = [{**each.config.to_dict(), "_name_or_path": ""} for each in (loaded, usual)]
    assert said[0] == said[1] and not loaded.training
    assert loaded.generation_config.to_dict() == usual.generation_config.to_dict()
    assert models.name_of(loaded) == str(small) and type(again) is type(processor)
    assert tamp.verify(small)["report"]["sparsity"] == 0.5
    assert contents(tamp.expand(small, tmp_path / "expanded")) == contents(plain)
    assert (small / "model.safetensors.compact").stat().st_size < 0.45 * (plain / "model.safetensors").stat().st_size


def test_a_loaded_model_holds_the_tensors_that_were_decoded_and_no_copies(tmp_path, monkeypatch):
    """So loading in the type that was saved needs the memory of the model and of the tensor at hand."""
    model, processor, report = pruned(tamp.load("mini-llava-next", device="cpu", dtype="bfloat16"), sparsity=0.5)
    small = tamp.save(model, processor, tmp_path / "small", report, format="compact")
    decoded, state = [], compact.state

    def watched(folder):
        found = state(folder)
        decoded.extend(tensor.data_ptr() for tensor in found.values())
        return found

    monkeypatch.setattr(compact, "state", watched)
    loaded, _ = tamp.load(small, device="cpu", dtype="bfloat16")
    assert sorted(tensor.data_ptr() for tensor in loaded.parameters()) == sorted(decoded)


def test_others_refuse_a_compact_folder(mini, tmp_path):
    model, processor, _ = pruned(mini, sparsity=0.5)
    small = tamp.save(model, processor, tmp_path / "small", format="compact")
    for kind in (transformers.AutoModelForImageTextToText, transformers.LlavaNextForConditionalGeneration):
        with pytest.raises(OSError, match=r"no file named model.safetensors"):
            kind.from_pretrained(small)


def test_damage_is_found_by_verify_load_and_expand(mini, tmp_path):
    model, processor, _ = pruned(mini, sparsity=0.5)
    small = tamp.save(model, processor, tmp_path / "small", format="compact")
    file = small / "model.safetensors.compact"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for call in (tamp.verify, lambda folder: tamp.expand(folder, tmp_path / "out")):
        with pytest.raises(UserError, match="is not what was saved"):
            call(small)
    with pytest.raises(UserError, match="damaged or not whole"):
        tamp.load(small, device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", [OSError("No space left on device"), KeyboardInterrupt()])
def test_an_interruption_leaves_nothing(mini, tmp_path, monkeypatch, fault):
    model, processor, _ = pruned(mini, sparsity=0.5)
    small = tamp.save(model, processor, tmp_path / "small", format="compact")

    def fail(source, target):
        target.write_bytes(b"half")
        raise fault

    expected = UserError if isinstance(fault, OSError) else KeyboardInterrupt
    monkeypatch.setattr(compact, "write", fail)
    with pytest.raises(expected):
        tamp.save(model, processor, tmp_path / "other", format="compact")
    monkeypatch.setattr(compact, "read", fail)
    with pytest.raises(expected):
        tamp.expand(small, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_what_is_not_compact_is_not_expanded_and_unknown_formats_are_named(mini, tmp_path):
    plain = tamp.save(*mini, tmp_path / "plain")
    with pytest.raises(UserError, match=r"not a compact folder.*Use it as it is"):
        tamp.expand(plain, tmp_path / "out")
    with pytest.raises(UserError, match="no format 'compakt'. Did you mean 'compact'"):
        tamp.save(*mini, tmp_path / "other", format="compakt")
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_half_precision_tied_weights_stay_half_and_tied(shipped, tmp_path):
    model, processor = tamp.load("mini-llava-next", device="cpu", dtype="bfloat16")
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    tamp.save(model, processor, tmp_path / "small", format="compact")
    loaded, _ = tamp.load(tmp_path / "small", device="cpu", dtype="bfloat16")
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values()))
    widened, _ = tamp.load(tmp_path / "small", device="cpu")
    assert widened.dtype == torch.float32 and set(widened.stored_dtypes.values()) >= {torch.bfloat16}


@pytest.mark.parametrize("family", ["qwen3_moe", "llama4", "gpt2", "qwen2_5_vl", "gemma3", "mllama", "phi4_multimodal"])
def test_families_are_built_from_what_was_coded(family, tmp_path):
    """Experts that are stored one by one, transposed weights, renamed tensors; in shards."""
    model, samples = families.build(family)
    tamp.prune(model, samples, tamp.Recipe.preset("magnitude", sparsity=0.5), progress=False, allow_partial=True)
    folder = tmp_path / "small"
    model.save_pretrained(folder, max_shard_size="60KB")
    before = contents(folder)
    assert "model.safetensors.index.json" in before
    digests = {path.name: checkpoint.sha256(path) for path in sorted(folder.glob("*.safetensors"))}
    (folder / checkpoint.MANIFEST).write_text(json.dumps({"report": None, "files": digests}))
    compact.squeeze(folder)
    assert len(compact.files(folder)) == len(digests) > 1 and not list(folder.glob("*.safetensors"))
    state = compact.state(folder)
    places = {tensor.data_ptr() for tensor in state.values()}
    again, loaded = type(model).from_pretrained(None, config=model.config, state_dict=state, output_loading_info=True)
    assert not any(loaded[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for (name, tensor), other in zip(model.state_dict().items(), again.state_dict().values()):
        assert torch.equal(tensor, other), name
    if family == "qwen2_5_vl":
        shared = [parameter.data_ptr() in places for parameter in again.parameters()]
        assert sum(shared) == len(shared), "loading holds weights twice"
    expanded = contents(tamp.expand(folder, tmp_path / "expanded"))
    del expanded[checkpoint.MANIFEST]
    assert expanded == before


def test_a_model_for_a_compact_folder_is_pruned_further(mini, tmp_path):
    model, processor, _ = pruned(mini, sparsity=0.5)
    small = tamp.save(model, processor, tmp_path / "small", format="compact")
    loaded, _ = tamp.load(small, device="cpu")
    report = tamp.prune(loaded, None, tamp.Recipe.preset("magnitude", sparsity=0.6), progress=False)
    assert report.sparsity == pytest.approx(0.6, abs=1e-4)
