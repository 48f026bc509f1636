"""An MPI communicator whose ranks are threads of this process: what tests need of mpi4py, without it."""

import pickle
import threading

import numpy as np


class Ended(BaseException):
    """A rank waits for one that has raised: under mpiexec it would be killed now."""


class Comm:
    """One rank's end of it.  calls: the name of each call it made, and the length of each Allreduce."""

    def __init__(self, rank, size, meeting, slots):
        self.rank, self.size, self.calls = rank, size, []
        self._meeting, self._slots = meeting, slots

    def bcast(self, value, root):
        self.calls.append("bcast")
        return self._exchange(value)[root]

    def allgather(self, value):
        self.calls.append("allgather")
        return self._exchange(value)

    def Allreduce(self, there, here):
        assert there is None  # in place
        self.calls.append(f"Allreduce {len(here)}")
        np.sum(self._exchange(here), axis=0, out=here)

    def Barrier(self):
        self._exchange(None)

    def Abort(self, code):
        self.calls.append(f"Abort {code}")

    def _exchange(self, value):
        self._slots[self.rank] = pickle.dumps(value)  # as ranks share no memory
        try:
            self._meeting.wait(60)
            everyone = [pickle.loads(slot) for slot in self._slots]
            self._meeting.wait(60)
        except threading.BrokenBarrierError:
            raise Ended from None
        return everyone


def on_ranks(size, program):
    """[program(comm) of each rank], all at once; raises what the first of them raises."""
    meeting, slots = threading.Barrier(size), [None] * size
    results, raised = [None] * size, []

    def run(rank):
        try:
            results[rank] = program(Comm(rank, size, meeting, slots))
        except BaseException as error:
            if not isinstance(error, Ended):
                raised.append((rank, error))
            meeting.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        error = raised[0][1]
        error.rank, error.said_by = raised[0][0], [rank for rank, _ in raised]
        raise error
    return results
