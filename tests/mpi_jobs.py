"""Starting real MPI jobs: where mpiexec is, and demos under it.  As a script: a demo with a fault planted at one rank.

mpiexec -n 2 python tests/mpi_jobs.py FAULT RANK STEP demos/train_mnist.py --parallel mpi ...
"""

import importlib.util
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
MISSING = None if MPIEXEC and importlib.util.find_spec("mpi4py") else "no MPI here: pip install 'tinydiff[mpi]'"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    "OPENBLAS_NUM_THREADS": "1",
    # Open MPI: more ranks than cores, and as root in a container; what rank 0 prints is there before the job ends.
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PYTHONUNBUFFERED": "1",
}


def start(size, *command, prefix=(), launcher=(), **kwargs):
    """A job of `size` ranks of a Python program.  prefix: words before mpiexec; launcher: its own options."""
    words = [*prefix, MPIEXEC, *launcher, "-n", str(size), sys.executable, *map(str, command)]
    return _start(words, **kwargs)


def start_each(*ranks):
    """A job of one rank for each (folder to work in, words of its Python program)."""
    words = []
    for folder, command in ranks:
        words += [":", "-n", "1", "--wdir", str(folder), sys.executable, *map(str, command)]
    return _start([MPIEXEC, *words[1:]])


def _start(words, **kwargs):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=ENVIRONMENT, **pipes | kwargs)


def finish(process, timeout=300):
    """(exit code, output, errors) of a job; one that hangs is ended, with all its ranks, and fails the test."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate()
        raise
    return process.returncode, out, err


def rank_processes(launcher):
    """The process ids of a job's ranks on this machine: the launcher's children."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"python" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def plant(fault, rank, step):
    """Have that rank do it at the beginning of that step, where it draws its batch."""
    from tinydiff import train
    from tinydiff.backend import TinydiffError
    from tinydiff.fast import mpi

    mpi.CHECK_EVERY = 1
    init = train.Training.__init__

    def init_with_fault(self, model, config, draw, *args, **kwargs):
        def draw_or_not(config, now):
            if now == step and self.gradients.__self__.ranks.rank == rank:
                if fault == "raise":
                    raise ZeroDivisionError("planted")
                if fault == "refuse":
                    raise TinydiffError("planted")
                if fault == "memory":
                    raise MemoryError("planted")
                if fault == "exit":
                    sys.exit(0)
                if fault == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                if fault == "stop":
                    os.kill(os.getpid(), signal.SIGTERM)
                if fault == "drift":
                    self.parameters[0].data[3] += 1e-6
            if now == step and fault == "nan":
                self.parameters[0].data[3] = float("nan")
            return draw(config, now)

        init(self, model, config, draw_or_not, *args, **kwargs)

    train.Training.__init__ = init_with_fault


if __name__ == "__main__":
    _, fault, rank, step, path, *options = sys.argv
    sys.argv[:] = [path, *options]
    sys.path.insert(0, str(Path(path).parent))
    plant(fault, int(rank), int(step))
    runpy.run_path(path, run_name="__main__")
