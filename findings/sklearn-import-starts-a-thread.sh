#!/usr/bin/env bash
# Guess: after `import sklearn` a process has its own thread and at most BLAS's, which end when it forks, so a server that imports
#   its libraries once and forks a child per job is single-threaded when it does.
# Happens: where pandas and pyarrow are installed (as they are beside `datasets`), scikit-learn imports pandas, pandas imports pyarrow,
#   and Arrow's allocator starts a background thread, jemalloc_bg_thd. It is there before any job, a fork does not end it in the
#   parent, and every child is forked from a process with two threads (Python 3.12 and newer warn of that).
# Source: sklearn/utils/fixes.py has "try: import pandas" at its top; pandas/compat/pyarrow.py imports pyarrow; the thread's name is
#   that of jemalloc's background threads (jemalloc(3), opt.background_thread). Seen on Linux, x86_64.
# Seen: threads after numpy and scipy, and a fork: python; after sklearn, and a fork: jemalloc_bg_thd, python
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6 pandas==3.1.1 pyarrow==26.0.1
venv/bin/python -W ignore - <<'PY'
import os
import sys


def threads():
    """Names of this process's threads after a fork, which ends those of OpenBLAS."""
    if not (child := os.fork()):
        os._exit(0)
    os.waitpid(child, 0)
    folder = "/proc/self/task"
    return sorted(open(f"{folder}/{thread}/comm").read().strip() for thread in os.listdir(folder))


import numpy
import scipy.stats

before = threads()
import sklearn

after = threads()
pandas, pyarrow = (sys.modules.get(name) for name in ("pandas", "pyarrow"))
print("python", sys.version.split()[0], "scikit-learn", sklearn.__version__, end=" ")
print(*(f"{one.__name__} {one.__version__}" for one in (pandas, pyarrow) if one))
print(f"after numpy and scipy, and a fork: {', '.join(before)}; after sklearn, and a fork: {', '.join(after)}")
if len(before) != 1 or len(after) != 2 or "jemalloc_bg_thd" not in after:
    sys.exit("changed: other threads")
PY
