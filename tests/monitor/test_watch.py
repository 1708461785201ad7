"""`fastae.watch` measures loops of others: in simulated time, and with simulated events of a GPU."""

from collections import UserDict
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastae import watch
from fastae.errors import FastaeError
from fastae.monitor import loop_timer, monitor
from fastae.monitor.files import read_report, read_reports
from fastae.monitor.loop_timer import LoopTimer
from fastae.monitor.recording import Phase
from fastae.monitor.summary import Verdict
from fastae.monitor.watch import first_dimension

from ..commands import here
from ..test_docs import blocks, run
from .conftest import StubHost

BATCH = torch.zeros(4, 3)


@pytest.fixture
def now(monkeypatch):
    """The time of the loop in seconds, in a list. The host's figures are made up."""
    now = [100.0]
    monkeypatch.setattr(loop_timer.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(monitor, "HostReader", lambda pids: StubHost(2.0, 2.0))
    return now


def open_watch(folder, **options):
    return watch(folder, device="cpu", hz=50, **options)


def batches(now, number, wait=3, queued=()):
    """Yields (tensor, number) pairs; each takes `wait` seconds, except those that the loader has `queued`."""
    for index in range(number):
        now[0] += 0 if index in queued else wait
        yield BATCH, index


def test_a_starved_loop_is_found_and_its_headroom_is_the_one_by_construction(now, tmp_path):
    """The loader needs 3 s, the step 1 s. While 5 batches are replayed, the loader fills its queue."""
    seen = []
    with open_watch(tmp_path / "new" / "folder") as watched:
        for epoch in range(2):
            for _, index in watched(batches(now, 40, queued=[] if epoch else range(15, 20)), replay=5):
                now[0] += 1
                seen.append(index)
    assert seen == [*range(15), *range(10, 15), *range(10, 15), *range(15, 40), *range(40)], "replayed once"
    report = read_report(tmp_path / "new" / "folder")
    summary = report.summary
    assert (summary.images_per_second, summary.replayed, summary.headroom) == pytest.approx((1, 4, 4))
    assert summary.data_wait == pytest.approx(0.75) and summary.device_wait is None
    assert (
        report.diagnosis.verdict is Verdict.WAITING_FOR_DATA and "num_workers" in report.diagnosis.advice[0]
    )
    assert "4.00x" in watched.summary
    assert set(summary.phases) >= {Phase.WARM_UP, Phase.TRAIN, Phase.REPLAY, Phase.OTHER}


def test_evaluation_within_and_between_loops_is_not_counted(now, tmp_path):
    with open_watch(tmp_path) as watched:
        for _ in range(2):
            for _, index in watched(batches(now, 20, wait=1), images=8):
                now[0] += 1
                if index % 7 == 0:
                    with watched.phase("eval"):
                        now[0] += 100
                        with watched.phase("save"):
                            now[0] += 10
                        now[0] += 1
                    now[0] += 2
            with watched.phase("save"):
                now[0] += 50
    summary = read_report(tmp_path).summary
    assert summary.images_per_second == pytest.approx(8 * 30 / (30 * 2 + 4 * 2), rel=1e-6)
    assert set(summary.phases) >= {Phase.EVAL, Phase.SAVE} and summary.headroom is None


def test_a_folder_has_a_part_for_each_watch_and_the_command_prints_the_same(now, tmp_path, capsys):
    for number in (1, 2):
        with open_watch(tmp_path) as watched:
            for _ in watched(batches(now, 12)):
                now[0] += 1
        assert len(read_reports(tmp_path)) == number
    assert {path.name for path in tmp_path.iterdir()} >= {"gpu.json", "gpu-2.csv", "gpu-2.png"}
    capsys.readouterr()
    here("gpu", tmp_path)
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines()] == [
        line.split() for line in watched.summary.splitlines()
    ]
    assert "parts" in shown and "\nverdict " in shown


def ends_with(error):
    def end(watched, now):
        for _, index in watched(batches(now, 20)):
            now[0] += 1
            if index == 15:
                raise error

    return end  # fmt: skip


def nests(watched, now):
    for _ in watched(batches(now, 20)):
        list(watched([BATCH]))


@pytest.mark.parametrize(
    ("use", "error", "rate"),
    [
        (ends_with(ValueError("theirs")), ValueError, 1),
        (ends_with(KeyboardInterrupt()), KeyboardInterrupt, 1),
        (nests, FastaeError, None),
        (lambda watched, now: next(watched(batches(now, 20))), None, None),
        (lambda watched, now: list(watched([])), None, None),
        (lambda watched, now: None, None, None),
    ],
    ids=["error", "Ctrl-C", "nested", "left open", "empty", "unused"],
)
def test_a_loop_that_ends_early_has_the_report_so_far(now, tmp_path, capsys, use, error, rate):
    with suppress(error or ()), open_watch(tmp_path) as watched:
        use(watched, now)
        assert error is None
    assert read_report(tmp_path).summary.images_per_second == rate
    if rate is None:
        assert read_report(tmp_path).diagnosis.verdict is Verdict.UNKNOWN
    assert watched.summary and "Traceback" not in capsys.readouterr().out


