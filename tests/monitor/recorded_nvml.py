"""A stand-in for pynvml: the real names, signatures, units, structures and errors; recorded values.

`test_nvml.py` compares it with the real module, so that it cannot drift. Each reading of utilization moves on
to the next state of the series, and the last one stays. A value that is a Fault is raised, or is the field's
return code.
"""

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass, field

import pynvml

GIB = 2**30


@dataclass(frozen=True)
class Fault:
    """An NVML error instead of a value."""

    code: int


NOT_SUPPORTED = Fault(pynvml.NVML_ERROR_NOT_SUPPORTED)
LOST = Fault(pynvml.NVML_ERROR_GPU_IS_LOST)
UNKNOWN = Fault(pynvml.NVML_ERROR_UNKNOWN)


@dataclass(frozen=True)
class State:
    """What a card answers, in NVML's units: percent, bytes, mW, mJ, degrees C, MHz, bits, KB/s.

    throttled: field -> share of the time that its counter runs. gpm: GPM's metric -> value; None for a card
    without GPM.
    """

    utilization: object = 0
    memory_utilization: int = 0
    used: object = 2 * GIB
    instant_power: object = 60_000
    mean_power: object = 60_000
    energy: object = None
    temperature: object = 35
    sm_clock: object = 345
    memory_clock: object = 2619
    reasons: object = pynvml.nvmlClocksEventReasonGpuIdle
    jpeg: object = 0
    decoder: object = 0
    throughput: object = 1_000
    counted: object = 1_000
    link: object = (5, 16)
    performance_state: object = 0
    throttled: object = field(default_factory=lambda: {74: 0.0, 269: 0.0, 270: 0.0, 271: 0.0})
    gpm: object = None
    processes: object = ()

    def but(self, **changes):
        if "power" in changes:
            power = changes.pop("power")
            changes |= {"instant_power": power, "mean_power": power}
        return dataclasses.replace(self, **changes)

    @classmethod
    def all(cls, value, **others):
        """Every call gives the same, a Fault say, but for `others`."""
        given = {each.name: value for each in dataclasses.fields(cls) if each.name != "memory_utilization"}
        return cls(**(given | others))


def gpm(active, occupancy, tensor, bandwidth, mib_per_second=100.0):
    return {2: active, 3: occupancy, 5: tensor, 10: bandwidth, 20: mib_per_second, 21: mib_per_second}


IDLE = [State()]
STARVED = [
    State(utilization=percent, sm_clock=1980, reasons=0, jpeg=95, counted=900_000).but(power=power)
    for percent, power in 200 * [(100, 310_000), (0, 110_000), (0, 90_000), (20, 120_000)]
]
BUSY = [State(utilization=98, memory_utilization=60, sm_clock=1900, reasons=0).but(power=600_000)]
LAUNCH_BOUND = [State(utilization=55, memory_utilization=20, sm_clock=1980, reasons=0).but(power=200_000)]
COMPUTE_BOUND = [BUSY[0].but(gpm=gpm(92.0, 40.0, 70.0, 30.0))]
MEMORY_BOUND = [BUSY[0].but(gpm=gpm(85.0, 50.0, 10.0, 75.0))]
UNDERFILLED = [BUSY[0].but(gpm=gpm(20.0, 10.0, 2.0, 5.0))]
AT_POWER_LIMIT = [
    BUSY[0].but(
        power=700_000,
        reasons=pynvml.nvmlClocksEventReasonSwPowerCap,
        throttled={74: 0.9, 269: 0.0, 270: 0.0, 271: 0.0},
    )
]
TOO_HOT = [
    BUSY[0].but(
        temperature=88,
        sm_clock=1100,
        reasons=pynvml.nvmlClocksEventReasonHwThermalSlowdown,
        throttled={74: 0.0, 269: 0.0, 270: 0.25, 271: 0.0},
    )
]
SLICE = [State.all(NOT_SUPPORTED, used=5 * GIB, gpm=None, processes=())]
HOPPER_SLICE = [SLICE[0].but(gpm=gpm(92.0, 40.0, 70.0, 30.0))]
FALLS_OFF_THE_BUS = [*BUSY * 50, State.all(LOST)]
"""Lost after five seconds at 10 Hz."""


