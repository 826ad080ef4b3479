"""Which file formats keep the zeros of a pruned model exactly? Quantized by the formats' own packages, and read back.

    pip install gguf ggml-python onnx onnxruntime openvino nncf
    python tests/benchmarks/export_zeros.py [--sparsity 0.5] [--formats gguf ggml onnx openvino]

The package ggml-python is built from source, which takes cmake and a compiler. The matrices are those of
``mini-llava-next``, pruned. A format keeps a zero if the number that is read back is exactly zero. What is recorded of
formats that are not asked for stays.
"""

import argparse
import json
import logging
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import recording
import torch

import tamp
from tamp import models

SHOWN = {"gguf": "GGUF", "ggml": "GGUF, by ggml", "onnx": "ONNX", "openvino": "OpenVINO"}
NAMES = {shown: name for name, shown in SHOWN.items()}
GGUF = ("F16", "BF16", "Q8_0", "Q5_0", "Q4_0", "Q5_1", "Q4_1")
GGML = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
"""Types that the package gguf reads and does not write."""

ONNX = {"float32": None, "int8": "QInt8", "uint8": "QUInt8"}
OPENVINO = ("f32", "f16", "int8_sym", "int8_asym", "int4_sym", "int4_asym")
WIDTH = 32
"""Weights of a row that a block of GGUF holds; a matrix whose width it does not divide is left out."""

SUPER = 256
"""Weights of a row that a block of the types of `GGML` holds."""


def gguf_back(weight: np.ndarray, name: str) -> np.ndarray:
    """Quantize a matrix as a GGUF file stores it, and read it back."""
    import gguf

    kind = gguf.GGMLQuantizationType[name]
    return gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)


def ggml_back(weight: np.ndarray, name: str) -> np.ndarray:
    """Quantize a matrix by ggml itself, the library behind llama.cpp, and read it back by gguf."""
    import ctypes

    import ggml
    import gguf

    kind = gguf.GGMLQuantizationType[name]
    weight = np.ascontiguousarray(weight)
    packed = np.empty(gguf.quant_shape_to_byte_shape(weight.shape, kind), dtype=np.uint8)
    numbers = weight.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    written = ggml.ggml_quantize_chunk(kind, numbers, ctypes.c_void_p(packed.ctypes.data), 0, *weight.shape, None)
    assert written == packed.nbytes
    return gguf.quants.dequantize(packed, kind)


def onnx_back(weight: np.ndarray, name: str) -> np.ndarray:
    """Write a graph of one product with a matrix, quantize its weights with onnxruntime, and read them back."""
    import onnx
    from onnx import helper, numpy_helper
    from onnxruntime import quantization

    shapes = {"inputs": [1, weight.shape[1]], "outputs": [1, weight.shape[0]]}
    ends = [helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, shape) for end, shape in shapes.items()]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["inputs", "weight"], ["outputs"])],
        "linear",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(np.ascontiguousarray(weight.T), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "linear.onnx"), Path(folder, "quantized.onnx")
        onnx.save(model, before)
        if ONNX[name]:
            kind = getattr(quantization.QuantType, ONNX[name])
            logging.disable(logging.WARNING)  # it advises to fold constants first, and there are none
            quantization.quantize_dynamic(before, after, weight_type=kind)
            logging.disable(logging.NOTSET)
            before = after
        stored = {each.name: numpy_helper.to_array(each) for each in onnx.load(before).graph.initializer}
    if not ONNX[name]:
        return stored["weight"].T
    shift = stored["weight_zero_point"].astype(np.int32)
    return (stored["weight_quantized"].astype(np.int32) - shift).T * stored["weight_scale"]


