"""`python -m kd_core.porting FILE.yaml`: see `kd_core.porting.command`."""

from kd_core.porting.command import main
from kd_core.run.script import run_script

run_script(main, "kd_core.porting")
