"""Records: what may be written, what is written for it, and what TensorBoard is left with after a resume."""

import errno
import json
import math
import resource
import zlib

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness.records import JsonLines, TensorBoardEvents, plain_row, row_step


def test_scalars_of_every_kind_become_plain_in_the_order_given():
    row = plain_row(
        {
            "z": jnp.asarray(1.5),
            "updates": np.int64(3),
            "bfloat16": jnp.asarray(0.5, jnp.bfloat16),
            "one_element": np.ones((1, 1)),
            "flag": np.bool_(True),
            "phase": "train",
            "a": 0.1,
            "nothing": None,
        }
    )
    assert json.dumps(row) == (
        '{"z": 1.5, "updates": 3, "bfloat16": 0.5, "one_element": 1.0, "flag": true, "phase": "train", "a": 0.1, '
        '"nothing": null}'
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, jnp.nan, np.float32("inf"), jnp.asarray(-jnp.inf)])
def test_what_json_cannot_say_becomes_null(value):
    assert plain_row({"loss": value}) == {"loss": None}


def test_float32_comes_back_exactly():
    value = np.float32(0.1)
    assert np.float32(json.loads(json.dumps(plain_row({"x": value})))["x"]) == value


@pytest.mark.parametrize("value", [np.ones(2), jnp.zeros((0,)), object(), b"bytes"])
def test_what_is_no_scalar_is_named(value):
    with pytest.raises(TypeError, match="the record 'weights' is"):
        plain_row({"weights": value})


def test_lines_reach_the_file_at_once_and_are_cut_back(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"updates": 1})
    length, checksum = lines.sync()
    assert checksum == zlib.crc32((tmp_path / "metrics.jsonl").read_bytes())
    lines.append({"updates": 2})
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == '{"updates":1}\n{"updates":2}\n'
    lines.cut(length)
    lines.append({"updates": 3})
    assert lines.sync() == (28, zlib.crc32((tmp_path / "metrics.jsonl").read_bytes()))
    lines.close()
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == '{"updates":1}\n{"updates":3}\n'


def test_a_full_disk_is_met_at_the_line_and_closing_does_not_fail_again(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        lines.append({"updates": 1})
        with pytest.raises(OSError) as caught:
            lines.append({"updates": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG and lines.path.stat().st_size == 20
    lines.close()


def test_a_row_lies_at_its_frames_or_the_next_best():
    assert row_step({"iteration": 1, "updates": 2, "frames": 3}) == 3
    assert row_step({"iteration": 1, "frames": None}) == 1
    assert row_step({"loss": 1.0}) is None


def read_events(folder) -> list:
    """(step, {tag: value}, is it a purge) of every event in the folder, file by file, by the format's definition."""
    from tensorboardX.proto.event_pb2 import Event

    rows = []
    for path in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.summary.value or event.HasField("session_log"):
                values = {value.tag: value.simple_value for value in event.summary.value}
                rows.append((event.step, values, event.HasField("session_log")))
    return rows


def test_tensorboard_gets_the_numbers_and_purges_what_a_resume_repeats(tmp_path):
    events = TensorBoardEvents(tmp_path, None)
    assert list(tmp_path.iterdir()) == [], "no file before the first row"
    events.append({"phase": "train", "frames": 4, "loss": 0.5, "return": None, "note": "text"})
    events.append({"phase": "train", "frames": 8, "loss": 0.25})
    events.close()
    resumed = TensorBoardEvents(tmp_path, 5)
    resumed._folder = tmp_path / "later"  # another process would have another id in the file's name
    resumed._folder.mkdir()
    resumed.append({"phase": "eval", "frames": 8, "return": 1.0})
    resumed.close()
    assert read_events(tmp_path) == [(4, {"train/loss": 0.5}, False), (8, {"train/loss": 0.25}, False)]
    assert read_events(tmp_path / "later") == [(5, {}, True), (8, {"eval/return": 1.0}, False)]
