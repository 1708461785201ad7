"""A stand-in for pynvml with recorded values: its names, signatures, units, structures and errors are real.

A call is bound to the signature of the real function, so that the stand-in cannot deviate from it. Each
reading of the utilization moves the card to its next state, and it stays in the last one. If a value is an
exception, it is raised, or its code is the return code of the field.
"""

import dataclasses
import inspect
import time
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import pynvml
from pynvml import NVMLError, nvmlFriendlyObject

GIB = 2**30

NOT_SUPPORTED = NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
NOT_FOUND = NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
LOST = NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
UNKNOWN = NVMLError(pynvml.NVML_ERROR_UNKNOWN)


@dataclass(frozen=True)
class State:
    """What a card answers, in NVML's units: percent, bytes, mW, degrees C, MHz, bits."""

    utilization: object = 0
    used: object = 2 * GIB
    power: object = 60_000
    mean_power: object = 60_000

    energy: object = None
    """The mW by which the energy counter grows; None for the value of `power`."""

    temperature: object = 35
    sm_clock: object = 345
    reasons: object = pynvml.nvmlClocksEventReasonGpuIdle
    jpeg: object = 0
    width: object = 16

    corrected: object = 0
    uncorrected: object = 0
    """ECC errors so far."""

    xids: tuple = ()
    """The XID errors that the driver logs in this state."""

    gpm: object = None
    """GPM's number of a metric -> value; None for a card without GPM."""

    processes: object = ()
    """The ids of the processes on the card."""

    process_times: object = None
    """The id of a process -> percent of the time of its kernels; None if the driver does not measure it."""

    throttled: object = None
    """The share of the time in which each counted reason lowers the clocks; None if nothing is counted."""

    def but(self, **changes):
        return dataclasses.replace(self, **changes)

    @classmethod
    def all(cls, value, **others):
        """Returns a state in which each call gives this value, or raises this error, except `others`."""
        return cls(**({each.name: value for each in dataclasses.fields(cls)} | others))


def gpm(active, tensor, fp32, bandwidth):
    return {2: active, 5: tensor, 12: fp32, 10: bandwidth}


IDLE = [State()]
STARVED = [
    State(utilization=percent, sm_clock=1980, reasons=0, jpeg=95, power=power)
    for percent, power in 200 * [(100, 310_000), (0, 110_000), (0, 90_000), (20, 120_000)]
]
BUSY = [State(utilization=98, sm_clock=1900, reasons=0, power=600_000)]
HALF_BUSY = [BUSY[0].but(utilization=55, power=200_000)]
COMPUTE_BOUND = [BUSY[0].but(gpm=gpm(92.0, 70.0, 20.0, 30.0))]
MEMORY_BOUND = [BUSY[0].but(gpm=gpm(85.0, 10.0, 15.0, 75.0))]
UNDERFILLED = [BUSY[0].but(gpm=gpm(20.0, 2.0, 1.0, 5.0))]
LATENCY_BOUND = [BUSY[0].but(gpm=gpm(97.0, 2.0, 1.0, 8.0))]
NO_TENSOR_CORES = [BUSY[0].but(gpm=gpm(95.0, 0.0, 50.0, 30.0))]
AT_POWER_LIMIT = [BUSY[0].but(power=700_000, reasons=pynvml.nvmlClocksEventReasonSwPowerCap)]
HARDWARE_SLOWDOWN = pynvml.nvmlClocksEventReasonHwSlowdown
TOO_HOT = [
    BUSY[0].but(temperature=88, reasons=reasons | HARDWARE_SLOWDOWN * bool(reasons))
    for reasons in 50 * [pynvml.nvmlClocksEventReasonHwThermalSlowdown, 0, 0, 0]
]
SLOWED_DOWN = [BUSY[0].but(reasons=HARDWARE_SLOWDOWN)]
SLICE = [State.all(NOT_SUPPORTED, used=5 * GIB, gpm=None, processes=(), xids=())]
HOPPER_SLICE = [SLICE[0].but(gpm=gpm(92.0, 70.0, 20.0, 30.0))]
FALLS_OFF_THE_BUS = [*BUSY * 50, BUSY[0].but(xids=(79, 45, 45)), State.all(LOST, xids=())]
"""The card is lost after the 51st reading."""


