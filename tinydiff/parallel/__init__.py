"""A batch split over processes: the cores of this machine (local.py), or the ranks of an MPI job (mpi.py).

Both give the same `Workers`, so nothing else has to know which:

    ranks = connect("local")                    # or "mpi", in a program that mpiexec has started several times
    with ranks.workers(build, 2) as workers:
        losses = workers.gradients(losses_of, batch, seed)

Read next: local.py, then mpi.py.
"""

from tinydiff.parallel.local import (
    ALONE,
    ONE_THREAD,
    Alone,
    Batch,
    Losses,
    WorkerError,
    Workers,
    available_cores,
    default_workers,
    environment,
)
from tinydiff.parallel.mpi import Ranks, world

__all__ = [
    "ALONE",
    "ONE_THREAD",
    "Alone",
    "Batch",
    "Losses",
    "Ranks",
    "WorkerError",
    "Workers",
    "available_cores",
    "connect",
    "default_workers",
    "environment",
]


def connect(name: str) -> Alone | Ranks:
    """ "local": this process alone, with worker processes of its own; "mpi": the ranks that mpiexec has started."""
    return world() if name == "mpi" else ALONE