def reused(folder):
    watched = open_watch(folder)
    with watched:
        pass
    with watched:
        pass


@pytest.mark.parametrize(
    "use",
    [
        reused,
        lambda folder: open_watch(folder)([BATCH]),
        lambda folder: open_watch(folder).summary,
        lambda folder: watch(folder, device="gpu"),
        lambda folder: watch(folder, hz=-1),
        lambda folder: open_watch(folder).phase("lunch").__enter__(),
        lambda folder: open_watch(folder).phase("eval").__enter__(),
        lambda folder: open_watch(folder)([BATCH], replay=-1),
        lambda folder: open_watch(folder)([BATCH], images=0.5),
        lambda folder: open_watch(folder)(5),
        lambda folder: open_watch("/proc/none").__enter__(),
    ],
)
def test_bad_use_is_refused_in_one_line(now, tmp_path, use):
    with pytest.raises(FastaeError) as caught:
        use(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", ["data_ready", "end_step", "cut", "skip"])
def test_an_error_of_the_measurement_is_logged_once_and_does_not_end_the_loop(
    tmp_path, monkeypatch, capsys, broken
):
    def fails(self):
        raise RuntimeError("a surprise")

    with open_watch(tmp_path) as watched:
        monkeypatch.setattr(LoopTimer, broken, fails)
        seen = list(watched(range(20), replay=2))
    assert seen == [*range(12), 10, 11, 10, 11, *range(12, 20)]
    assert capsys.readouterr().out.count("a surprise") == 1 and read_report(tmp_path)


@pytest.mark.parametrize(("rank", "is_measured"), [("0", True), ("1", False)])
def test_of_several_ranks_only_the_main_one_measures_but_all_replay(
    now, tmp_path, monkeypatch, rank, is_measured
):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with open_watch(tmp_path / "folder") as watched:
        seen = []
        for _, index in watched(batches(now, 30), replay=5):
            now[0] += 1
            seen.append(index)
    assert len(seen) == 40
    if is_measured:
        assert read_report(tmp_path / "folder").summary.images_per_second == 2
    else:
        assert watched.summary == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("batch", "images"),
    [
        (BATCH, 4), ((BATCH, torch.zeros(7)), 4), ([{"data": BATCH}], 4), ({"path": ["a"], "x": BATCH}, 4),
        (UserDict(pixels=BATCH), 4), ((torch.zeros(()), [np.zeros((5, 2))]), 5), (["a", 3], 0), (None, 0),
    ],
)  # fmt: skip
def test_images_are_counted_by_the_first_dimension_of_the_first_tensor(batch, images):
    assert first_dimension(batch) == images


class Device:
    """A GPU that reaches its events when `work` is called, one second after the other."""

    def __init__(self):
        self.reached, self.events = 0, []

    def mark(self):
        event = SimpleNamespace(number=len(self.events), query=lambda: event.number < self.reached)
        event.elapsed_time = lambda later: 1e3 * (later.number - event.number)
        event.synchronize = lambda: self.work(event.number + 1)
        self.events.append(event)
        return event

    def work(self, reached=None):
        self.reached = reached or len(self.events)


@pytest.mark.parametrize("is_behind", [True, False])
def test_a_window_of_a_gpu_is_read_when_the_device_has_reached_its_end(tmp_path, monkeypatch, is_behind):
    device, read = Device(), []

    def fetched():
        for _ in range(15):
            if not is_behind:
                device.work()
            yield BATCH

    with open_watch(tmp_path) as watched:
        monkeypatch.setattr(watched._timer, "_on_gpu", True)
        monkeypatch.setattr(watched._timer, "_mark", device.mark)
        monkeypatch.setattr(watched._monitor, "record", lambda timing, _: read.append(timing))
        for _ in watched(fetched()):
            pass
        assert len(read) == (0 if is_behind else 1), "the end of the last window is reached only now"
    warm_up, train = read
    assert (warm_up.seconds, warm_up.data_wait, warm_up.images) == (20, 10, 40)
    assert (train.seconds, train.data_wait, train.queued_share) == (10, 5, float(is_behind))


def test_the_loops_of_the_page_get_their_verdicts(face_paths, tmp_path, monkeypatch):
    """The host's cores are said to be busy, so that the load of this machine does not count."""
    code = "".join(blocks("docs/bottleneck.md"))
    monkeypatch.setattr(monitor, "HostReader", lambda pids: StubHost(64.0, 64.0))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(Path(face_paths[0]).parent)
    run(code, {"__name__": "__main__"}, "docs/bottleneck.md")
    verdicts = {name: read_report(Path(name)).diagnosis.verdict for name in ("starved", "resident", "item")}
    assert verdicts == {
        "starved": Verdict.WAITING_FOR_DATA, "resident": Verdict.CPU_BOUND, "item": Verdict.CPU_BOUND,
    }  # fmt: skip
    assert read_report(Path("starved")).summary.headroom > 1.5