@dataclass(eq=False)
class Card:
    """A card in the machine, or a MIG slice of a card."""

    states: list
    uuid: str = "GPU-5a1f0c7e-0000-0000-0000-000000000000"
    name: str = "NVIDIA H100 80GB HBM3"

    index: int | None = 0
    """The index in NVML; None if NVML finds it only by its UUID."""

    board: "Card | None" = None
    """The card that a slice is part of."""

    lost: int | None = None
    """The code of the error that NVML raises when it is asked for the handle, if it does."""

    capability: tuple = (9, 0)
    power_limit: int = 700_000
    default_power_limit: int = 700_000
    max_sm_clock: int = 1980

    clock: object = time.monotonic
    """Returns the seconds by which the counters run."""

    tick: int = -1
    """The index of the current state."""

    xids: list = field(default_factory=list)
    """The XID errors that the driver has logged and that have not been read yet."""

    def get(self, name):
        """Returns a value of the current state, or raises it if it is an error."""
        value = getattr(self.states[min(max(self.tick, 0), len(self.states) - 1)], name)
        if isinstance(value, Exception):
            raise value
        return value


class RecordedNvml:
    """The functions of pynvml that fastae calls. `calls` counts the calls of each function.

    Args:
        cards: the cards of the machine.
        missing: the functions that this driver does not have yet.
        absent: the code of the error that nvmlInit raises, if any.
    """

    def __init__(self, *cards, missing=(), absent=None):
        self.cards = cards
        self.missing = missing
        self.absent = absent
        self.opened = 0
        self.allocated = 0
        self.calls = Counter()

    def __getattr__(self, name):
        if not name.startswith("nvml"):
            raise AttributeError(name)
        signature = inspect.signature(getattr(pynvml, name))

        def call(*arguments, **named):
            self.calls[name] += 1
            bound = signature.bind(*arguments, **named)
            bound.apply_defaults()
            if name in self.missing:
                raise NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
            return ANSWERS[name](self, *bound.arguments.values())

        return call

    def find(self, wanted):
        for card in self.cards:
            if wanted(card):
                return card
        raise NOT_FOUND

    def slices(self, board):
        return [card for card in self.cards if card.board is board]


def initialise(machine):
    if machine.absent:
        raise NVMLError(machine.absent)
    machine.opened += 1


def close(machine):
    machine.opened -= 1


def by_index(machine, index):
    card = machine.find(lambda card: card.index == index)
    if card.lost:
        raise NVMLError(card.lost)
    return card


def memory(machine, card, version):
    own = 0 if version == pynvml.nvmlMemory_v2 else GIB // 2  # the driver's, which the first version counts
    return nvmlFriendlyObject({"total": 80 * GIB, "used": card.get("used") + own})


def utilization(machine, card):
    card.tick += 1
    card.xids += card.get("xids") if card.tick < len(card.states) else ()
    return pynvml.c_nvmlUtilization_t(gpu=card.get("utilization"))


def field_values(machine, card, numbers):
    (number,) = numbers
    value = pynvml.c_nvmlFieldValue_t(fieldId=number, valueType=pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG)
    try:
        if number == pynvml.NVML_FI_DEV_POWER_INSTANT:
            value.value.ullVal = card.get("power")
        elif number != pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION:
            value.value.ullVal = round(card.clock() * offered(card.get("throttled")) * 1e9)
        else:
            value.value.ullVal = round(card.clock() * (card.get("energy") or card.get("power")))
    except NVMLError as error:
        value.nvmlReturn = error.value
    return [value]


def offered(value):
    if value is None:
        raise NOT_SUPPORTED
    return value


def allocate(machine, kind):
    machine.allocated += 1
    return kind()


def free(machine, allocated):
    machine.allocated -= 1


def process_times(machine, card, since):
    sample = pynvml.c_nvmlProcessUtilizationSample_t
    times = offered(card.get("process_times"))
    if not times:
        raise NOT_FOUND
    return [sample(pid=pid, smUtil=percent) for pid, percent in times.items()]


def register(machine, card, kinds, events):
    assert kinds == pynvml.nvmlEventTypeXidCriticalError
    events.card = card


def wait_for_event(machine, events, milliseconds):
    assert milliseconds == 0, "it would block"
    if not events.card.xids:
        raise NVMLError(pynvml.NVML_ERROR_TIMEOUT)
    return pynvml.c_nvmlEventData_t(eventData=events.card.xids.pop(0))


def gpm_metrics(machine, request):
    assert request.version == pynvml.NVML_GPM_METRICS_GET_VERSION
    for metric in request.metrics[: request.numMetrics]:
        metric.value = machine.gpm_card.get("gpm")[metric.metricId]
    return request


def take_sample(machine, card, sample):
    machine.gpm_card = card


def gpm_support(machine, card):
    offers = any(each.get("gpm") is not None for each in (card, *machine.slices(card)))
    return pynvml.c_nvmlGpmSupport_t(version=1, isSupportedDevice=offers)


