"""The CPU's table: its ratios are what their names say, its jobs are the network's layers, both networks are one."""

import pytest

from tinydiff.app.generate import build_unet
from tinydiff.backend import backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="it sets the backend to numpy"),
]

CONV = ("conv", 2, 28, 8, 8, 1, True)


@pytest.fixture
def on_cpu(module):
    return module("on_cpu")


def test_another_network_is_refused(on_cpu, module, monkeypatch):
    """Other numbers of parameters, or one wrong gradient, are an error that says so."""
    pytest.importorskip("torch")
    torch_peer = module("torch_peer")
    plain = torch_peer.Reference
    with monkeypatch.context() as patch:
        patch.setattr(torch_peer, "Reference", lambda c: plain(2 * c))
        with pytest.raises(RuntimeError, match="parameters"):
            on_cpu.check_same_network(8, "channels_last")
    monkeypatch.setattr(torch_peer.F, "silu", torch_peer.F.relu)
    with pytest.raises(RuntimeError, match=r"with the same weights .* differs by"):
        on_cpu.check_same_network(8, "channels_last")


def test_the_ratios_are_to_the_faster_layout(on_cpu):
    """Made-up times: each ratio takes its own row, its own cores, and the better of PyTorch's figures for each job.

    The plain functions, far ahead here, count in their own ratios only.
    """

    def by(ours, contiguous, last, **plain):
        peers = {"contiguous_format": [contiguous, 9.0], "channels_last": [last, 9.0]}
        return {"tinydiff": [ours, 9.0], **{name: [seconds, 9.0] for name, seconds in plain.items()}, **peers}

    seconds = {
        (4, on_cpu.TRAIN): by(2.0, 6.0, 5.0, plain=0.01),
        (1, on_cpu.TRAIN): by(7.0, 14.0, 28.0, plain=0.7),
        (4, on_cpu.FORWARD): by(1.0, 0.5, 0.75, plain=0.01),
        (1, on_cpu.FORWARD): by(1.0, 99.0, 99.0, plain=0.2),
        (1, CONV): by(1.0, 2.0, 3.0, plain=0.01),
        (1, ("conv", 2, 14, 8, 8, 2, True)): by(2.0, 17.0, 16.0, plain=0.01),
        (1, on_cpu.OPTIMIZER): by(1.0, 99.0, 99.0, plain=0.01),
    }
    memory = {"tinydiff": 200.0, "plain": 1.0, "contiguous_format": 1000.0, "channels_last": 800.0}
    assert on_cpu.ratios(seconds, memory, 4) == pytest.approx(
        {
            "train_step_ratio": 2.5,
            "train_step_ratio_1core": 2.0,
            "sampling_ratio": 0.5,
            "conv_ratio": 4.0,  # of 2 and 8, the geometric mean
            "memory_ratio": 0.25,
            "worker_scaling": 3.5,
            "plain_step_ratio_1core": 0.1,
            "plain_sampling_ratio_1core": 0.2,
        }
    )
    assert on_cpu.ratios(seconds, dict.fromkeys(memory), 4)["memory_ratio"] is None


def test_a_figure_is_the_median_over_the_rounds(module):
    """Of the whole and of each stage: one slow round does not count."""
    assert module("figures").medians([[1.0, 5.0], [100.0, 2.0], [3.0, 4.0]]) == [7.0, 3.0, 4.0]


def test_the_jobs_are_the_networks_layers(on_cpu):
    """Every 3x3 filter, every norm but attention's, and attention, each at the resolution where it works."""
    jobs = on_cpu.layer_jobs(8, 3)
    shapes = [p.shape for p in build_unet({"base_channels": 8}, 0).parameters() if p.ndim == 4]
    assert all(shape[:2] == (3, 3) for shape in shapes)
    convs = {job: count for job, count in jobs.items() if job[0] == "conv"}
    for channels in {shape[2:] for shape in shapes}:
        found = sum(count for job, count in convs.items() if job[3:5] == channels)
        assert found == sum(shape[2:] == channels for shape in shapes), channels
    # Two levels of 16 channels below one of 8: what is known of the reference without counting.
    assert convs["conv", 3, 28, 1, 8, 1, False] == convs["conv", 3, 28, 8, 1, 1, True] == 1
    assert convs["conv", 3, 28, 8, 8, 2, True] == convs["conv", 3, 14, 16, 16, 2, True] == 1
    assert convs["conv", 3, 28, 16, 16, 1, True] == 1 and convs["conv", 3, 7, 32, 16, 1, True] == 2
    assert jobs["attention", 3, 4, 49, 4] == 1
    norms = {job: count for job, count in jobs.items() if job[0] == "group_norm_silu"}
    assert sum(norms.values()) == sum(convs.values()) - 5  # each before a convolution, but conv_in and resamplings
