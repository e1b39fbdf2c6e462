"""The parts of sweeps/run_local.py, which runs a W&B sweep file without W&B.

A module imports from those before it in this line, never after:

sweep_file < trial_command < trial < samplers < study < display, results, plots < worker < run.

The first three need neither Optuna nor NumPy, so that mistakes in the sweep file are reported at once.
"""
