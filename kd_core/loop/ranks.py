"""Which of several processes this one is, by the environment that launchers set.  Imports no PyTorch or Accelerate."""

from __future__ import annotations

import os
from collections.abc import Mapping

from kd_core.errors import UserError

# Under which names Accelerate looks for them (accelerate.utils.environment.get_cpu_distributed_information): torchrun's
# first, then those of MPI's launchers.  On GPUs it knows torchrun's alone.
RANKS = {
    "rank": ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    "size": ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    "local_rank": ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    "local_size": ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
}


class RankMistake(UserError):
    """Rank variables that contradict each other: no process knows whether it is the first, so all print the message."""


def is_first(environ: Mapping[str, str]) -> bool:
    """Whether the process with this environment is the first one, which prints for all."""
    return next((environ[name] for name in RANKS["rank"] if name in environ), "0") in ("0", "-1")


def is_first_process() -> bool:
    """Whether this process is the first one, also before Accelerate is started."""
    return is_first(os.environ)