@dataclass(eq=False)
class Card:
    """A card in the machine, or a MIG slice of one (`board`); `index` None: hidden but for its UUID.

    lost: NVML's error for whoever asks for its handle. clock: seconds, by which its counters run.
    """

    states: list
    uuid: str = "GPU-5a1f0c7e-0000-0000-0000-000000000000"
    name: str = "NVIDIA H100 80GB HBM3"
    index: int | None = 0
    board: "Card | None" = None
    mig: bool = False
    lost: int | None = None
    capability: tuple = (9, 0)
    clock: object = time.monotonic
    tick: int = -1
    millijoules: float = 0.0
    read_at: float = 0.0

    @property
    def state(self):
        return self.states[min(max(self.tick, 0), len(self.states) - 1)]


class RecordedNvml:
    """Only what fastae calls. `missing`: functions that this driver does not have yet. calls: how often each
    function was called."""

    def __init__(self, *cards, driver="580.65.06", cuda=13000, missing=(), absent=None):
        self.cards = list(cards)
        self.driver = driver
        self.cuda = cuda
        self.missing = set(missing)
        self.absent = absent
        self.opened = 0
        self.calls = Counter()
        self.sampled = None

    def __getattribute__(self, name):
        if name.startswith("nvml"):
            self.calls[name] += 1
            if name in self.missing:
                return lambda *arguments: _raise(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return object.__getattribute__(self, name)

    def nvmlInit(self):
        if self.absent:
            raise pynvml.NVMLError(self.absent)
        self.opened += 1

    def nvmlShutdown(self):
        self.opened -= 1

    def nvmlSystemGetDriverVersion(self):
        return self.driver

    def nvmlSystemGetCudaDriverVersion(self):
        return self.cuda

    def nvmlDeviceGetCount(self):
        return sum(card.index is not None for card in self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        card = self._find(lambda card: card.index == index)
        if card.lost:
            raise pynvml.NVMLError(card.lost)
        return card

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return self._find(lambda card: card.uuid == uuid)

    def nvmlDeviceGetName(self, handle):
        return handle.name

    def nvmlDeviceGetUUID(self, handle):
        return handle.uuid

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return handle.capability if handle else _raise(pynvml.NVML_ERROR_INVALID_ARGUMENT)

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):
        used = self._value(handle, "used")
        if version is None:  # the driver's own half a GiB counts as used
            return pynvml.c_nvmlMemory_t(total=80 * GIB, used=used + GIB // 2, free=80 * GIB - used)
        assert version == pynvml.nvmlMemory_v2
        return pynvml.c_nvmlMemory_v2_t(total=80 * GIB, reserved=GIB // 2, used=used, free=80 * GIB - used)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        return 700_000

    def nvmlDeviceGetMaxClockInfo(self, handle, type):
        return 1980

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle):
        return 5

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle):
        return 16

    def nvmlDeviceGetUtilizationRates(self, handle):
        handle.tick += 1
        gpu = self._value(handle, "utilization")
        return pynvml.c_nvmlUtilization_t(gpu=gpu, memory=handle.state.memory_utilization)

    def nvmlDeviceGetPowerUsage(self, handle):
        return self._value(handle, "mean_power")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        energy = self._field(handle, pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION)
        return _raise(energy.code) if isinstance(energy, Fault) else energy

    def nvmlDeviceGetFieldValues(self, handle, fieldIds):
        values = (pynvml.c_nvmlFieldValue_t * len(fieldIds))()
        for each, number in zip(values, fieldIds, strict=True):
            each.fieldId = number
            answer = self._field(handle, number)
            if isinstance(answer, Fault):
                each.nvmlReturn = answer.code
            elif number in (pynvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES, pynvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES):
                each.valueType, each.value.uiVal = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, answer % 2**32
            else:
                each.valueType, each.value.ullVal = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, answer
        return values

    def _field(self, card, number):
        state = card.state
        if number == pynvml.NVML_FI_DEV_POWER_INSTANT:
            return state.instant_power
        if number == pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION:
            if state.energy is not None or isinstance(state.instant_power, Fault):
                return state.energy or state.instant_power
            card.millijoules += (card.clock() - card.read_at) * state.instant_power
            card.read_at = card.clock()
            return round(card.millijoules)
        if number in (pynvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES, pynvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES):
            known = isinstance(state.counted, Fault)
            return state.counted if known else round(time.monotonic() * 1e3 * state.counted)
        if isinstance(state.throttled, Fault) or number not in state.throttled:
            return state.throttled if isinstance(state.throttled, Fault) else NOT_SUPPORTED
        return round(1e9 * card.clock() * state.throttled[number]) + 10**12

    def nvmlDeviceGetTemperature(self, handle, sensor):
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return self._value(handle, "temperature")

    def nvmlDeviceGetClockInfo(self, handle, type):
        name = {pynvml.NVML_CLOCK_SM: "sm_clock", pynvml.NVML_CLOCK_MEM: "memory_clock"}[type]
        return self._value(handle, name)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        return self._value(handle, "reasons")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self._value(handle, "reasons")

    def nvmlDeviceGetPerformanceState(self, handle):
        return self._value(handle, "performance_state")

    def nvmlDeviceGetCurrPcieLinkGeneration(self, handle):
        return self._value(handle, "link")[0]

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle):
        return self._value(handle, "link")[1]

    def nvmlDeviceGetJpgUtilization(self, handle):
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
        return self._value(device, "throughput")

    def nvmlDeviceGetMigMode(self, device):
        if device.board:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return [int(device.mig), int(device.mig)]

    def nvmlDeviceGetMaxMigDeviceCount(self, device):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device, index):
        slices = [card for card in self.cards if card.board is device]
        return slices[index] if index < len(slices) else _raise(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, migDevice):
        return migDevice.board

    def nvmlDeviceGetGpuInstanceId(self, device):
        return [card for card in self.cards if card.board is device.board].index(device)

    def nvmlGpmQueryDeviceSupport(self, device):
        cards = [device, *(card for card in self.cards if card.board is device)]
        return pynvml.c_nvmlGpmSupport_t(
            version=1, isSupportedDevice=any(card.state.gpm is not None for card in cards)
        )

    def nvmlGpmSampleAlloc(self):
        return pynvml.c_nvmlGpmSample_t()

    def nvmlGpmSampleGet(self, device, gpmSample):
        self.sampled = device
        return gpmSample

    def nvmlGpmMigSampleGet(self, device, gpuInstanceId, gpmSample):
        self.sampled = [card for card in self.cards if card.board is device][gpuInstanceId]
        return gpmSample

    def nvmlGpmMetricsGet(self, metricsGet):
        assert metricsGet.version == pynvml.NVML_GPM_METRICS_GET_VERSION
        for metric in metricsGet.metrics[: metricsGet.numMetrics]:
            metric.value = self._value(self.sampled, "gpm")[metric.metricId]
        return metricsGet

    def _find(self, wanted):
        for card in self.cards:
            if wanted(card):
                return card
        return _raise(pynvml.NVML_ERROR_NOT_FOUND)

    def _value(self, card, name):
        value = getattr(card.state, name)
        return _raise(value.code) if isinstance(value, Fault) else value


def _raise(code):
    raise pynvml.NVMLError(code)


def mig_machine(states=SLICE, names=("aaaa", "bbbb")):
    """A board in MIG mode and its slices."""
    board = Card(BUSY, mig=True, uuid="GPU-board")
    slices = [
        Card(list(states), uuid=f"MIG-{name}", index=None, board=board, name="NVIDIA H100 MIG 1g.10gb")
        for name in names
    ]
    return RecordedNvml(board, *slices)
