"""`python -m kd_core.porting`: other projects' experiment files as settings of train_kd.py (docs/porting.md)."""
