"""TensorBoard event files: every record counts, and none that is broken is passed over."""

import os

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from torch.utils.tensorboard import SummaryWriter

from analysis.score_files import read
from errors import UserError
from tests.analysis.score_inputs import (
    append_record,
    entry,
    published,
    record_header,
    record_starts,
    run_folder,
    write_events,
)

POINTS = [(10, 0.1), (20, 0.2), (30, 0.3)]


@pytest.fixture
def run(tmp_path):
    run_folder(tmp_path / "run", [])
    return tmp_path / "run" / "tensorboard"


def scores(path):
    notes = []
    (curve,) = read([str(path)], note=notes.append)
    return curve.steps.tolist(), np.round(curve.scores, 6).tolist(), notes


def test_a_resumed_run_in_one_file(run):
    writer = SummaryWriter(str(run))
    for step, score in ((10, 0.1), (20, 0.2), (30, 0.3), (20, 0.7)):
        writer.add_scalar("eval/success", score, step)
        writer.add_scalar("eval/return", 100 * score, step)
    writer.close()
    assert scores(f"{run}/events*") == ([10, 20], [0.1, 0.7], [])


def test_files_of_one_run_are_one_curve_across_resumes(run, tmp_path):
    for number, points in enumerate([POINTS, [(20, 0.7), (40, 0.9)]]):
        file = write_events(tmp_path / f"writer{number}", points)
        run.mkdir(exist_ok=True)
        file.rename(run / f"events.out.tfevents.{number}")
    assert scores(f"{run}/events*") == ([10, 20, 40], [0.1, 0.7, 0.9], [])
    assert scores(run) == ([10, 20, 40], [0.1, 0.7, 0.9], [])


def test_what_a_resumed_run_forgot_is_no_evaluation(run, tmp_path):
    """It went on from step 15 and has evaluated nothing since."""
    write_events(tmp_path / "a", POINTS).rename(tmp_path / "run" / "events.out.tfevents.0")
    path = write_events(tmp_path / "b", [(17, 2.0)], tag="train/return", purge_step=16)
    path.rename(tmp_path / "run" / "events.out.tfevents.1")
    assert scores(tmp_path / "run" / "events.out.tfevents.0") == ([10], [0.1], [])


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_last_record_that_is_cut_off_is_said_and_the_others_count(run, cut):
    path = write_events(run, POINTS)
    last = record_starts(path)[-1]
    assert path.stat().st_size - last > cut
    os.truncate(path, path.stat().st_size - cut)
    steps, _, (note,) = scores(path)
    assert steps == [10, 20]
    assert str(path) in note
    assert f"before byte {last:,} is read" in note


@pytest.mark.parametrize("record", [1, 2, 3])
@pytest.mark.parametrize("byte", [0, 7, 8, 12, 20, -1])
def test_a_broken_record_is_refused_by_file_and_byte(run, record, byte):
    """Wherever the flipped bit is: in the length, in either checksum, in the event."""
    path = write_events(run, POINTS)
    starts = [*record_starts(path), path.stat().st_size]
    content = bytearray(path.read_bytes())
    content[(starts[record] if byte >= 0 else starts[record + 1]) + byte] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        read([str(path)])
    assert f"{path} has a broken record at byte {starts[record]:,}" in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "looked for eval/success and eval/return, found nothing"),
        (b"garbage", "is no TensorBoard event file"),
        (bytes(4096), "is no TensorBoard event file"),
        (record_header(2**60), "is no TensorBoard event file"),
    ],
)
def test_what_is_no_event_file_is_refused(run, content, words):
    run.mkdir()
    (run / "events.out.tfevents.1").write_bytes(content)
    with pytest.raises(UserError, match=words) as refusal:
        read([str(run)])
    assert f"{run}/events.out.tfevents.1" in str(refusal.value)


def test_zeros_after_the_last_record_are_refused(run):
    """What a power cut may leave of a file that was longer."""
    path = write_events(run, POINTS)
    size = path.stat().st_size
    os.truncate(path, size + 4096)
    with pytest.raises(UserError, match=f"broken record at byte {size:,}"):
        read([str(path)])


def test_a_file_of_other_tags_says_what_was_looked_for_and_found(run, tmp_path):
    path = write_events(run, POINTS, tag="charts/episodic_return")
    found = "looked for eval/success and eval/return, found charts/episodic_return"
    with pytest.raises(UserError, match=found):
        read([str(path)])
    notes = []
    read([str(path), published(tmp_path / "other.json", entry())], note=notes.append)
    assert len(notes) == 1
    assert found in notes[0]


def test_scores_without_a_configuration_have_no_name(tmp_path):
    path = write_events(tmp_path / "alone", POINTS)
    with pytest.raises(UserError, match="config.yaml that says task and seed"):
        read([str(path)])


def tensor(dtype, shape, **values):
    dims = [TensorShapeProto.Dim(size=size) for size in shape]
    return TensorProto(dtype=dtype, tensor_shape=TensorShapeProto(dim=dims), **values)


@pytest.mark.parametrize(
    "value",
    [
        {"tensor": tensor(1, [2**40], float_val=[0.5])},
        {"tensor": tensor(1, [2], float_val=[0.5, 0.6])},
        {"tensor": tensor(1, [-1], float_val=[0.5])},
        {"tensor": tensor(7, [], string_val=[b"much"])},
        {"tensor": tensor(99, [])},
        {"tensor": tensor(1, [], tensor_content=b"123")},
        {"image": Summary.Image(height=1, width=1)},
        {},
    ],
    ids=range(8),
)
def test_a_score_that_is_no_number_is_refused_by_tag_and_byte(run, value):
    path = write_events(run, POINTS)
    size = path.stat().st_size
    summary = Summary(value=[Summary.Value(tag="eval/success", **value)])
    append_record(path, Event(step=40, summary=summary).SerializeToString())
    with pytest.raises(UserError, match=f"eval/success at byte {size:,} is no"):
        read([str(path)])


def test_a_score_may_be_a_tensor_as_newer_writers_have_it(run):
    path = write_events(run, POINTS)
    summary = Summary(
        value=[Summary.Value(tag="eval/success", tensor=tensor(1, [], float_val=[0.4]))]
    )
    append_record(path, Event(step=40, summary=summary).SerializeToString())
    assert scores(path)[0] == [10, 20, 30, 40]


def test_a_record_that_is_no_event_is_refused(run):
    path = write_events(run, POINTS)
    size = path.stat().st_size
    append_record(path, b"\xff" * 40)
    with pytest.raises(UserError, match=f"broken record at byte {size:,}"):
        read([str(path)])
