"""The stand-in against the real pynvml, and which GPUs a process uses."""

import inspect

import pynvml
import pytest

from fastae.errors import FastaeError
from fastae.monitor.gpu_reader import GPU_METRICS, GpuReader
from fastae.monitor.nvml import Gpu, all_gpus, close_nvml, gpu_by_uuid, open_nvml, visible_gpus

from .recorded_nvml import BUSY, GIB, IDLE, MIG, Card, Fault, RecordedNvml

FUNCTIONS = [name for name in dir(RecordedNvml) if name.startswith("nvml")]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_stand_in_has_the_real_signature(name):
    real = inspect.signature(getattr(pynvml, name))
    ours = inspect.signature(getattr(RecordedNvml(), name))
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in real.parameters.values()
    ]


def test_a_function_that_the_stand_in_lacks_is_not_called():
    """Whatever `fastae.monitor` calls is held against the real module by the test above."""
    from fastae import doctor
    from fastae.monitor import gpu_reader, nvml

    sources = "".join(inspect.getsource(module) for module in (doctor, gpu_reader, nvml))
    called = {word.split("(")[0].split(",")[0] for word in sources.split("library.")[1:]}
    called = {name.split(")")[0].strip() for name in called if name.startswith("nvml")}
    assert called and called <= set(FUNCTIONS)


def test_the_real_module_without_a_driver_is_one_line():
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        with pytest.raises(FastaeError, match="NVIDIA driver"):
            open_nvml()
    else:
        pynvml.nvmlShutdown()
        pytest.skip("there is a driver")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver was found"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "does not answer: NVML_ERROR_DRIVER_NOT_LOADED"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "NVML_ERROR_LIB_RM_VERSION_MISMATCH"),
    ],
)
def test_a_driver_that_does_not_answer(code, words):
    with pytest.raises(FastaeError, match=words):
        open_nvml(RecordedNvml(absent=code))


def test_what_is_opened_is_closed():
    library = open_nvml(RecordedNvml(Card(IDLE)))
    close_nvml(library)
    assert library.opened == 0


@pytest.fixture
def machine():
    """Two cards, and a MIG instance of a third that this process may not see."""
    return RecordedNvml(
        Card(IDLE, uuid="GPU-aaaa1111", index=0),
        Card(BUSY, uuid="GPU-bbbb2222", index=1),
        Card(MIG, uuid="MIG-cccc3333", index=None, name="NVIDIA H100 MIG 1g.10gb"),
    )


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, ["GPU-aaaa1111", "GPU-bbbb2222"]),
        ("1", ["GPU-bbbb2222"]),
        ("1,0", ["GPU-bbbb2222", "GPU-aaaa1111"]),
        ("GPU-bbbb", ["GPU-bbbb2222"]),
        ("GPU-", []),
        ("MIG-cccc3333", ["MIG-cccc3333"]),
        ("0,7,1", ["GPU-aaaa1111"]),
        ("", []),
        ("-1", []),
        ("none", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(machine, visible, uuids):
    found = visible_gpus(machine, visible)
    assert [gpu.uuid for gpu in found] == uuids
    assert [gpu.index for gpu in found] == list(range(len(uuids)))


def test_a_gpu_by_the_uuid_that_pytorch_gives(machine):
    found = gpu_by_uuid(machine, "GPU-bbbb2222")
    assert found == Gpu(0, "NVIDIA H100 80GB HBM3", "GPU-bbbb2222", 80.0, 700.0)
    assert gpu_by_uuid(machine, "GPU-unknown") is None


def reading(library, slow=True, processes=()):
    reader = GpuReader(library, all_gpus(library)[0])
    values = reader.read(slow, processes)
    return reader, dict(zip([metric.name for metric in GPU_METRICS], values, strict=True))


def test_every_unit_is_converted():
    state = BUSY[0].but(
        energy=5_000_000, jpeg=7, decoder=3, pcie=2_500, temperature=51, processes=((9, GIB),)
    )
    reader, values = reading(RecordedNvml(Card([state])), processes=(8, 9))
    assert values == {
        "utilisation": 98, "memory_utilisation": 60, "memory": 2.0, "power": 600.0, "energy": 5000.0,
        "sm_clock": 1900, "throttle_reasons": 0, "jpeg": 7, "decoder": 3, "process_memory": 1.0,
        "temperature": 51, "memory_clock": 2619, "pcie_received": 2.5, "pcie_sent": 2.5,
    }  # fmt: skip
    assert reader.not_offered == {} and reader.errors == {} and reader.lost is None


def test_slow_ones_are_left_out_between():
    _, values = reading(RecordedNvml(Card(BUSY)), slow=False)
    missing = {name for name, value in values.items() if value != value}
    assert missing == {"process_memory", "temperature", "memory_clock", "pcie_received", "pcie_sent"}


def test_an_older_driver_knows_the_older_name_and_no_jpeg_engine():
    new = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetJpgUtilization")
    reader, values = reading(RecordedNvml(Card(BUSY), missing=new))
    assert values["throttle_reasons"] == 0
    assert reader.not_offered["jpeg"] == "NVML_ERROR_FUNCTION_NOT_FOUND"


def test_a_container_hides_the_process():
    reader, _ = reading(RecordedNvml(Card(BUSY)), processes=(1,))
    assert list(reader.not_offered) == ["process_memory"]
    assert "container" in reader.not_offered["process_memory"]


def test_a_first_timeout_is_no_refusal():
    states = [BUSY[0].but(power=Fault(pynvml.NVML_ERROR_TIMEOUT), energy=0), BUSY[0]]
    reader, values = reading(RecordedNvml(Card(states)), processes=())
    assert values["power"] != values["power"] and reader.not_offered["power"] == "NVML_ERROR_TIMEOUT"
    reader.read(False)
    assert "power" not in reader.not_offered
