"""Two hosts: network namespaces of this machine, each with its own address, name and shared memory, joined by a cable.

    pytest -m hosts            as root, on Linux, where `ip` (iproute2) and MPI are installed

A job across them talks over TCP.  Then the cable is cut in the middle of the training.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mpi_jobs import MISSING, ROOT, finish, start
from same_bytes import same_bytes

from tinydiff.app import checkpoint
from tinydiff.backend import backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.hosts,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.skipif(shutil.which("ip") is None or os.geteuid() != 0, reason="needs iproute2, and to be root"),
    pytest.mark.skipif(backend_name() != "numpy", reason="the processes started here use the numpy backend"),
]

HOSTS = {"10.77.0.1": "tinydiff-a", "10.77.0.2": "tinydiff-b"}
TRAIN = ROOT / "demos" / "train_mnist.py"
SMALL = ("--data=glyphs", "--num-images=20", "--channels=8", "--batch-size=8", "--sample-steps=2", "--save-every=1")
# As ssh is called: AGENT ADDRESS WORDS...  On the second host the run's folder is another, empty disk.
AGENT = """#!/bin/sh
case $1 in 10.77.0.1) name=tinydiff-a; own=;; *) name=tinydiff-b; own="mount -t tmpfs tmpfs {out};";; esac
shift
exec ip netns exec $name unshare --uts --ipc --mount sh -c "hostname $name; mount -t tmpfs tmpfs /dev/shm; $own $*"
"""
# The launcher finds out that a host is gone by TCP's keepalive, which waits for five minutes unless it is told.
KEEPALIVE = [("time", 2), ("intvl", 1), ("probes", 3)]


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def cable():
    """Both hosts, and what cuts the cable between them."""
    names = list(HOSTS.values())
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)  # of a run that was killed
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
    ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
    for address, name in HOSTS.items():
        ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
        ip("-n", name, "link", "set", "cable", "up")
    yield lambda: ip("-n", names[1], "link", "set", "cable", "down")
    for name in names:
        ip("netns", "del", name)


def train(folder, out, *options):
    """A job of one rank on each host, started on the first."""
    out.mkdir(exist_ok=True)
    agent = folder / "agent.sh"
    agent.write_text(AGENT.format(out=out))
    agent.chmod(0o755)
    launcher = ["--host", ",".join(f"{address}:1" for address in HOSTS), "--prtemca", "plm_ssh_agent", str(agent)]
    for name, seconds in KEEPALIVE:
        launcher += ["--prtemca", f"oob_tcp_keepalive_{name}", str(seconds)]
    options = (TRAIN, *SMALL, "--parallel=mpi", f"--out={out}", *options)
    return start(2, *options, launcher=launcher, prefix=[str(agent), next(iter(HOSTS))], start_new_session=True)


def step_of(out):
    return checkpoint.load(out / "checkpoint.npz")[1]["step"] if (out / "checkpoint.npz").exists() else -1


def wait_for_step(out, step):
    deadline = time.monotonic() + 200
    while step_of(out) < step:
        assert time.monotonic() < deadline, f"no checkpoint of step {step} within 200 seconds"
        time.sleep(0.02)


def ranks_of(out):
    """Process ids of all ranks, on either host: what has the run's folder on its command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if b"python" in words[0] and f"--out={out}".encode() in words:
            found.append(int(folder.name))
    return found


def test_a_job_across_two_hosts_is_the_job_on_one(cable, tmp_path):
    """Over TCP, and though the second host has none of its files: the same bits as two ranks on one machine."""
    code, printed, err = finish(train(tmp_path, tmp_path / "two", "--steps=4"))
    assert code == 0 and "2 worker(s)" in printed, err
    code, _, err = finish(start(2, TRAIN, *SMALL, "--parallel=mpi", "--steps=4", f"--out={tmp_path / 'one'}"))
    assert code == 0, err
    for name in ("checkpoint.npz", "samples.png", "metrics.csv"):
        assert same_bytes((tmp_path / "two" / name).read_bytes(), (tmp_path / "one" / name).read_bytes())


def test_a_host_that_is_cut_off_ends_the_job_and_not_the_run(cable, tmp_path):
    """Within seconds nothing runs on either host, and the launcher says why; the checkpoint is whole, and resumes."""
    out = tmp_path / "run"
    job = train(tmp_path, out, "--steps=100000")
    wait_for_step(out, 5)
    assert len(ranks_of(out)) == 2
    cable()
    began = time.monotonic()
    _, _, err = finish(job, timeout=100)  # Open MPI 5.0's launcher calls this exit code 0
    while ranks_of(out):
        assert time.monotonic() < began + 100
        time.sleep(0.1)
    print(f"the job was gone {time.monotonic() - began:.1f} s after the cut")
    assert time.monotonic() < began + 30 and "lost communication with a remote daemon" in err
    saved = step_of(out)
    assert saved >= 5
    job = start(2, TRAIN, *SMALL, "--parallel=mpi", "--resume", f"--out={out}")
    wait_for_step(out, saved + 3)
    job.send_signal(signal.SIGTERM)
    finish(job)
