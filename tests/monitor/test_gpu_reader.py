"""Recorded cards through poller and reader: units, fallbacks, and every way in which a card fails."""

import pynvml
import pytest

from .conftest import OUR_PID, StubHost
from .recorded_nvml import (
    BUSY,
    COMPUTE_BOUND,
    FALLS_OFF_THE_BUS,
    GIB,
    HOPPER_SLICE,
    NOT_SUPPORTED,
    UNKNOWN,
    Card,
    Fault,
    RecordedNvml,
    State,
    machine_of,
    mig_machine,
)


@pytest.fixture
def read(simulate):
    """Three seconds of the first GPU: the samples by metric, and its record."""

    def run(*states, library=None, is_ours=lambda pid: pid == OUR_PID, seconds=3.0):
        host = StubHost(is_ours=is_ours)
        recording = simulate(states, library=library, host=host, seconds=seconds).recording()
        columns = {name: column.values for name, column in recording.columns.items() if len(column)}
        return {name[5:]: each for name, each in columns.items() if name[:5] == "gpu0/"}, recording.gpus[0]

    return run


def test_every_unit_is_converted(read):
    state = COMPUTE_BOUND[0].but(jpeg=7, temperature=51, processes=((OUR_PID, GIB),), link=(4, 8))
    values, record = read(state)
    last = {name: array[-1] for name, array in values.items()}
    throttling = {last.pop(name) for name in list(last) if name.startswith("throttled")}
    assert last == pytest.approx({
        "gpu_busy": 98, "memory_controller_busy": 60, "sm_active": 92, "sm_occupancy": 40,
        "tensor_active": 70, "dram_bandwidth": 30, "jpeg": 7, "memory": 2.0, "process_memory": 1.0,
        "power": 600.0, "counted_power": 600.0, "sm_clock": 1900, "performance_state": 0, "temperature": 51,
        "pcie_generation": 4, "pcie_width": 8, "pcie_received": 104.8576, "pcie_sent": 104.8576,
    })  # fmt: skip
    assert throttling == {0} and not record.missing and not record.errors and record.lost is None
    often = {name for name, array in values.items() if len(array) > 5}
    assert often == {"gpu_busy", "memory_controller_busy", "power", "sm_clock"}, "the others once a second"


def test_an_older_driver_gives_the_same_by_older_calls(read):
    missing = ("nvmlDeviceGetFieldValues", "nvmlDeviceGetJpgUtilization", "nvmlGpmQueryDeviceSupport")
    old = machine_of([BUSY[0].but(mean_power=590_000, throughput=2_500)], missing=missing)
    values, record = read(library=old)
    assert values["power"][-1] == 590 and values["pcie_sent"][-1] == 2.5
    assert record.missing["jpeg"] == record.missing["sm_active"] == "NVML_ERROR_FUNCTION_NOT_FOUND"
    assert old.calls["nvmlDeviceGetJpgUtilization"] == 1, "what is refused is not asked again"


def test_each_field_has_a_code_of_its_own(read):
    values, record = read(BUSY[0].but(counted=NOT_SUPPORTED, energy=NOT_SUPPORTED, throughput=2_500))
    assert values["power"][-1] == 600 and "throttled_SwPowerCap" in values
    assert values["pcie_received"][-1] == 2.5, "NVML's own measurement, instead of the counter"
    assert record.missing["counted_power"] == "NVML_ERROR_NOT_SUPPORTED"


def test_pcie_counters_wrap_and_the_call_that_blocks_is_not_made(read):
    """They have 32 bits."""
    library = machine_of([BUSY[0].but(counted=3 * 10**9)])
    values, _ = read(library=library, seconds=6.0)
    assert values["pcie_received"] == pytest.approx([3000.0] * 6)
    assert library.calls["nvmlDeviceGetPcieThroughput"] == 0


