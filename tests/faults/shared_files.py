"""Faults in what people share: exported policies, LeRobot datasets, their own demonstrations, and
masks that were made elsewhere."""

import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import safetensors.torch
import torch
import yaml

from mask_classes import NAMES
from tests.faults import formats
from tests.faults import originals as made
from tests.faults.mutations import changed_bytes, changed_json, changed_text, replaced
from tests.faults.other_files import damaged_file
from tests.faults.place import Fault, Place, change
from tests.faults.process import Ended

WEIGHTS = "model.safetensors"


def exported(rng: random.Random, place: Place) -> Fault:
    """exported policies"""
    run = place.copy(rng.choice(place.exports))
    weights = run / WEIGHTS
    before = _policy(weights)
    path, as_it_was = weights, False
    kind = rng.choice(("bytes", "bytes", "inside", "inside", "config", "replaced"))
    if kind == "bytes":
        what, as_it_was = change(rng, path, changed_bytes), True
    elif kind == "inside":
        what = formats.changed_policy(rng, path)
    elif kind == "config":
        place.payload(run)
        path = run / "config.yaml"
        what = change(rng, path, changed_text)
    else:
        path = rng.choice(sorted(run.iterdir()))
        what = replaced(rng, path, place.outside)
    reading = made.export(run, place.folder / "new")
    command = rng.choice((reading, reading, made.evaluate(run)))

    def right(ended: Ended) -> str | None:
        if as_it_was and _policy(weights) != before:
            return "other weights acted without a word"
        return None

    subject = None if kind == "replaced" else path
    return Fault(f"{path.name}: {what}", command, subject, right=right, privileged=False)


