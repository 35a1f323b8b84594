"""Score files as runs and other people leave them."""

import json
import struct

import yaml
from tensorboard.summary.writer.record_writer import RecordWriter, masked_crc32c
from torch.utils.tensorboard import SummaryWriter


def entry(**changes):
    """One run in the published format."""
    return {
        "task": "metaworld_window_close",
        "seed": 0,
        "method": "mwm",
        "steps": [10, 30, 50],
        "success_rates": [0.0, 0.5, 1.0],
    } | changes


def published(path, *entries):
    path.write_text(json.dumps(list(entries)))
    return str(path)


def run_folder(path, lines, task="metaworld/window-close", seed=0, target="pixels"):
    """What training leaves behind, as far as a comparison reads it."""
    path.mkdir(parents=True)
    config = {"task": task, "seed": seed, "agent": {"autoencoder": {"target": target}}}
    (path / "config.yaml").write_text(yaml.safe_dump({"config": config, "commit": "abc"}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def evaluations(*points, name="success"):
    return [{"step": step, f"eval/{name}": score} for step, score in points]


def write_events(folder, points, tag="eval/success", purge_step=None):
    """An event file of scalars (step, score); returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob("events.*"))
    writer = SummaryWriter(str(folder), purge_step=purge_step)
    for step, score in points:
        writer.add_scalar(tag, score, step)
    writer.close()
    (path,) = set(folder.glob("events.*")) - before
    return path


def record_starts(path):
    """First byte of every record of an event file."""
    content, starts = path.read_bytes(), [0]
    while starts[-1] < len(content):
        (length,) = struct.unpack_from("<Q", content, starts[-1])
        starts.append(starts[-1] + 16 + length)
    return starts[:-1]


def append_record(path, content):
    """Write one more record, whatever it holds."""
    with open(path, "ab") as file:
        RecordWriter(file).write(content)


def record_header(length):
    """The first 12 bytes of a record that says it has `length` bytes."""
    header = struct.pack("<Q", length)
    return header + struct.pack("<I", masked_crc32c(header))
