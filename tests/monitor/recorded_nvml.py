"""A stand-in for pynvml: the real names, signatures, units, structures and errors; recorded values.

`test_nvml.py` holds it against the real module, so that it cannot drift. Each reading of utilisation goes
on to the next state of the series, and the last one stays. A value that is an NVML error code is raised.
"""

import dataclasses
import time
from dataclasses import dataclass, field

import pynvml

GIB = 2**30


@dataclass(frozen=True)
class Fault:
    """An NVML error in place of a value."""

    code: int


NOT_SUPPORTED = Fault(pynvml.NVML_ERROR_NOT_SUPPORTED)
LOST = Fault(pynvml.NVML_ERROR_GPU_IS_LOST)


@dataclass(frozen=True)
class State:
    """What a card answers, in NVML's units: percent, bytes, mW, degrees C, MHz, bits, KB/s."""

    utilisation: object = 0
    memory_utilisation: int = 0
    used: object = 2 * GIB
    power: object = 60_000
    energy: object = None
    temperature: object = 35
    sm_clock: object = 345
    memory_clock: object = 2619
    reasons: object = pynvml.nvmlClocksEventReasonGpuIdle
    jpeg: object = 0
    decoder: object = 0
    pcie: object = 1_000
    processes: object = ()

    def but(self, **changes):
        return dataclasses.replace(self, **changes)


IDLE = [State()]
STARVED = [
    State(utilisation=percent, power=power, sm_clock=1980, reasons=0, jpeg=95, pcie=900_000)
    for percent, power in 20 * [(100, 310_000), (0, 110_000), (0, 90_000), (20, 120_000)]
]
BUSY = [State(utilisation=98, memory_utilisation=60, power=600_000, sm_clock=1900, reasons=0)]
LAUNCH_BOUND = [State(utilisation=55, memory_utilisation=20, power=200_000, sm_clock=1980, reasons=0)]
THROTTLED = [
    BUSY[0].but(
        temperature=88,
        sm_clock=1100,
        reasons=pynvml.nvmlClocksEventReasonSwThermalSlowdown | pynvml.nvmlClocksEventReasonSwPowerCap,
    )
]
MIG = [
    State(used=5 * GIB).but(
        **dict.fromkeys(
            ("utilisation", "power", "energy", "temperature", "sm_clock", "memory_clock", "reasons",
             "jpeg", "decoder", "pcie"),
            NOT_SUPPORTED,
        )
    )
]  # fmt: skip
FALLS_OFF_THE_BUS = [
    *BUSY * 5,
    State(**{each.name: LOST for each in dataclasses.fields(State) if each.name != "memory_utilisation"}),
]


@dataclass
class Card:
    """A card in the machine, or a MIG instance (`index` None), which is found by its UUID alone."""

    states: list
    uuid: str = "GPU-5a1f0c7e-0000-0000-0000-000000000000"
    name: str = "NVIDIA H100 80GB HBM3"
    index: int | None = 0
    tick: int = -1
    started: float = field(default_factory=time.monotonic)

    @property
    def state(self):
        return self.states[min(max(self.tick, 0), len(self.states) - 1)]


class RecordedNvml:
    """Only what fastae calls. `missing`: functions that this driver does not have yet."""

    def __init__(self, *cards, driver="580.65.06", missing=(), absent=None):
        self.cards = list(cards)
        self.driver = driver
        self.missing = set(missing)
        self.absent = absent
        self.opened = 0

    def nvmlInit(self):
        if self.absent:
            raise pynvml.NVMLError(self.absent)
        self.opened += 1

    def nvmlShutdown(self):
        self.opened -= 1

    def nvmlSystemGetDriverVersion(self):
        return self.driver

    def nvmlSystemGetCudaDriverVersion(self):
        return 13000

    def nvmlDeviceGetCount(self):
        return sum(card.index is not None for card in self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self._find(lambda card: card.index == index)

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return self._find(lambda card: card.uuid == uuid)

    def nvmlDeviceGetName(self, handle):
        return handle.name

    def nvmlDeviceGetUUID(self, handle):
        return handle.uuid

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):
        used = self._value(handle, "used")
        return pynvml.c_nvmlMemory_t(total=80 * GIB, used=used, free=80 * GIB - used)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        return 700_000

    def nvmlDeviceGetUtilizationRates(self, handle):
        handle.tick += 1
        gpu = self._value(handle, "utilisation")
        return pynvml.c_nvmlUtilization_t(gpu=gpu, memory=handle.state.memory_utilisation)

    def nvmlDeviceGetPowerUsage(self, handle):
        return self._value(handle, "power")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        energy = self._value(handle, "energy")
        seconds = time.monotonic() - handle.started
        return round(seconds * handle.state.power) if energy is None else energy

    def nvmlDeviceGetTemperature(self, handle, sensor):
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return self._value(handle, "temperature")

    def nvmlDeviceGetClockInfo(self, handle, type):
        name = {pynvml.NVML_CLOCK_SM: "sm_clock", pynvml.NVML_CLOCK_MEM: "memory_clock"}[type]
        return self._value(handle, name)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        self._check("nvmlDeviceGetCurrentClocksEventReasons")
        return self._value(handle, "reasons")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self._value(handle, "reasons")

    def nvmlDeviceGetJpgUtilization(self, handle):
        self._check("nvmlDeviceGetJpgUtilization")
        return [self._value(handle, "jpeg"), 167_000]

    def nvmlDeviceGetDecoderUtilization(self, handle):
        return [self._value(handle, "decoder"), 167_000]

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [
            pynvml.nvmlFriendlyObject({"pid": pid, "usedGpuMemory": used})
            for pid, used in self._value(handle, "processes")
        ]

    def nvmlDeviceGetPcieThroughput(self, device, counter):
        assert counter in (pynvml.NVML_PCIE_UTIL_RX_BYTES, pynvml.NVML_PCIE_UTIL_TX_BYTES)
        return self._value(device, "pcie")

    def _find(self, wanted):
        for card in self.cards:
            if wanted(card):
                return card
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def _check(self, name):
        if name in self.missing:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    def _value(self, card, name):
        value = getattr(card.state, name)
        if isinstance(value, Fault):
            raise pynvml.NVMLError(value.code)
        return value
