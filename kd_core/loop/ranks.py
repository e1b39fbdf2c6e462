"""The rank of this process, from the variables that launchers set.  Imports neither PyTorch nor Accelerate."""

from __future__ import annotations

import os
from collections.abc import Mapping

from kd_core.errors import UserError

# The names that Accelerate looks up (accelerate.utils.environment.get_cpu_distributed_information): torchrun's first,
# then those of MPI's launchers.  On GPUs it reads torchrun's only.
RANKS = {
    "rank": ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    "size": ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    "local_rank": ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    "local_size": ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
}


class RankMistake(UserError):
    """Contradictory rank variables: no process knows whether it is the first, so all print the message."""


def rank_in(environ: Mapping[str, str]) -> str:
    """The rank of the process with this environment, as its launcher wrote it; "0" without a launcher."""
    return next((environ[name] for name in RANKS["rank"] if name in environ), "0")


def is_first(environ: Mapping[str, str]) -> bool:
    """Whether the process with this environment is the first one, the only one that prints."""
    return rank_in(environ) in ("0", "-1")


def is_first_process() -> bool:
    """Whether this process is the first one; also works before Accelerate is started."""
    return is_first(os.environ)
