#!/usr/bin/env bash
# Guess: where all trials have the same value no parameter matters: importances are 0, or not a number.
# Happens: the default evaluator finds 0 for each parameter, and the normalization, on by default, makes equal shares of that:
#   50 % each of two, with a warning that they will be equal. A plot of it is that of two parameters that matter equally.
# Source: optuna/importance/__init__.py, get_param_importances: "if s == 0.0: ... 1.0 / n_params", not in its documentation.
# Seen: normalized {'decay': 0.5, 'rate': 0.5}, as found {'decay': 0.0, 'rate': 0.0}
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet optuna==5.0.0
venv/bin/python - <<'PY'
import sys
import warnings

import optuna

print("python", sys.version.split()[0], "optuna", optuna.__version__)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `normalize`
optuna.logging.set_verbosity(optuna.logging.WARNING)


def objective(trial):
    trial.suggest_float("rate", 0, 1)
    trial.suggest_float("decay", 0, 1)
    return 1.0


study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
study.optimize(objective, n_trials=30)
normalized = optuna.importance.get_param_importances(study)
found = optuna.importance.get_param_importances(study, normalize=False)
print(f"normalized {normalized}, as found {found}")
if (normalized, found) != ({"rate": 0.5, "decay": 0.5}, {"rate": 0.0, "decay": 0.0}):
    sys.exit("changed: other importances where nothing matters")
PY
