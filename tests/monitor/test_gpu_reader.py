"""Poller and reader read recorded cards: units, older calls, and each way in which a card fails."""

import pynvml
import pytest

from fastae.device import gpu_reader
from fastae.device.gpu_reader import MOST_FAILURES

from . import recorded_nvml as cards
from .conftest import OUR_PID

REFUSED = "NVML_ERROR_FUNCTION_NOT_FOUND"
SM_COUNTERS = "SM counters (they need Hopper or newer)"


@pytest.fixture
def read(simulate):
    """Returns a function that reads a GPU for three seconds: the samples by metric, and its record."""

    def run(*states, library=None, **options):
        recording = simulate(states, library=library, **{"seconds": 3.0, **options}).recording()
        columns = {name.removeprefix("gpu/"): column.values for name, column in recording.columns.items()}
        return columns, recording.gpus[0]

    return run


def test_every_unit_is_converted(read):
    state = cards.COMPUTE_BOUND[0].but(
        jpeg=7, temperature=51, processes=[OUR_PID], width=8, corrected=4, uncorrected=2, xids=(31, 31)
    )
    values, record = read(state)
    last = {name: array[-1] for name, array in values.items() if not name.startswith("host/")}
    throttling = {last.pop(name) for name in list(last) if name.startswith("throttled")}
    assert last == pytest.approx({
        "gpu_busy": 98, "sm_active": 92, "tensor_active": 70, "fp32_active": 20, "dram_bandwidth": 30,
        "jpeg": 7, "memory": 2.0, "power": 600.0, "energy": 1800.0, "sm_clock": 1900, "temperature": 51,
        "pcie_width": 8, "other_processes": 0, "others_busy": 0,
        "ecc_corrected": 4, "ecc_uncorrected": 2, "xid": 1,
    })  # fmt: skip
    assert throttling == {0} and not record.missing and not record.errors and record.lost is None


def test_an_older_driver_is_read_by_older_calls(read):
    missing = ("nvmlDeviceGetFieldValues", "nvmlDeviceGetJpgUtilization", "nvmlGpmQueryDeviceSupport")
    old = cards.machine_of([cards.BUSY[0].but(mean_power=590_000)], missing=missing)
    values, record = read(library=old)
    assert values["power"][-1] == 590
    assert {record.missing[name] for name in ("energy", "jpeg", SM_COUNTERS)} == {REFUSED}
    assert old.calls["nvmlDeviceGetJpgUtilization"] == MOST_FAILURES, "then it is not called again"


def test_reasons_for_lowered_clocks_are_read_by_the_older_call_of_r525(read):
    missing = ("nvmlDeviceGetCurrentClocksEventReasons",)
    values, record = read(library=cards.machine_of(cards.AT_POWER_LIMIT, missing=missing))
    assert set(values["throttled_SwPowerCap"]) == {1} and set(values["throttled_HwSlowdown"]) == {0}
    assert not record.errors


def test_the_time_of_lowered_clocks_is_counted_by_the_driver_if_it_can(read):
    """A sample sees the reason that applies now. The counters see the 30 % of the time in between."""
    values, _ = read(cards.BUSY[0].but(throttled=0.3))
    assert list(values["throttled_SwThermalSlowdown"])[1:] == pytest.approx([0.3] * 6)
    assert set(values["throttled_HwSlowdown"]) == {0}, "this reason has no counter"


def test_samples_of_gpm_are_a_tenth_of_a_second_apart_whatever_the_rate(read):
    """NVML's documentation: "should be greater than 100ms". Only the last poll may come sooner."""
    values, _ = read(cards.COMPUTE_BOUND[0], hz=40)
    assert 20 <= len(values["sm_active"]) <= 30 and len(values["memory"]) > 100


def test_the_counters_of_a_mig_slice_are_those_of_the_slice(read):
    values, record = read(library=cards.mig_machine(cards.HOPPER_SLICE, names=("aaaa",)))
    assert values["sm_active"][-1] == 92
    assert "gpu_busy" not in values and "power" not in values, "these would be figures of the board"
    assert record.missing["gpu_busy"] == "NVML_ERROR_NOT_SUPPORTED"


@pytest.mark.parametrize(
    ("pids", "others"),
    [((OUR_PID, 17, 18), 2), ((OUR_PID,), 0), ((17, 18), None), ((), None)],
)
def test_other_processes_are_counted_if_the_ids_are_those_of_this_namespace(read, pids, others):
    values, _ = read(cards.BUSY[0].but(processes=pids))
    assert values.get("other_processes", [None])[-1] == others


@pytest.mark.parametrize(("pids", "others"), [((OUR_PID, 17), 1), ((OUR_PID,), None)])
def test_no_other_process_is_unknown_in_a_container(read, monkeypatch, pids, others):
    monkeypatch.setattr(gpu_reader, "sees_all_processes", lambda: False)
    values, _ = read(cards.BUSY[0].but(processes=pids))
    assert values.get("other_processes", [None])[-1] == others


def test_an_error_loses_only_one_value(read):
    """An unsupported field is replaced by the older call. After a timeout, a query is repeated."""
    timeout = cards.BUSY[0].but(temperature=pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT))
    fails = cards.BUSY[0].but(
        temperature=cards.UNKNOWN, power=cards.NOT_SUPPORTED, mean_power=590_000, energy=500_000
    )
    values, record = read(timeout, timeout, *cards.BUSY * 2, fails, *cards.BUSY)
    assert len(values["temperature"]) == len(values["gpu_busy"]) - 3 and values["power"][4] == 590
    assert record.errors == {"temperature": {"NVML_ERROR_TIMEOUT": 2, "NVML_ERROR_UNKNOWN": 1}}
    assert record.lost is None and "temperature" not in record.missing


@pytest.mark.parametrize("error", [cards.UNKNOWN, pynvml.NVMLLibraryMismatchError("a surprise"), TypeError()])
def test_a_query_that_always_fails_does_not_affect_the_others(read, error):
    """In WSL, NVML has no list of processes. pynvml also raises errors that are not NVMLErrors."""
    library = cards.machine_of([cards.BUSY[0].but(processes=error)])
    values, record = read(library=library, seconds=10.0)
    name = "NVML_ERROR_UNKNOWN" if error is cards.UNKNOWN else type(error).__name__
    assert record.lost is None and record.missing["processes of other programs"] == name
    assert len(values["power"]) > 20
    assert library.calls["nvmlDeviceGetComputeRunningProcesses"] == MOST_FAILURES


def test_a_lost_gpu_is_no_longer_read_but_the_host_is(read):
    library = cards.machine_of(cards.FALLS_OFF_THE_BUS)
    values, record = read(library=library, seconds=40.0)
    assert record.lost == "NVML_ERROR_GPU_IS_LOST" and record.xids == (45, 79) and not record.errors
    assert len(values["gpu_busy"]) == 51 and len(values["host/cpu"]) > 80
    assert library.calls["nvmlDeviceGetUtilizationRates"] == 52


def test_a_gpu_that_was_lost_before_the_run_is_not_read(read):
    library = cards.RecordedNvml(cards.Card(cards.BUSY, lost=pynvml.NVML_ERROR_GPU_IS_LOST))
    values, record = read(library=library)
    assert record.lost == "NVML_ERROR_GPU_IS_LOST" and "gpu_busy" not in values
    assert library.calls["nvmlDeviceGetUtilizationRates"] == 0