def _policy(path: Path) -> tuple:
    """What safetensors say: bytes of all tensors, and the text beside them."""
    content = path.read_bytes()
    tensors = safetensors.torch.load(content)
    parts = {
        name: (part.dtype, part.shape, part.reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, part in tensors.items()
    }
    return formats.header_of(content)["__metadata__"]["policy"], parts


def lerobot(rng: random.Random, place: Place) -> Fault:
    """LeRobot datasets"""
    root, out = place.copy("reach-set"), place.folder / "new"
    files = sorted(path for path in root.rglob("*") if path.is_file())
    tables = [path for path in files if path.suffix == ".parquet"]
    info, (video,) = root / "meta" / "info.json", [p for p in files if p.suffix == ".mp4"]
    kind = rng.choice(("info", "info", "table", "table", "table", "bytes", "video", "replaced"))
    if kind == "info":
        path, what = info, change(rng, info, changed_text, changed_json, changed_json)
    elif kind == "table":
        path = rng.choice(tables)
        what = formats.changed_table(rng, path)
    elif kind == "replaced":
        path = rng.choice(sorted(root.rglob("*")))
        what = replaced(rng, path, place.outside)
    else:
        path = rng.choice(tables) if kind == "bytes" else video
        what = change(rng, path, changed_bytes)

    def right(ended: Ended) -> str | None:
        return None if kind == "replaced" else _conversion(place, root, out, video)

    what = f"{path.relative_to(root)}: {what}"
    return Fault(what, made.convert(root, out), root, right=right, privileged=False)


def _conversion(place: Place, root: Path, out: Path, video: Path) -> str | None:
    """What files have other than the tables of a dataset, or other pictures than those that its
    undamaged videos show."""
    rows = [row for path in sorted(root.glob("data/*/*")) for row in formats.rows_of(path)]
    whole = video.read_bytes() == (made.DATASET / video.relative_to(root)).read_bytes()
    there = [
        episode for path in root.glob("meta/episodes/*/*") for episode in formats.rows_of(path)
    ]
    found, pictures = _episodes(out), _episodes(place.originals / "reach-files")
    if sorted(found) != sorted(episode["episode_index"] for episode in there):
        return f"episodes {sorted(found)}, and there are {len(there)}"
    for index, demo in found.items():
        own = [row for row in rows if row["episode_index"] == index]
        if [row.get("frame_index", n) for n, row in enumerate(own)] != list(range(len(own))):
            return f"episode {index} has rows in another order"
        if demo["fps"] != pictures[index]["fps"]:
            return f"{demo['fps']} frames a second"
        for name, key in (("actions", "action"), ("proprio", "observation.state")):
            if name not in demo:
                continue
            wanted = np.array([row[key] for row in own], np.float64).reshape(len(own), -1)
            if demo[name].shape != wanted.shape or not np.allclose(demo[name], wanted, atol=1e-4):
                return f"{name} of episode {index}"
        if (
            whole
            and "front" in demo
            and not np.array_equal(demo["front"], pictures[index]["front"][: len(own)])
        ):
            return f"pictures of episode {index}"
    return None


def _episodes(folder: Path) -> dict[int, dict[str, np.ndarray]]:
    """Actions in the robot's units, states and pictures, as far as they are there, by the number
    that an episode has in the dataset."""
    found = {}
    for path in folder.glob("*.hdf5"):
        with h5py.File(path) as file:
            said = file["data"].attrs
            low, high = said.get("action_low", -1.0), said.get("action_high", 1.0)
            for demo in file["data"].values():
                arrays = {name.removesuffix("_rgb"): demo["obs"][name][()] for name in demo["obs"]}
                arrays["actions"] = low + (demo["actions"][()] + 1) / 2 * (high - low)
                found[int(demo.attrs["episode_index"])] = arrays | {"fps": said["fps"]}
    return found


IMITATE = [
    "--task", "none", "--method", "mask2act", "--plan", "none", "--policy-steps", "2",
    "--demonstrations", "0", "--batch", "2", "--workers", "0", "--threads", "1",
    "--agent.executor.transformer.width", "32", "--agent.executor.transformer.layers", "1",
    "--agent.executor.transformer.heads", "2", "--agent.executor.image-encoder.width", "8",
    "--agent.precision", "float32",
]  # fmt: skip


def own_demonstrations(rng: random.Random, place: Place) -> Fault:
    """own demonstrations"""
    path = place.copy("cup") / "cup.hdf5"
    what = damaged_file(rng, place, path)
    data, new = rng.choice((path, path.parent)), place.folder / "new"
    command = rng.choice(
        (["inspect", path], ["convert", path, "--out", new],
         ["imitate", "--data", data, *IMITATE, "--logdir", new])
    )  # fmt: skip
    subject = path if path in command or path.is_file() else path.parent
    return Fault(what, command, subject, privileged=False)


def mask_folders(rng: random.Random, place: Place) -> Fault:
    """masks from files"""
    data, root = place.copy("cup") / "cup.hdf5", place.folder / "labels"
    palette = place.folder / "palette.yaml"
    expected = _put_masks(root, palette, rng.choice(("grey", "colours", "npy", "npz")))
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path, expect = rng.choice(files), "either"
    kind = rng.choice(("bytes", "mask", "mask", "lost", "name", "palette", "replaced"))
    if kind == "bytes":
        what = change(rng, path, changed_bytes)
    elif kind == "mask":
        what, wrong = formats.changed_mask(rng, path)
        expect = "refused" if wrong else "either"
    elif kind == "lost":
        path.unlink()
        what, expect = "lost", "refused"
    elif kind == "name":
        name = rng.choice((f"x{path.stem}", "99", f"{path.stem}_9", "x", path.stem.upper()))
        other = path.with_name(f"{name}{path.suffix}")
        rng.choice((shutil.copy, shutil.move))(path, other)
        what = f"also or only as {other.name}"
    elif kind == "palette":
        path = palette
        what = _changed_palette(rng, place, palette)
    else:
        path = rng.choice((*files, root, palette, path.parent))
        what = replaced(rng, path, place.outside)

    def right(ended: Ended) -> str | None:
        if kind == "palette" or (kind == "bytes" and path.suffix == ".npy"):
            return None  # it may mean something else now
        with h5py.File(data.with_stem("cup-annotated")) as file:
            for name, masks in expected.items():
                if not np.array_equal(file[f"data/{name}/obs/front_mask"][()], masks):
                    return f"other masks in {name}"
        return None

    command = ["annotate", "--data", data, "--masks", root, "--palette", palette]
    subject = palette if path == palette else root
    what = f"{path.relative_to(place.folder)}: {what}"
    return Fault(what, command, subject, expect, right, privileged=False)


NUMBERS = {0: 0, 1: 1, 17: 3}
"""Number in a mask → class id."""
COLOURS = {0: (1, 2, 3), 1: (200, 0, 0), 17: (0, 99, 0)}


def _put_masks(root: Path, palette: Path, layout: str) -> dict[str, np.ndarray]:
    """Write masks and what they mean; the class ids (T, S, S) by episode."""
    rng, expected = np.random.default_rng(0), {}
    shape = (made.OWN_STEPS, made.OWN_SIZE, made.OWN_SIZE)
    for number in range(made.OWN_EPISODES):
        name, masks = f"demo_{number}", rng.choice(np.array(list(NUMBERS), np.uint8), shape)
        expected[name] = _mapped(masks, NUMBERS)
        if layout == "npz":
            root.mkdir(exist_ok=True)
            formats.put_mask(root / f"{name}.npz", masks)
            continue
        (root / name).mkdir(parents=True)
        drawn = _mapped(masks, COLOURS) if layout == "colours" else masks
        ending = "npy" if layout == "npy" else "png"
        for row, mask in enumerate(drawn):
            formats.put_mask(root / name / f"frame_{row:05d}.{ending}", mask)
    keys = {n: ",".join(map(str, COLOURS[n])) if layout == "colours" else n for n in NUMBERS}
    palette.write_text(yaml.safe_dump({keys[n]: NAMES[id_] for n, id_ in NUMBERS.items()}))
    return expected


def _mapped(masks: np.ndarray, meaning: dict) -> np.ndarray:
    table = np.zeros((256, *np.shape(meaning[0])), np.uint8)
    for number, value in meaning.items():
        table[number] = value
    return table[masks]


def _changed_palette(rng: random.Random, place: Place, path: Path) -> str:
    place.payload(place.folder)
    if rng.random() < 0.5:
        return change(rng, path, changed_text)
    path.write_text(
        rng.choice(
            ("!!python/object/apply:os.mkdir [executed]", "!!python/name:payload.Payload ''",
             "0: &a [*a]", "{0: {0: 0}}", "[background]", "0: 300", "0: robot arm", "-1: robot",
             "1.5: robot", "other: robot", "0: background\n'#000000': robot", "? [0]\n: robot",
             "a: &a [0,0,0,0]\nb: &b [*a,*a,*a,*a]\nc: [*b,*b,*b,*b]", "0: 0\n0: 1", "null: robot",
             "2024-01-01: robot", "99999999999999999999: robot", "0: true", "'256,0,0': robot")
        )
    )  # fmt: skip
    return f"is {path.read_text()[:40]!r}"
