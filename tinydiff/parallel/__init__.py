"""A batch split over processes: those of this machine (local.py), or the ranks of an MPI job (mpi.py).

    ranks = ALONE                                  # or mpi.world(), in a program that mpiexec started several times
    with ranks.workers(build, 2) as workers:       # Workers of either kind: nothing else has to know which
        losses = workers.gradients(losses_of, batch, seed)

Read next: local.py, then mpi.py.
"""

from tinydiff.parallel.local import ALONE, Batch, Losses, Ranks, WorkerError, Workers, available_cores, default_workers

__all__ = ["ALONE", "Batch", "Losses", "Ranks", "WorkerError", "Workers", "available_cores", "default_workers"]
