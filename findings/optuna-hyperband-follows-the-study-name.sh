#!/usr/bin/env bash
# Guess: a study with a seeded sampler, a deterministic objective and one worker repeats itself.
# Happens: HyperbandPruner puts a trial into a bracket by a checksum of the study's name and the trial's number, and a study without a name has
#   a random one: other trials are stopped early in each run. A fixed study_name repeats.
# Source: _get_bracket_id in optuna/pruners/_hyperband.py; a note in the documentation of HyperbandPruner.
# Seen: two studies without a name stop trials at different steps, two of the same name at the same
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet optuna==5.0.0
venv/bin/python - <<'PY'
import sys

import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)


def objective(trial):
    value = trial.suggest_float("x", 0, 1)
    for step in range(27):
        trial.report(value + 1 / (step + 1), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return value


def steps(name):
    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=27)
    study = optuna.create_study(study_name=name, sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)
    study.optimize(objective, n_trials=40)
    return [len(trial.intermediate_values) for trial in study.trials]


print("python", sys.version.split()[0], "optuna", optuna.__version__)
unnamed, named = [steps(None), steps(None)], [steps("a"), steps("a")]
for title, (first, second) in (("no name", unnamed), ("same name", named)):
    print(f"{title}, steps of each trial:", *first[:15], "... and", *second[:15], "...")
if unnamed[0] == unnamed[1] or named[0] != named[1]:
    sys.exit("changed: brackets do not follow the name")
PY
