"""Recorded cards through poller and reader: units, fallbacks, and every way in which a card fails."""

import pynvml
import pytest

from .conftest import OUR_PID
from .recorded_nvml import (
    ANSWERS,
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

    def run(*states, library=None, **options):
        recording = simulate(states, library=library, **{"seconds": 3.0, **options}).recording()
        columns = {name: column.values for name, column in recording.columns.items() if len(column)}
        return {name[5:]: each for name, each in columns.items() if name[:5] == "gpu0/"}, recording.gpus[0]

    return run


def test_every_unit_is_converted(read):
    state = COMPUTE_BOUND[0].but(
        jpeg=7, temperature=51, processes=((OUR_PID, GIB),), width=8, ecc=(4, 2), xids=(31, 31)
    )
    values, record = read(state)
    last = {name: array[-1] for name, array in values.items()}
    throttling = {last.pop(name) for name in list(last) if name.startswith("throttled")}
    assert last == pytest.approx({
        "gpu_busy": 98, "sm_active": 92, "tensor_active": 70, "fp32_active": 20, "dram_bandwidth": 30,
        "jpeg": 7, "memory": 2.0, "power": 600.0, "energy": 1800.0, "sm_clock": 1900, "temperature": 51,
        "pcie_width": 8, "other_processes": 0, "ecc_corrected": 4, "ecc_uncorrected": 2, "xid": 1,
    })  # fmt: skip
    assert throttling == {0} and not record.missing and not record.errors and record.lost is None


def test_an_older_driver_gives_the_same_by_older_calls(read):
    missing = ("nvmlDeviceGetFieldValues", "nvmlDeviceGetJpgUtilization", "nvmlGpmQueryDeviceSupport")
    old = machine_of([BUSY[0].but(mean_power=590_000)], missing=missing)
    values, record = read(library=old)
    assert values["power"][-1] == 590 and "energy" not in values
    assert record.missing["jpeg"] == record.missing["sm_active"] == "NVML_ERROR_FUNCTION_NOT_FOUND"
    assert old.calls["nvmlDeviceGetJpgUtilization"] == 1, "what is refused is not asked again"


def test_a_power_field_that_is_refused_is_replaced_and_the_others_stay(read):
    values, _ = read(BUSY[0].but(power=NOT_SUPPORTED, energy=500_000, mean_power=590_000))
    assert values["power"][-1] == 590 and values["energy"][-1] == 1500


def test_the_reasons_that_apply_are_sampled(read):
    cap = pynvml.nvmlClocksEventReasonSwPowerCap
    values, _ = read(*(BUSY[0].but(reasons=cap * (index % 2)) for index in range(100)), seconds=20.0)
    found = {name: array.mean() for name, array in values.items() if name.startswith("throttled_")}
    assert {name for name, mean in found.items() if mean} == {"throttled_SwPowerCap"}
    assert found["throttled_SwPowerCap"] == pytest.approx(50, abs=3)


def test_samples_of_gpm_are_a_tenth_of_a_second_apart_whatever_the_rate(read):
    """NVML: "should be greater than 100ms". The last poll of all may come at any time."""
    values, _ = read(COMPUTE_BOUND[0], hz=40)
    assert 20 <= len(values["sm_active"]) <= 30 and len(values["memory"]) > 100


def test_gpm_of_a_slice_is_the_slices(read):
    values, record = read(library=mig_machine(HOPPER_SLICE, names=("aaaa",)))
    assert values["sm_active"][-1] == 92
    assert "gpu_busy" not in values and "power" not in values, "those would be the board's"
    assert record.missing["gpu_busy"] == "NVML_ERROR_NOT_SUPPORTED"


@pytest.mark.parametrize(
    ("pids", "others"),
    [((OUR_PID, 17, 18), 2), ((OUR_PID,), 0), ((17, 18), None), ((), None)],
)
def test_processes_of_others_are_counted_if_the_ids_are_those_of_this_namespace(read, pids, others):
    values, _ = read(BUSY[0].but(processes=tuple((pid, GIB) for pid in pids)))
    found = values.get("other_processes")
    assert (None if found is None else found[-1]) == others


def test_a_first_timeout_is_no_refusal(read):
    timeout = BUSY[0].but(power=Fault(pynvml.NVML_ERROR_TIMEOUT))
    values, record = read(timeout, timeout, BUSY[0])
    assert values["power"][-1] == 600 and "power" not in record.missing


def test_an_error_in_mid_run_costs_one_value(read):
    fails = BUSY[0].but(power=UNKNOWN, energy=500_000)
    values, record = read(*BUSY * 3, fails, *BUSY)
    assert len(values["power"]) == len(values["gpu_busy"]) - 1
    assert record.errors == {"power": {"NVML_ERROR_UNKNOWN": 1}} and record.lost is None


def test_a_query_that_is_always_unknown_costs_itself_alone(read):
    """As in WSL, where processes are."""
    library = machine_of([BUSY[0].but(processes=UNKNOWN)])
    values, record = read(library=library, seconds=10.0)
    assert record.lost is None and len(values["power"]) > 20
    assert record.missing["other_processes"] == "NVML_ERROR_UNKNOWN"
    assert library.calls["nvmlDeviceGetComputeRunningProcesses"] == 3


@pytest.mark.parametrize("error", [pynvml.NVMLLibraryMismatchError, AttributeError, TypeError])
def test_an_unforeseen_exception_costs_one_metric(read, monkeypatch, error):
    """pynvml raises some that are no NVMLError."""

    def breaks(machine, card):
        raise error("a surprise")

    monkeypatch.setitem(ANSWERS, "nvmlDeviceGetComputeRunningProcesses", breaks)
    values, record = read(BUSY[0])
    assert record.missing["other_processes"] == error.__name__ and values["power"][-1] == 600


def test_a_lost_gpu_is_asked_no_more_and_does_not_stop_the_host(simulate):
    library = machine_of(FALLS_OFF_THE_BUS)
    recording = simulate(library=library, seconds=40.0).recording()
    assert recording.gpus[0].lost == "NVML_ERROR_GPU_IS_LOST"
    assert len(recording.columns["gpu0/gpu_busy"]) == 51
    assert library.calls["nvmlDeviceGetUtilizationRates"] == 52
    assert len(recording.columns["host/cpu"]) > 80


def test_a_gpu_that_answers_nothing_but_unknown_is_given_up(read):
    library = machine_of([*BUSY * 5, State.all(UNKNOWN, xids=())])
    values, record = read(library=library, seconds=20.0)
    assert len(values["gpu_busy"]) == 5 and record.errors["gpu_busy"] == {"NVML_ERROR_UNKNOWN": 3}
    assert library.calls["nvmlDeviceGetUtilizationRates"] == 8


def test_a_gpu_that_was_lost_before(read):
    library = RecordedNvml(Card(BUSY, lost=pynvml.NVML_ERROR_GPU_IS_LOST))
    values, record = read(library=library)
    assert record.lost == "NVML_ERROR_GPU_IS_LOST" and not values
    assert library.calls["nvmlDeviceGetUtilizationRates"] == 0
