"""`python -m kd_core.cache`: what teachers' logits take on disk, and how to erase them."""

from kd_core.run.script import run_script
from kd_core.teachers.cache import main

if __name__ == "__main__":
    run_script(main, "kd_core.cache")
