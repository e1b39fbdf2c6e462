#!/usr/bin/env bash
# Guess: `import timm`, a library of networks, imports W&B only where somebody logs to it (`timm.utils.update_summary(log_wandb=True)`).
# Happens: wherever W&B is installed `import timm` imports all of it, so a script that lists networks or prints its help waits for it;
#   whoever blocks W&B, or sets its environment variables, has to do that before importing timm.
# Source: timm/data/readers/reader_image_folder.py imports timm.utils, whose summary.py has "try: import wandb" at its top.
# Seen: W&B is imported by timm: True
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet timm==1.0.31 wandb==0.31.0 torch==2.14.1
venv/bin/python - <<'PY'
import sys

import torch
import torchvision

assert "wandb" not in sys.modules
import timm
import timm.version

print("python", sys.version.split()[0], "torch", torch.__version__, "torchvision", torchvision.__version__, end=" ")
print("timm", timm.__version__, "wandb", sys.modules["wandb"].__version__ if "wandb" in sys.modules else "not imported")
print("W&B is imported by timm:", "wandb" in sys.modules)
if "wandb" not in sys.modules:
    sys.exit("changed: timm leaves W&B alone until it is used")
PY
