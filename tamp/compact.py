"""Compact folders: the files of a saved model, coded without loss, smaller the more weights are zero.

A tensor is read as whole numbers of its own width. One bit per number says whether it is kept: whether any of its bits
is set, so that a negative zero is kept. The kept numbers are rotated left by one bit, which moves the sign of a float behind
its mantissa, and split into bytes: all first bytes, which hold the exponents, are one section, all second bytes the next.
A section is deflated if that makes it shorter, and so are the bits of the mask. Exponents take few values and need about two
of their eight bits; under 2:4 a byte of the mask takes 36 values and needs five bits.

A compact file is a safetensors file under another name, so that no other program takes it for the model: one tensor
of bytes per tensor, with the header of the original file in its metadata. Expanding gives that file back bit for bit.
"""

import contextlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tamp import checkpoint, verifying
from tamp.errors import UserError, unknown
from tamp.files import finished, sha256
from tamp.report import Report

SUFFIX = ".compact"
"""What the name of a weight file ends in once it is coded."""

FORMAT = "tamp-compact-1"
FORMATS = ("plain", "compact")
CHUNK = 2**22  # numbers that are coded together
PIECE = struct.Struct("<I")  # how many numbers a piece holds
SECTION = struct.Struct("<?Q")  # whether it is deflated, and its bytes
ALIGNMENT = 8  # of the data in a safetensors file

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types by their names in a safetensors file."""


def save(
    model: nn.Module,
    processor,
    folder: str | Path,
    report: Report | None = None,
    overwrite: bool = False,
    format: str = "plain",
) -> Path:
    """Save a model and its processor, all of it or nothing.

    Weights are written in the type they were loaded from, read again and counted, see :func:`tamp.checkpoint.save`.

    Args:
        model: the model, pruned or not.
        processor: its processor or tokenizer; None to leave it out.
        folder: where to; must not exist unless ``overwrite``.
        report: from :func:`tamp.prune`, recorded beside the weights in ``tamp.json`` and ``tamp.csv``.
        overwrite: replace the folder.
        format: ``"plain"``, which ``from_pretrained`` loads, or ``"compact"``: smaller files, without loss, which
            :func:`tamp.load` loads and :func:`expand` makes plain.

    Returns:
        The folder.

    Raises:
        UserError: if there is no such format, the folder exists, writing fails, the model carries a PEFT adapter, or its
            files lack weights or zeros that the model has.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    return checkpoint.save(model, processor, folder, report, overwrite, squeeze if format == "compact" else None)


