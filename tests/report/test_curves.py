"""Event files read as TensorBoard reads them, and its smoothing, against its own code and formula."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from fastae.report.curves import read_events, smooth

from .made import write_events

TAG = "loss_index/train"


def moments(*steps, tag=TAG, began=1000.0):
    return [(began + step, step, {tag: 10.0 * step}) for step in steps]


def test_smoothing_starts_at_the_first_value_and_forgets_by_the_weight():
    # By hand: 10; (0.95 * 0.5 + 0.05 * 20) / (1 - 0.95^2); ...
    assert smooth(np.array([10.0, 20.0, 40.0])) == pytest.approx([10, 15.128205, 23.847502], abs=1e-6)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 0.99))
@settings(max_examples=50, deadline=None)
def test_smoothing_is_the_weighted_mean_that_tensorboard_shows(values, weight):
    smoothed = smooth(np.array(values), weight)
    for place in range(len(values)):
        weights = weight ** np.arange(place, -1, -1.0)
        expected = np.average(values[: place + 1], weights=weights)
        assert smoothed[place] == pytest.approx(expected, rel=1e-6, abs=1e-3)


def test_a_constant_series_is_left_alone():
    assert smooth(np.full(5, 0.1)).tolist() == [0.1] * 5
    assert len(smooth(np.array([]))) == 0


def test_what_is_no_number_is_passed_over_and_not_averaged():
    smoothed = smooth(np.array([10.0, math.nan, 20.0, math.inf]))
    assert math.isnan(smoothed[1]) and math.isinf(smoothed[3])
    assert smoothed[[0, 2]] == pytest.approx(smooth(np.array([10.0, 20.0])))


def test_the_scalars_are_those_that_tensorboard_reads(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(0, 200, 7):
            writer.add_scalar(TAG, math.sin(step), step)
            writer.add_scalar("loss/other", step**2, step)
            # A picture, larger than what is read: it is passed over.
            writer.add_image("picture", np.random.default_rng(step).random((3, 160, 160)), step)
    theirs = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    ours = read_events(tmp_path)
    assert ours.problems == ()
    assert set(ours.scalars) == {TAG, "loss/other"}
    for tag, series in ours.scalars.items():
        events = theirs.Scalars(tag)
        assert series.steps.tolist() == [event.step for event in events]
        assert series.values.tolist() == [event.value for event in events]


def test_a_torn_file_is_read_up_to_the_tear_and_named(tmp_path):
    path = write_events(tmp_path, moments(1, 2, 3))
    path.write_bytes(path.read_bytes()[:-5])
    events = read_events(tmp_path)
    assert events.series(TAG).steps.tolist() == [1, 2]
    (problem,) = events.problems
    assert problem.startswith(f"{path}: cut short at byte ")


def test_a_damaged_record_ends_what_is_read_of_its_file(tmp_path):
    path = write_events(tmp_path, moments(1, 2, 3))
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    write_events(tmp_path, moments(4), name="2")
    events = read_events(tmp_path)
    assert events.series(TAG).steps.tolist() == [1, 2, 4]
    assert events.problems[0].startswith(f"{path}: damaged at byte ")


def test_what_is_no_event_file_is_one_line(tmp_path):
    (tmp_path / "events.out.tfevents.1").write_bytes(b"not an event file at all")
    (tmp_path / "events.out.tfevents.2").mkdir()
    (problem,) = read_events(tmp_path).problems
    assert "damaged at byte 0" in problem


def test_an_iteration_logged_twice_has_its_later_value(tmp_path):
    write_events(tmp_path, moments(1, 2, 3), name="1")
    write_events(tmp_path, [(2000.0, 3, {TAG: 7.0}), (2001.0, 4, {TAG: 8.0})], name="2")
    series = read_events(tmp_path).series(TAG)
    assert (series.steps.tolist(), series.values.tolist()) == ([1, 2, 3, 4], [10, 20, 7, 8])


def test_the_pause_before_a_resumed_run_goes_on_is_not_its_time(tmp_path):
    first, second = moments(0, 10, 20), moments(20, 30, began=90_000.0)
    write_events(tmp_path, [*first, *second], sessions=(0, 3))
    events = read_events(tmp_path)
    assert events.seconds == 20 + 10
    assert events.began == 20
