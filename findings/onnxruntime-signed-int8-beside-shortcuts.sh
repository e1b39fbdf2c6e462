#!/usr/bin/env bash
# Guess: `quantize_static` with its defaults (QDQ, signed activations) makes int8 convolutions, as it does in a plain
#   chain; the documentation calls them "the first choice" (ONNX Runtime, quantization, "Data type selection").
# Happens: on x86-64 each convolution that reads a tensor which a shortcut reads too runs in float32, between
#   conversions: half of a residual network, which takes up to twice the time of the float32 file, without a word.
#   With unsigned activations (QuantType.QUInt8) all of them are int8.
# Source: onnxruntime/core/optimizer/qdq_transformer/qdq_s8_to_u8.cc: signed activations are made unsigned, for which
#   x86-64 has kernels, but only where a QuantizeLinear has one reader: `CheckOutputEdges(graph, node, 1)`.
# Seen: float32 convolutions of 8: chain 0 signed, 0 unsigned; residual 4 signed, 0 unsigned
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
venv/bin/python - <<'PY'
import logging
import platform
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_static

logging.disable()  # it recommends a preprocessing that changes nothing here
onnxruntime.set_default_logger_severity(3)
versions = ("onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__)
print("python", sys.version.split()[0], *versions, platform.machine())
if platform.machine() not in ("x86_64", "AMD64"):
    print("nothing to see here: the behavior is that of x86-64")
    sys.exit(0)
draw = np.random.default_rng(0)


def network(residual):
    """Four blocks of two convolutions and ReLUs on 8 channels, with or without a shortcut around each block."""
    nodes, weights, last = [], [], "x"
    for block in range(4):
        entry = last
        for layer in (f"{block}a", f"{block}b"):
            weights.append(numpy_helper.from_array(draw.normal(size=(8, 8, 3, 3)).astype(np.float32), f"w{layer}"))
            nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
            nodes.append(helper.make_node("Relu", [f"c{layer}"], [last := f"r{layer}"]))
        if residual:
            nodes.append(helper.make_node("Add", [entry, last], [last := f"s{block}"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8, 16, 16]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


class Images:
    def __init__(self):
        self.left = [{"x": draw.normal(size=(4, 8, 16, 16)).astype(np.float32)}]

    def get_next(self):
        return self.left.pop() if self.left else None


def left_in_float32(name, **settings):
    """Convolutions that are no integer ones in the graph that runs."""
    quantize_static(f"{name}.onnx", "int8.onnx", Images(), **settings)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = "runs.onnx"
    onnxruntime.InferenceSession("int8.onnx", options, providers=["CPUExecutionProvider"])
    operations = [node.op_type for node in onnx.load("runs.onnx").graph.node]
    return 8 - operations.count("QLinearConv")


found = {}
for name in ("chain", "residual"):
    onnx.save(network(name == "residual"), f"{name}.onnx")
    found[name] = left_in_float32(name), left_in_float32(name, activation_type=QuantType.QUInt8)
print("float32 convolutions of 8:", "; ".join(f"{name} {s} signed, {u} unsigned" for name, (s, u) in found.items()))
if found != {"chain": (0, 0), "residual": (4, 0)}:
    sys.exit("changed: other convolutions stay in float32")
PY
