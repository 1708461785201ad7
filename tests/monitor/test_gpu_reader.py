"""Recorded cards through the reader: units, what stands in for what, and every way in which a card fails."""

import pynvml
import pytest

from fastae.monitor.gpu_reader import GpuReader
from fastae.monitor.nvml import all_gpus, visible_gpus
from fastae.monitor.recording import Phase

from .conftest import OUR_PID
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
    mig_machine,
)


@pytest.fixture
def read(make_poller):
    """Three seconds of a card, or of the first device of a library: the means, and the reader."""

    def run(*states, library=None, is_ours=lambda pid: pid == OUR_PID, seconds=3.0):
        library = library or RecordedNvml(Card(list(states)))
        reader = GpuReader(library, visible_gpus(library, None)[0], "gpu0", is_ours)
        poller = make_poller(reader)
        poller.enter(Phase.TRAIN)
        for card in library.cards:
            card.clock = lambda: poller.clock
        poller.run(seconds)
        columns = poller.recording().columns
        values = {name: column.values for name, column in columns.items() if len(column)}
        return {name[5:]: array for name, array in values.items() if name.startswith("gpu0/")}, reader

    return run


def test_every_unit_is_converted(read):
    state = COMPUTE_BOUND[0].but(jpeg=7, decoder=3, temperature=51, processes=((OUR_PID, GIB),), link=(4, 8))
    values, reader = read(state)
    last = {name: array[-1] for name, array in values.items()}
    assert last.pop("energy") == pytest.approx(600 * 2, rel=0.01)  # read last after two seconds
    assert last.pop("pcie_received") == pytest.approx(104.8576) == last.pop("pcie_sent")
    assert last == {
        "gpu_busy": 98, "memory_controller_busy": 60, "sm_active": 92, "sm_occupancy": 40,
        "tensor_active": 70, "dram_bandwidth": 30, "jpeg": 7, "nvdec": 3, "memory": 2.0,
        "process_memory": 1.0, "power": 600.0, "sm_clock": 1900, "memory_clock": 2619, "performance_state": 0,
        "temperature": 51, "throttle_reasons": 0, "pcie_generation": 4, "pcie_width": 8,
        "throttled_SwPowerCap": 0, "throttled_SwThermalSlowdown": 0, "throttled_HwThermalSlowdown": 0,
        "throttled_HwPowerBrakeSlowdown": 0,
    }  # fmt: skip
    record = reader.record()
    assert dict(record.missing) == {} and dict(record.errors) == {} and record.lost is None


def test_slow_ones_are_read_once_a_second(read):
    values, _ = read(BUSY[0])
    assert {name for name, array in values.items() if len(array) > 5} == {
        "gpu_busy", "memory_controller_busy", "power", "sm_clock", "throttle_reasons"}  # fmt: skip
    assert len(values["temperature"]) == 3


def test_an_older_driver_gives_the_same_by_older_calls(read):
    old = RecordedNvml(
        Card([BUSY[0].but(mean_power=590_000, throughput=2_500)]),
        missing=(
            "nvmlDeviceGetFieldValues",
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetJpgUtilization",
            "nvmlGpmQueryDeviceSupport",
        ),
    )
    values, reader = read(library=old)
    assert values["power"][-1] == 590 and values["pcie_sent"][-1] == 2.5 and values["energy"][-1] > 0
    assert values["throttle_reasons"][-1] == 0
    missing = reader.record().missing
    assert missing["jpeg"] == missing["sm_active"] == "NVML_ERROR_FUNCTION_NOT_FOUND"


def test_each_field_has_a_code_of_its_own(read):
    values, reader = read(BUSY[0].but(counted=NOT_SUPPORTED, energy=NOT_SUPPORTED, throughput=2_500))
    assert values["power"][-1] == 600 and "throttled_SwPowerCap" in values
    assert values["pcie_received"][-1] == 2.5, "NVML's own measurement, instead of the counter"
    assert "energy" not in values and reader.record().missing["energy"] == "NVML_ERROR_NOT_SUPPORTED"