def openvino_back(weights: list[np.ndarray], name: str) -> list[np.ndarray]:
    """Write a graph of products with matrices as OpenVINO's files, its weights compressed, and read them back.

    A matrix is read by multiplying the identity with it, in float32. One graph holds them all, since compressing and
    compiling take seconds for each graph.
    """
    import openvino
    from openvino import opset13 as ops

    inputs = {width: ops.parameter([-1, width], np.float32) for width in {weight.shape[1] for weight in weights}}
    constants = [ops.constant(np.ascontiguousarray(weight)) for weight in weights]
    products = [ops.matmul(inputs[each.shape[1]], each, False, True) for each in constants]
    model = openvino.Model(products, list(inputs.values()), "linears")
    if name.startswith("int"):
        import nncf

        nncf.set_log_level(logging.ERROR)
        mode = getattr(nncf.CompressWeightsMode, name.upper())
        groups = {"ratio": 1.0, "group_size": WIDTH, "all_layers": True} if name.startswith("int4") else {}
        model = nncf.compress_weights(model, mode=mode, **groups)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "linears.xml")
        openvino.save_model(model, path, compress_to_fp16=name == "f16")
        precise = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        read = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU", precise)
        made = read([np.eye(width, dtype=np.float32) for width in inputs])
        return [made[place].T for place in range(len(weights))]


def main(arguments: list[str] | None = None) -> dict:
    """Measure, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--formats", nargs="+", default=list(SHOWN))
    parser.add_argument("--types", nargs="+", help="types of these formats (default: all)")
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    model, processor = tamp.load("mini-llava-next", device="cpu")
    samples = tamp.calibration_set("mini-vqa", processor, 16)
    tamp.prune(model, samples, tamp.Recipe.preset("wanda", sparsity=options.sparsity), progress=False)
    weights = [matrix.weight.detach() for matrix in models.all_linears(model).values()]
    weights = [weight.to(torch.float32).numpy() for weight in weights if weight.shape[1] % WIDTH == 0]
    ways = {
        "gguf": (GGUF, lambda weights, name: [gguf_back(weight, name) for weight in weights]),
        "ggml": (GGML, lambda weights, name: [ggml_back(weight, name) for weight in weights]),
        "onnx": (tuple(ONNX), lambda weights, name: [onnx_back(weight, name) for weight in weights]),
        "openvino": (OPENVINO, openvino_back),
    }
    path = options.out / "export_zeros.json"
    before = json.loads(path.read_text()) if path.is_file() else {"rows": [], "packages": {}}
    rows = [row for row in before["rows"] if NAMES[row["file"]] not in options.formats]
    for kind in options.formats:
        for name in [name for name in ways[kind][0] if name in (options.types or ways[kind][0])]:
            kept = zeros = 0
            fitting = [weight for weight in weights if kind != "ggml" or weight.shape[1] % SUPER == 0]
            for weight, back in zip(fitting, ways[kind][1](fitting, name), strict=True):
                kept += int((back[weight == 0] == 0).sum())
                zeros += int((weight == 0).sum())
            rows.append(
                {"file": SHOWN[kind], "type": name, "zeros": zeros, "kept": kept, "share": round(kept / zeros, 4)}
            )
    rows.sort(key=lambda row: list(ways).index(NAMES[row["file"]]))  # stable
    packages = {
        "gguf": ["gguf"],
        "ggml": ["gguf", "ggml-python"],
        "onnx": ["onnx", "onnxruntime"],
        "openvino": ["openvino", "nncf"],
    }
    result = {
        "model": "mini-llava-next",
        "sparsity": options.sparsity,
        "packages": before["packages"] | {name: version(name) for kind in options.formats for name in packages[kind]},
        "rows": rows,
    }
    recording.write("export_zeros", result, options.out)
    return result


def table(recorded: dict) -> str:
    """Write the share of zeros that every format keeps."""
    lines = ["| file | type | zeros that stay zero |", "|---|---|---|"]
    lines += [f"| {row['file']} | {row['type']} | {row['share']:.1%} |" for row in recorded["rows"]]
    made = ", ".join(f"{name} {number}" for name, number in recorded["packages"].items())
    note = f"The {recorded['rows'][0]['zeros']:,} zeros of `{recorded['model']}` at {recorded['sparsity']:.0%}; {made}."
    wide = next((row["zeros"] for row in recorded["rows"] if row["type"] in GGML), None)
    if wide:
        note += f" The types by ggml hold {SUPER} weights of a row together: the {wide:,} zeros of matrices that fit."
    return "\n".join([*lines, "", note])


if __name__ == "__main__":
    print(table(main()))
