"""Speed, MFU, GPU-hours and time left on a clock that the test turns."""

import pytest
import torch

from train.monitoring.accounting import Accounting, gpu_hours_spent, peak_memory_gb
from train.monitoring.device_idle import DeviceIdle


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def batches(clock, *waits_s):
    for wait_s in waits_s:
        clock.now += wait_s
        yield wait_s


def step(accounting, samples, flops):
    accounting.submitted()
    accounting.add(samples=samples, flops=flops)


def test_a_window_by_hand(clock):
    accounting = Accounting(world_size=4, peak_flops=1e12, clock=clock)
    clock.now += 60  # building the model
    for _ in accounting.waiting_for(batches(clock, 1.0, 3.0)):
        clock.now += 4.0
        step(accounting, 600, 3e9)
    found = accounting.read(samples_left=2400)
    assert found == {
        "samples_per_s": 100.0,  # 1200 samples in 12 s
        "samples_per_s_per_gpu": 25.0,
        "mfu": 0.075,  # 3e9 x 1200 FLOP / (12 s x 4 x 1e12)
        "data_wait_fraction": 0.3333,
        "gpu_hours": 0.08,  # 72 s x 4 / 3600
        "hours_left": 0.007,  # 12 s for 1200, so 24 s
    }
    clock.now += 3600
    later = accounting.read(samples_left=0)
    assert later["samples_per_s"] == 100.0  # nothing was trained since
    assert later["gpu_hours"] == 4.08


def test_a_step_whose_numbers_are_read_late_lasts_as_long_as_it_did(clock):
    accounting = Accounting(world_size=1, peak_flops=None, clock=clock)
    speeds = []
    for number, _ in enumerate(accounting.waiting_for(batches(clock, 0.0, 0.0, 0.0)), 1):
        clock.now += 2.0
        accounting.submitted()
        for _ in range(
            {1: 0, 2: 1, 3: 2}[number]
        ):  # each is read with the next one under way, the last at once
            accounting.add(samples=100, flops=0)
            speeds.append(accounting.read(samples_left=0)["samples_per_s"])
    assert speeds == [50.0] * 3


def test_what_comes_between_two_stages_is_no_part_of_a_step(clock):
    accounting = Accounting(world_size=1, peak_flops=None, clock=clock)
    for _ in range(2):
        clock.now += 500  # the model is built
        for _ in accounting.waiting_for(batches(clock, 0.0)):
            clock.now += 1.0
            accounting.submitted()  # never read: a roll back
        for _ in accounting.waiting_for(batches(clock, 0.0)):
            clock.now += 2.0
            step(accounting, 100, 0)
        assert accounting.read(samples_left=0)["samples_per_s"] == 50.0


def test_pauses_cost_hours_but_no_speed(clock):
    accounting = Accounting(world_size=2, peak_flops=None, clock=clock)
    for _ in accounting.waiting_for(batches(clock, 0.0, 0.0)):
        clock.now += 10
        step(accounting, 50, 1e9)
        with accounting.pause():
            clock.now += 90
    found = accounting.read(samples_left=100)
    assert (found["samples_per_s"], found["mfu"]) == (5.0, None)
    assert found["gpu_hours"] == round(400 / 3600, 4)
    assert found["hours_left"] == round(200 / 3600, 3)  # the rest will pause as well


def test_a_pause_that_fails_is_counted_too(clock):
    accounting = Accounting(world_size=1, peak_flops=None, clock=clock)

    def save():
        with accounting.pause():
            clock.now += 90
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        save()
    clock.now += 10
    step(accounting, 50, 0)
    assert accounting.read(0)["samples_per_s"] == 5.0


def test_steps_of_different_cost_in_one_window(clock):
    accounting = Accounting(world_size=1, peak_flops=1e12, clock=clock)
    clock.now += 1
    step(accounting, 100, 3e9)
    step(accounting, 50, 12e9)
    assert accounting.read(0)["mfu"] == 0.9


class Device:
    """A queue that works through what the host puts in; events happen when their turn comes."""

    def __init__(self, clock):
        self._clock, self.free_at = clock, clock.now

    def compute(self, seconds):
        self.free_at = max(self.free_at, self._clock.now) + seconds

    def event(self):
        return DeviceEvent(self)


class DeviceEvent:
    def __init__(self, device):
        self._device = device

    def record(self):
        self._device.compute(0.0)
        self.at = self._device.free_at

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.mark.parametrize(
    ("loading_s", "computing_s", "idle"),
    [(0.29, 0.284, 0.0207), (0.15, 0.11, 0.2667), (0.05, 0.2, 0.0)],
    ids=["nearly as slow", "slower", "quicker"],
)
def test_waiting_costs_what_the_device_stood_idle(clock, loading_s, computing_s, idle):
    """The loader makes a batch every so often; the host hands steps over at once and is one of them ahead."""
    device = Device(clock)
    accounting = Accounting(world_size=1, peak_flops=None, idle=DeviceIdle(device.event), clock=clock)
    begun = clock.now

    def loaded():
        for number in range(200):
            clock.now = max(clock.now, begun + loading_s * (number + 1))
            yield number

    done_before = clock.now
    for number in accounting.waiting_for(loaded()):
        device.compute(computing_s)
        accounting.submitted()
        clock.now = max(clock.now, done_before)  # the step before is read
        done_before = device.free_at
        if number:
            accounting.add(samples=1, flops=0)
        if number == 20:
            accounting.read(samples_left=0)
    # Of a step of max(loading, computing) the device is idle for what loading takes longer.
    assert accounting.read(samples_left=0)["data_wait_fraction"] == pytest.approx(idle, abs=1e-3)


def test_nothing_trained_yet(clock):
    found = Accounting(world_size=1, peak_flops=1e12, clock=clock).read(samples_left=10)
    assert (found["samples_per_s"], found["mfu"], found["hours_left"]) == (0.0, 0.0, None)


def test_gpu_hours_go_on_over_restarts_with_other_numbers_of_ranks(clock):
    first = Accounting(world_size=8, peak_flops=None, clock=clock)
    clock.now += 3600
    state = {"gpu_hours": first.gpu_hours()}
    assert state == {"gpu_hours": 8.0}
    # It went on for a quarter of an hour, logged, and was killed: that time was spent as well.
    records = [
        {"step": 1, "gpu_hours": 7.0},
        {"step": 3, "evaluation/x": 0.5},
        {"step": 2, "gpu_hours": 10.0},
    ]
    spent = gpu_hours_spent(state, records)
    assert spent == 10.0
    second = Accounting(world_size=2, peak_flops=None, gpu_hours=spent, clock=clock)
    clock.now += 1800
    assert second.gpu_hours() == 11.0


@pytest.mark.parametrize(
    ("state", "records", "hours"),
    [(None, [], 0), ({"gpu_hours": 3}, [], 3), (None, [{"gpu_hours": None}], 0)],
)
def test_gpu_hours_of_a_run_that_left_little_behind(state, records, hours):
    assert gpu_hours_spent(state, records) == hours


def test_peak_memory_is_this_process():
    assert 0.01 < peak_memory_gb(torch.device("cpu"), reset=True) < 100