@pytest.mark.parametrize("counted", [True, False])
def test_throttling_is_counted_by_the_driver_or_else_sampled(read, counted):
    cap = pynvml.nvmlClocksEventReasonSwPowerCap
    throttled = {74: 0.5, 269: 0.0, 270: 0.25, 271: 0.0} if counted else NOT_SUPPORTED
    values, _ = read(BUSY[0].but(reasons=cap, throttled=throttled))
    expected = {"SwPowerCap": 50, "HwThermalSlowdown": 25} if counted else {"SwPowerCap": 100}
    found = {name.removeprefix("throttled_"): array.mean() for name, array in values.items()}
    throttling = {name: found[name] for name in ("SwPowerCap", "HwThermalSlowdown") if found[name]}
    assert throttling == pytest.approx(expected, rel=0.01)


def test_samples_of_gpm_are_a_second_apart_also_at_the_end(read):
    """NVML: "should be greater than 100ms". The last poll of all may come at any time."""
    values, _ = read(COMPUTE_BOUND[0], seconds=3.04)
    assert len(values["sm_active"]) == 3 and len(values["memory"]) == 5


def test_gpm_of_a_slice_is_the_slices(read):
    values, record = read(library=mig_machine(HOPPER_SLICE, names=("aaaa",)))
    assert values["sm_active"][-1] == 92
    assert "gpu_busy" not in values and "power" not in values, "those would be the board's"
    assert record.missing["gpu_busy"] == "NVML_ERROR_NOT_SUPPORTED"


@pytest.mark.parametrize(
    ("is_ours", "ours", "others"),
    [
        (lambda pid: pid == OUR_PID, True, 2),
        (lambda pid: False, False, 3),
        (lambda pid: None, None, 0),
    ],
)
def test_whose_processes_are_on_it(read, is_ours, ours, others):
    state = BUSY[0].but(processes=((OUR_PID, GIB), (17, 2 * GIB), (18, 3 * GIB)))
    values, record = read(state, is_ours=is_ours)
    assert (record.ours, record.other_processes) == (ours, others)
    if ours:
        assert values["process_memory"][-1] == 1.0 and record.other_gib == 5.0


def test_a_first_timeout_is_no_refusal(read):
    timeout = BUSY[0].but(power=Fault(pynvml.NVML_ERROR_TIMEOUT))
    values, record = read(timeout, timeout, BUSY[0])
    assert values["power"][-1] == 600 and "power" not in record.missing


def test_an_error_in_mid_run_costs_one_value(read):
    values, record = read(*BUSY * 13, BUSY[0].but(power=UNKNOWN), *BUSY)
    assert 10 < len(values["power"]) < len(values["gpu_busy"]), "asked again after a second"
    assert record.errors == {"NVML_ERROR_UNKNOWN": 1} and record.lost is None


def test_a_lost_gpu_is_asked_no_more_and_does_not_stop_the_host(simulate):
    library = machine_of(FALLS_OFF_THE_BUS)
    recording = simulate(library=library, seconds=20.0).recording()
    assert recording.gpus[0].lost == "NVML_ERROR_GPU_IS_LOST"
    assert len(recording.columns["gpu0/gpu_busy"]) == 50
    assert library.calls["nvmlDeviceGetUtilizationRates"] == 51
    assert len(recording.columns["host/cpu"]) >= 20


def test_unknown_errors_in_a_row_are_a_gpu_that_hangs(read):
    values, record = read(*BUSY * 5, State.all(UNKNOWN))
    assert record.lost.startswith("NVML_ERROR_UNKNOWN") and len(values["gpu_busy"]) == 5


def test_a_gpu_that_was_lost_before(read):
    library = RecordedNvml(Card(BUSY, lost=pynvml.NVML_ERROR_GPU_IS_LOST))
    values, record = read(library=library)
    assert record.lost == "NVML_ERROR_GPU_IS_LOST" and not values
    assert library.calls["nvmlDeviceGetUtilizationRates"] == 0
