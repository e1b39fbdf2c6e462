#!/usr/bin/env bash
# Guess: the code of a metric that `evaluate.load` reads from a folder is Python, and may be written as Python allows.
# Happens: before it is imported its lines are searched for imports. `import datasets, evaluate` is taken for one package
#   called "datasets," and loading ends with the advice to install it. On two lines the same metric loads.
# Source: evaluate/loading.py, `get_imports`: the regular expression "^import\s+(\.?)([^\s\.]+)".
# Seen: two lines: loaded; one line: ImportError: To be able to use one_line, you need to install the following
#   dependencies['datasets,'] using 'pip install datasets,' for instance'
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet evaluate==0.4.6 datasets==5.2.0
export HF_HOME="$home/cache" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PY'
import sys
from pathlib import Path

import datasets
import evaluate

print("python", sys.version.split()[0], "evaluate", evaluate.__version__, "datasets", datasets.__version__)
METRIC = '''
class Count(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"count": len(references)}
'''
given = {}
for name, imports in (("two_lines", "import datasets\nimport evaluate\n"), ("one_line", "import datasets, evaluate\n")):
    Path(name).mkdir()
    Path(name, f"{name}.py").write_text(imports + METRIC)
    try:
        evaluate.load(f"./{name}")
        given[name] = "loaded"
    except ImportError as error:
        given[name] = f"ImportError: {error}"
    print(f"{name.replace('_', ' ')}: {given[name]}")
if given["two_lines"] != "loaded" or "pip install datasets," not in given["one_line"]:
    sys.exit("changed: imports are read otherwise")
PY
