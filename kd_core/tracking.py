"""`python -m kd_core.tracking RUN_FOLDER ...`: send W&B what it lacks of runs."""

from kd_core.run.script import run_script
from kd_core.run.tracking import main

if __name__ == "__main__":
    run_script(main, "kd_core.tracking")