ANSWERS = {
    "nvmlInit": initialise,
    "nvmlShutdown": close,
    "nvmlSystemGetDriverVersion": lambda machine: "580.65.06",
    "nvmlSystemGetCudaDriverVersion": lambda machine: 13000,
    "nvmlDeviceGetCount": lambda machine: sum(card.index is not None for card in machine.cards),
    "nvmlDeviceGetHandleByIndex": by_index,
    "nvmlDeviceGetHandleByUUID": lambda machine, uuid: machine.find(lambda card: card.uuid == uuid),
    "nvmlDeviceGetIndex": lambda machine, card: card.index,
    "nvmlDeviceGetName": lambda machine, card: card.name,
    "nvmlDeviceGetUUID": lambda machine, card: card.uuid,
    "nvmlDeviceGetCudaComputeCapability": lambda machine, card: card.capability,
    "nvmlDeviceGetMemoryInfo": memory,
    "nvmlDeviceGetEnforcedPowerLimit": lambda machine, card: card.power_limit,
    "nvmlDeviceGetPowerManagementDefaultLimit": lambda machine, card: card.default_power_limit,
    "nvmlDeviceGetMaxClockInfo": lambda machine, card, kind: card.max_sm_clock,
    "nvmlDeviceGetMaxPcieLinkWidth": lambda machine, card: 16,
    "nvmlDeviceGetUtilizationRates": utilization,
    "nvmlDeviceGetPowerUsage": lambda machine, card: card.get("mean_power"),
    "nvmlDeviceGetFieldValues": field_values,
    "nvmlDeviceGetTemperature": lambda machine, card, sensor: card.get("temperature"),
    "nvmlDeviceGetClockInfo": lambda machine, card, kind: card.get("sm_clock"),
    "nvmlDeviceGetCurrentClocksEventReasons": lambda machine, card: card.get("reasons"),
    "nvmlDeviceGetCurrentClocksThrottleReasons": lambda machine, card: card.get("reasons"),
    "nvmlDeviceGetProcessUtilization": process_times,
    "nvmlDeviceGetCurrPcieLinkWidth": lambda machine, card: card.get("width"),
    "nvmlDeviceGetTotalEccErrors": lambda machine, card, kind, counter: card.get(
        ("corrected", "uncorrected")[kind]
    ),
    "nvmlEventSetCreate": lambda machine: allocate(machine, SimpleNamespace),
    "nvmlEventSetFree": free,
    "nvmlDeviceRegisterEvents": register,
    "nvmlEventSetWait_v2": wait_for_event,
    "nvmlDeviceGetJpgUtilization": lambda machine, card: [card.get("jpeg"), 167_000],
    "nvmlDeviceGetComputeRunningProcesses": lambda machine, card: [
        nvmlFriendlyObject({"pid": pid}) for pid in card.get("processes")
    ],
    "nvmlDeviceGetMaxMigDeviceCount": lambda machine, card: len(machine.slices(card)),
    "nvmlDeviceGetMigDeviceHandleByIndex": lambda machine, board, index: machine.slices(board)[index],
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": lambda machine, card: card.board,
    "nvmlDeviceGetGpuInstanceId": lambda machine, card: machine.slices(card.board).index(card),
    "nvmlGpmQueryDeviceSupport": gpm_support,
    "nvmlGpmSampleAlloc": lambda machine: allocate(machine, pynvml.c_nvmlGpmSample_t),
    "nvmlGpmSampleFree": free,
    "nvmlGpmSampleGet": take_sample,
    "nvmlGpmMigSampleGet": lambda machine, board, instance, sample: take_sample(
        machine, machine.slices(board)[instance], sample
    ),
    "nvmlGpmMetricsGet": gpm_metrics,
}


def machine_of(*cards, **options):
    """Makes a machine from cards. Each is a Card, or the series of its states."""
    made = [card if isinstance(card, Card) else Card(list(card)) for card in cards]
    placed = (dataclasses.replace(card, uuid=f"GPU-{index}", index=index) for index, card in enumerate(made))
    return RecordedNvml(*placed, **options)


def mig_machine(states=SLICE, names=("aaaa", "bbbb")):
    """Makes a machine with a board in MIG mode and its slices."""
    board = Card(BUSY, uuid="GPU-board")
    name = "NVIDIA H100 MIG 1g.10gb"
    slices = [Card(list(states), f"MIG-{uuid}", name, index=None, board=board) for uuid in names]
    return RecordedNvml(board, *slices)