def test_a_call_that_is_refused_is_not_made_again(read):
    library = RecordedNvml(Card([BUSY[0].but(jpeg=NOT_SUPPORTED)]))
    read(library=library)
    assert library.calls["nvmlDeviceGetJpgUtilization"] == 1
    assert library.calls["nvmlDeviceGetPcieThroughput"] == 0, "it blocks, and the counter is there"


def test_memory_is_without_what_the_driver_reserves(read):
    assert read(BUSY[0])[0]["memory"][-1] == 2.0


def test_pcie_counters_wrap(read, monkeypatch):
    """32 bits, from just below the end, at 1 MB/s."""
    seconds = iter(range(1000))
    monkeypatch.setattr("fastae.monitor.gpu_reader.time.monotonic", lambda: float(next(seconds)))
    count = iter(range(2**32 - 10**6, 2**33, 10**6))
    library = RecordedNvml(Card(BUSY))
    library._field = lambda card, number: (
        next(count) if number == pynvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES else 7
    )
    values, _ = read(library=library, seconds=4.0)
    assert list(values["pcie_received"]) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("ids", [(269, 270, 271), (251, 252, 253)])
def test_throttle_counters_under_either_number(read, ids):
    """The other numbers of a driver are settings, which do not grow."""
    counters = {74: 0.5, **dict.fromkeys((251, 252, 253, 269, 270, 271), 0.0), ids[1]: 0.25}
    values, _ = read(BUSY[0].but(throttled=counters))
    assert values["throttled_SwPowerCap"][-1] == pytest.approx(1.0, rel=0.1)  # of two seconds
    assert values["throttled_HwThermalSlowdown"][-1] == pytest.approx(0.5, rel=0.1)
    assert values["throttled_SwThermalSlowdown"][-1] == 0


def test_gpm_of_a_slice_is_the_slices(read):
    values, reader = read(library=mig_machine(HOPPER_SLICE, names=("aaaa",)))
    assert values["sm_active"][-1] == 92
    assert "gpu_busy" not in values and "power" not in values, "those would be the board's"
    assert reader.record().missing["gpu_busy"] == "NVML_ERROR_NOT_SUPPORTED"


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
    values, reader = read(state, is_ours=is_ours)
    record = reader.record()
    assert (record.ours, record.other_processes) == (ours, others)
    if ours:
        assert values["process_memory"][-1] == 1.0 and record.other_gib == 5.0


def test_a_first_timeout_is_no_refusal(read):
    timeout = BUSY[0].but(power=Fault(pynvml.NVML_ERROR_TIMEOUT))
    values, reader = read(timeout, timeout, BUSY[0])
    assert values["power"][-1] == 600 and "power" not in reader.record().missing


def test_an_error_in_mid_run_costs_one_value(read):
    states = [*BUSY * 13, BUSY[0].but(instant_power=UNKNOWN), *BUSY]
    values, reader = read(*states)
    assert 10 < len(values["power"]) < len(values["gpu_busy"]), "asked again after a second"
    assert reader.record().errors == {"NVML_ERROR_UNKNOWN": 1} and reader.record().lost is None


def test_a_lost_gpu_is_asked_no_more(read):
    library = RecordedNvml(Card(list(FALLS_OFF_THE_BUS)))
    values, reader = read(library=library, seconds=20.0)
    assert reader.record().lost == "NVML_ERROR_GPU_IS_LOST"
    assert len(values["gpu_busy"]) == 50 and library.calls["nvmlDeviceGetUtilizationRates"] == 51


def test_unknown_errors_in_a_row_are_a_gpu_that_hangs(read):
    values, reader = read(*BUSY * 5, State.all(UNKNOWN))
    assert reader.record().lost.startswith("NVML_ERROR_UNKNOWN") and len(values["gpu_busy"]) == 5


def test_a_gpu_that_was_lost_before(make_poller):
    library = RecordedNvml(Card(BUSY, lost=pynvml.NVML_ERROR_GPU_IS_LOST))
    reader = GpuReader(library, all_gpus(library)[0], "gpu0", lambda pid: None)
    make_poller(reader).run(3.0)
    assert reader.record().lost == "NVML_ERROR_GPU_IS_LOST"
    assert library.calls["nvmlDeviceGetUtilizationRates"] == 0