def squeeze(folder: Path) -> None:
    """Replace the weight files of a saved folder by compact ones, one after the other, and name them in its manifest."""
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    plain = dict(manifest["files"])
    for name in (name for name in plain if name.endswith(".safetensors")):
        coded = folder / (name + SUFFIX)
        write(folder / name, coded)
        (folder / name).unlink()
        del manifest["files"][name]
        manifest["files"][coded.name] = sha256(coded)
    manifest |= {"format": FORMAT, "plain": plain}
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def expand(folder: str | Path, out: str | Path, overwrite: bool = False) -> Path:
    """Write a compact folder as the plain one it was made from, which ``from_pretrained`` loads.

    Args:
        folder: saved by :func:`save` with ``format="compact"``.
        out: folder to write; must not exist unless ``overwrite``.
        overwrite: replace the folder.

    Returns:
        The folder that was written.

    Raises:
        UserError: if the folder is not compact, was damaged, or nothing can be written.
    """
    folder = Path(os.path.expanduser(folder))
    manifest = verifying.verify(folder)
    if not files(folder) or "plain" not in manifest:
        raise UserError(f"{folder} is not a compact folder: there is no *{SUFFIX} file in it. Use it as it is.")
    with finished(out, overwrite) as beside:
        for path in sorted(folder.iterdir()):
            if path.name in manifest["files"] and path.name.endswith(SUFFIX):
                read(path, beside / path.name.removesuffix(SUFFIX))
            elif path.name != checkpoint.MANIFEST:
                (shutil.copytree if path.is_dir() else shutil.copy2)(path, beside / path.name)
        manifest["files"] = manifest.pop("plain")
        del manifest["format"]
        (beside / checkpoint.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        verifying.verify(beside)
    return Path(out)


def files(folder: Path) -> list[Path]:
    """List the compact files of a folder."""
    return sorted(folder.glob(f"*.safetensors{SUFFIX}"))


def state(folder: Path) -> dict[str, Tensor]:
    """Load the tensors of a compact folder, on the CPU.

    Raises:
        UserError: if a file is damaged, of a newer version, or holds a type that torch does not have.
    """
    found = {}
    for path in files(folder):
        original, tensors = _opened(path)
        header = json.loads(original)
        for name, numbers in tensors:
            entry = header[name]
            if entry["dtype"] not in DTYPES:
                raise UserError(
                    f"{path}: {name} has the type {entry['dtype']}, which is not loaded. Use `tamp expand`."
                )
            tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
            if len(numbers):  # bytes, which torch views as any type
                tensor = torch.from_numpy(numbers.view(np.uint8)).view(tensor.dtype).reshape(tensor.shape)
            found[name] = tensor
    return found


# Files -----------------------------------------------------------------------------------------------------------------


def write(source: Path, target: Path) -> None:
    """Code a safetensors file, a tensor at a time, in the order of its data.

    The header of the target comes first, but is known last: room is left for the longest it can be.

    Args:
        source: plain.
        target: compact.
    """
    with source.open("rb") as plain, target.open("wb") as out:
        original = plain.read(int.from_bytes(plain.read(8), "little")).decode()
        entries = _entries(original)
        start, largest = plain.tell(), 2 * source.stat().st_size + 2**16
        room = len(_header(original, dict.fromkeys(entries, (largest, 2 * largest, 2**32))))
        room = -(-room // ALIGNMENT) * ALIGNMENT
        out.seek(8 + room)
        places, at = {}, 0
        for name, (begin, end, width) in entries.items():
            plain.seek(start + begin)
            blob = encode(np.fromfile(plain, dtype=f"<u{width}", count=(end - begin) // width))
            out.write(blob)
            places[name] = (at, at + len(blob), zlib.crc32(blob))
            at += len(blob)
        out.seek(0)
        out.write(room.to_bytes(8, "little") + _header(original, places).ljust(room))


def read(source: Path, target: Path) -> None:
    """Write the plain safetensors file that a compact one was made from, a tensor at a time.

    Raises:
        UserError: if the file is damaged, or of a newer version.
    """
    original, tensors = _opened(source)
    with target.open("wb") as out:
        out.write(len(original.encode()).to_bytes(8, "little") + original.encode())
        for _, numbers in tensors:
            numbers.tofile(out)


def _entries(original: str) -> dict[str, tuple[int, int, int]]:
    """Read from a header where each tensor lies, in the order of the data: ``{name: (begin, end, bytes per number)}``."""
    header = {name: entry for name, entry in json.loads(original).items() if name != "__metadata__"}
    places = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        elements = int(np.prod(entry["shape"], dtype=np.int64))
        width = (end - begin) // elements if elements else 1
        places[name] = begin, end, width if width in (1, 2, 4, 8) else 1
    return places


def _header(original: str, places: dict[str, tuple[int, int, int]]) -> bytes:
    """Return the header of a compact file: places are (begin, end, checksum) per tensor."""
    sums = {name: checksum for name, (_, _, checksum) in places.items()}
    said = {"format": FORMAT, "plain": original, "sums": json.dumps([zlib.crc32(original.encode()), sums])}
    entries = {
        name: {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        for name, (begin, end, _) in places.items()
    }
    return json.dumps({"__metadata__": said, **entries}).encode()


def _opened(path: Path) -> tuple[str, Iterator[tuple[str, np.ndarray]]]:
    """Open a compact file.

    Returns:
        (header of the original, its tensors by name in the order of the data, as flat whole numbers).

    Raises:
        UserError: if the file is damaged, at once or when the damaged tensor is read, or of a newer version.
    """
    with _told(path), safe_open(path, framework="np") as opened:
        said = opened.metadata()
        total, sums = json.loads(said["sums"])
        if said["format"] != FORMAT:
            raise UserError(f"{path} is in the format {said['format']!r}: it needs a newer version of tamp.")
        original = said["plain"]
        if zlib.crc32(original.encode()) != total:
            raise ValueError("the header is not the one that was written")

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, (begin, end, width) in _entries(original).items():
            with _told(path), safe_open(path, framework="np") as opened:
                blob = memoryview(opened.get_tensor(name))
                if zlib.crc32(blob) != sums[name]:
                    raise ValueError(f"{name} is not what was written")
            yield name, decode(blob, (end - begin) // width, width)

    return original, tensors()


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Report what is raised on a damaged file in a sentence that names it."""
    try:
        yield
    except UserError:
        raise
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or not whole: copy or download it again.") from error


# Numbers ---------------------------------------------------------------------------------------------------------------


def encode(numbers: np.ndarray) -> bytes:
    """Code whole numbers without sign, (n,), of one, two, four or eight bytes."""
    width = numbers.itemsize
    parts = []
    for at in range(0, len(numbers), CHUNK):
        piece = numbers[at : at + CHUNK]
        keep = piece != 0
        values = piece[keep]
        values = (values << 1) | (values >> (8 * width - 1))
        planes = values.view(np.uint8).reshape(-1, width)
        parts.append(PIECE.pack(len(piece)))
        for section in (np.packbits(keep), *(planes[:, byte] for byte in reversed(range(width)))):
            parts += _section(np.ascontiguousarray(section))
    return b"".join(parts)


def _section(data: np.ndarray) -> tuple[bytes, bytes]:
    """Return the head of a section and its bytes, deflated if that makes them shorter."""
    shares = np.bincount(data, minlength=256) / max(len(data), 1)
    entropy = -(shares * np.log2(shares, where=shares > 0, out=np.zeros(256))).sum()
    shortest = data.tobytes()
    if entropy < 7.9:
        strategy = zlib.Z_HUFFMAN_ONLY if entropy > 1 else zlib.Z_RLE  # which finds runs, of zeros for instance
        coder = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
        shortest = min(shortest, coder.compress(data) + coder.flush(), key=len)
    return SECTION.pack(len(shortest) < len(data), len(shortest)), shortest


def decode(blob: bytes | memoryview, count: int, width: int) -> np.ndarray:
    """Return the whole numbers (count,) of ``width`` bytes that :func:`encode` coded."""
    numbers = np.zeros(count, dtype=f"<u{width}")
    at = start = 0

    def section(size: int) -> np.ndarray:
        nonlocal at
        deflated, length = SECTION.unpack_from(blob, at)
        at += SECTION.size + length
        data = blob[at - length : at]
        return np.frombuffer(zlib.decompress(data, -zlib.MAX_WBITS, size) if deflated else data, dtype=np.uint8)

    while start < count:
        (length,) = PIECE.unpack_from(blob, at)
        at += PIECE.size
        keep = np.unpackbits(section(-(-length // 8)), count=length).view(bool)
        kept = int(np.count_nonzero(keep))
        planes = np.empty((kept, width), dtype=np.uint8)
        for byte in reversed(range(width)):
            planes[:, byte] = section(kept)
        values = planes.view(f"<u{width}")[:, 0]
        numbers[start : start + length][keep] = (values >> 1) | (values << (8 * width - 1))
        start += length
    return numbers
