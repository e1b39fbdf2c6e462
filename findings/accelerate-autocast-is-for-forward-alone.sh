#!/usr/bin/env bash
# Guess: a network that Accelerator(mixed_precision="bf16") has prepared computes in bf16, by whichever of its methods it is called.
# Happens: prepare() puts autocast around `forward` alone. The methods by which timm gives features, forward_features and
#   forward_intermediates, compute in fp32: as slow, and as large in memory, as without mixed precision, and with other values than those
#   behind the logits. Nothing is said; a `with accelerator.autocast()` around the call is needed.
# Source: accelerate.Accelerator.prepare_model replaces model.forward; in accelerate's documentation mixed precision is a property of
#   the prepared model.
# Seen: forward bfloat16; forward_features float32; forward_intermediates float32; forward_features in autocast() bfloat16
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet accelerate==1.15.0 timm==1.0.31 torch==2.14.1
venv/bin/python - <<'PY'
import sys

import accelerate
import timm
import torch

accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
model = accelerator.prepare(timm.create_model("test_vit", num_classes=10))
types = []
model.blocks[0].mlp.fc1.register_forward_hook(lambda layer, inputs, output: types.append(str(output.dtype).removeprefix("torch.")))
images = torch.rand(1, 3, 160, 160)
with torch.no_grad():
    model(images)
    model.forward_features(images)
    model.forward_intermediates(images)
    with accelerator.autocast():
        model.forward_features(images)
print("python", sys.version.split()[0], "torch", torch.__version__, "timm", timm.__version__, "accelerate", accelerate.__version__)
calls = ["forward", "forward_features", "forward_intermediates", "forward_features in autocast()"]
print("; ".join(f"{call} {kind}" for call, kind in zip(calls, types, strict=True)))
if types != ["bfloat16", "float32", "float32", "bfloat16"]:
    sys.exit("changed: mixed precision holds for the other methods, too")
PY
