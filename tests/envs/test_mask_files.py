"""Masks made elsewhere: folders of files, palettes of other people, what is wrong in one line."""

import json
import os
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

from envs.demonstrations import read_header
from envs.mask_files import add_masks
from envs.mask_palette import MaskPalette
from errors import UserError
from run import main
from tests.envs.received import SIZE, STEPS, write

COLOURS = {0: (10, 20, 30), 3: (200, 0, 0), 255: (1, 2, 3)}


def bare(path):
    """Two episodes without masks."""

    def strip(file):
        for demo in file["data"].values():
            del demo["obs/corner2_mask"]

    return write(path, strip)


@pytest.fixture
def data(tmp_path):
    return bare(tmp_path / "reach.hdf5")


def masks(seed=0, shape=(SIZE, SIZE), classes=(0, 3, 255)):
    """By episode (T, H, W)."""
    rng = np.random.default_rng(seed)
    return {f"demo_{n}": rng.choice(classes, (STEPS, *shape)).astype(np.uint8) for n in (0, 1)}


def put_pngs(folder, masks, draw=Image.fromarray, name="{episode}/frame_{row:05d}.png"):
    for episode, frames in masks.items():
        for row, mask in enumerate(frames):
            path = folder / name.format(episode=episode, row=row)
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(mask).save(path)
    return folder


def in_colours(mask):
    drawn = np.zeros((*mask.shape, 3), np.uint8)
    for number, colour in COLOURS.items():
        drawn[mask == number] = colour
    return Image.fromarray(drawn)


def indexed(mask):
    picture = Image.fromarray(mask, "L").convert("P")
    picture.putdata(mask.reshape(-1).tolist())
    picture.putpalette([value for n in range(256) for value in COLOURS.get(n, (n, n, n))])
    return picture


def check(path, masks):
    header = read_header(path)
    assert header.masks == ("corner2",)
    with h5py.File(path) as file:
        for episode, expected in masks.items():
            demo = file[f"data/{episode}"]
            np.testing.assert_array_equal(demo["obs/corner2_mask"][()], expected)
            assert demo["obs/corner2_rgb"].shape == (STEPS, SIZE, SIZE, 3)


MAPPING = {"10,20,30": "background", "#c80000": "object", "[1, 2, 3]": "unlabelled"}


@pytest.mark.parametrize("draw", [Image.fromarray, in_colours, indexed])
def test_masks_are_read_by_number_or_colour(data, tmp_path, draw):
    expected = masks()
    folder = put_pngs(tmp_path / "masks", expected, draw)
    palette = MaskPalette.own()
    if draw is not Image.fromarray:
        (tmp_path / "map.json").write_text(json.dumps(MAPPING))
        palette = MaskPalette.read(tmp_path / "map.json")
    add_masks(data, tmp_path / "out.hdf5", folder, palette)
    check(tmp_path / "out.hdf5", expected)


def test_numbers_of_others_become_classes_and_what_is_not_listed_the_other(data, tmp_path):
    """Of arrays of 16 bits as well, one file for an episode."""
    theirs = {name: np.where(each == 3, np.uint16(700), each) for name, each in masks().items()}
    (tmp_path / "masks").mkdir()
    for number, each in enumerate(theirs.values()):
        np.savez(tmp_path / "masks" / f"episode_{number:06d}.npz", corner2=each, scores=[1.0])
    (tmp_path / "map.yaml").write_text("700: object\nother: background\n")
    palette = MaskPalette.read(tmp_path / "map.yaml")
    add_masks(data, tmp_path / "out.hdf5", tmp_path / "masks", palette)
    check(tmp_path / "out.hdf5", {n: np.where(each == 3, 3, 0) for n, each in masks().items()})


def test_larger_masks_are_made_smaller_and_cropped_as_their_pictures_were(data, tmp_path):
    wide = {name: np.repeat(np.repeat(each, 2, 1), 2, 2) for name, each in masks().items()}
    wide = {
        name: np.pad(each, ((0, 0), (0, 0), (6, 6)), mode="edge") for name, each in wide.items()
    }
    folder = put_pngs(tmp_path / "masks", wide)
    with pytest.raises(UserError, match=r"frame_00000\.png has 44 x 32 pixels, .* square of 16"):
        add_masks(data, tmp_path / "out.hdf5", folder, MaskPalette.own())
    with h5py.File(data, "r+") as file:
        file["data"].attrs["fit"] = "crop"
    add_masks(data, tmp_path / "out.hdf5", folder, MaskPalette.own())
    check(tmp_path / "out.hdf5", masks())


def test_pictures_that_are_stored_upside_down_get_masks_that_are(data, tmp_path):
    with h5py.File(data, "r+") as file:
        file["data"].attrs["macros_image_convention"] = "opengl"
    folder = put_pngs(tmp_path / "masks", masks())
    add_masks(data, tmp_path / "out.hdf5", folder, MaskPalette.own())
    check(tmp_path / "out.hdf5", {name: each[:, ::-1] for name, each in masks().items()})


def test_several_files_and_cameras_have_folders_of_their_own(data, tmp_path, capsys):
    with h5py.File(data, "r+") as file:
        for demo in file["data"].values():
            demo["obs/hand_rgb"] = demo["obs/corner2_rgb"][()]
    other = shutil.copy(data, tmp_path / "push.hdf5")
    for stem, seed in (("reach", 1), ("push", 3)):
        for camera, more in (("corner2", 0), ("hand", 1)):
            name = f"{stem}/{{episode}}/{camera}/{{row}}.png"
            put_pngs(tmp_path / "masks", masks(seed + more), name=name)
    given = ["--data", str(data), str(other), "--masks", str(tmp_path / "masks")]
    assert main(["annotate", *given, "--out", str(tmp_path / "out")]) == 0
    for stem, seed in (("reach", 1), ("push", 3)):
        assert read_header(tmp_path / "out" / f"{stem}.hdf5").masks == ("corner2", "hand")
        with h5py.File(tmp_path / "out" / f"{stem}.hdf5") as file:
            for episode in ("demo_0", "demo_1"):
                obs = file[f"data/{episode}/obs"]
                np.testing.assert_array_equal(obs["corner2_mask"][()], masks(seed)[episode])
                np.testing.assert_array_equal(obs["hand_mask"][()], masks(seed + 1)[episode])
    assert main(["annotate", *given, "--in-place"]) == 0
    assert read_header(data).masks == ("corner2", "hand")


def remove(name):
    return lambda folder: (folder / name).unlink()


def replaced(content):
    return lambda folder: (folder / "demo_1/frame_00004.png").write_bytes(content)


def counted_from_one(folder):
    for path in sorted((folder / "demo_1").iterdir(), reverse=True):
        path.rename(path.with_name(f"frame_{int(path.stem[-5:]) + 1:05d}.png"))


def other_number(folder):
    Image.fromarray(np.full((SIZE, SIZE), 9, np.uint8)).save(folder / "demo_1/frame_00004.png")


def other_colour(folder):
    in_colours(np.full((SIZE, SIZE), 7, np.uint8)).save(folder / "demo_1/frame_00004.png")
    path = folder / "demo_1/frame_00004.png"
    Image.fromarray(np.full((SIZE, SIZE, 3), 77, np.uint8)).save(path)


def other_byte(folder):
    """A bit in the numbers of a picture: only its checksum tells."""
    path = folder / "demo_1/frame_00004.png"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 4
    path.write_bytes(content)


def archive(damage):
    def edit(folder):
        shutil.rmtree(folder / "demo_1")
        np.savez_compressed(folder / "demo_1.npz", mask=masks()["demo_1"])
        content = bytearray((folder / "demo_1.npz").read_bytes())
        (folder / "demo_1.npz").write_bytes(damage(content))

    return edit


def flip(content):
    content[len(content) // 2] ^= 4
    return content


def pipe(folder):
    (folder / "demo_1/frame_00004.png").unlink()
    os.mkfifo(folder / "demo_1/frame_00004.png")


WRONG = [
    (other_byte, r"demo_1/frame_00004\.png is no readable PNG"),
    (archive(flip), r"demo_1\.npz is no readable NumPy file"),
    (archive(lambda content: content[:-9]), r"demo_1\.npz is no readable NumPy file"),
    (pipe, r"demo_1/frame_00004\.png is a pipe"),
    (remove("demo_1/frame_00007.png"), r"demo_1: frame 7 of demo_1 is missing, which has 12"),
    (counted_from_one, r"frame 0 of demo_1 is missing.*counted from 0"),
    (lambda folder: shutil.rmtree(folder / "demo_1"), r"no masks of demo_1 for camera corner2"),
    (lambda folder: shutil.copy(folder / "demo_1/frame_00003.png", folder / "demo_1/x_12.png"),
     r"x_12\.png is beyond the last frame of demo_1, 11"),
    (lambda folder: shutil.copy(folder / "demo_1/frame_00003.png", folder / "demo_1/x_3.png"),
     r"are both of frame 3"),
    (replaced(b"no picture"), r"demo_1/frame_00004\.png is no readable PNG"),
    (replaced(b""), r"demo_1/frame_00004\.png is no readable PNG"),
    (other_number, r"demo_1/frame_00004\.png holds 9, which is not in the toolkit's classes"),
    (other_colour, r"demo_1/frame_00004\.png holds the colour 77,77,77"),
    (shutil.rmtree, "there is no folder"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "sentence"), WRONG)
def test_what_is_wrong_with_masks_names_file_and_frame_and_leaves_nothing(
    data, tmp_path, edit, sentence
):
    folder = put_pngs(tmp_path / "masks", masks())
    edit(folder)
    before = data.read_bytes()
    for out in (tmp_path / "out.hdf5", data):
        with pytest.raises(UserError, match=sentence) as refusal:
            add_masks(data, out, folder, MaskPalette.own())
        assert "\n" not in str(refusal.value)
    assert data.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} - {"masks"} == {"reach.hdf5"}


def test_a_folder_that_cannot_be_looked_into_is_named(data, tmp_path):
    folder = tmp_path / ("x" * 300)
    with pytest.raises(UserError, match=r"x{300}.* cannot be read \("):
        add_masks(data, tmp_path / "out.hdf5", folder, MaskPalette.own())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1, 2]", "is no mapping"),
        ("{", "is no JSON or YAML"),
        ("0: sky", "'?0'? is sky, no class; use one of background"),
        ("0: background\n'#ffffff': robot", "names numbers and colours"),
        ("red: robot", "red is no number, no colour"),
        ("'1,2,300': robot", "1,2,300 is no number, no colour"),
        ("!!python/object/apply:os.system ['true']", "is no JSON or YAML"),
    ],
)
def test_a_mapping_that_is_none_is_refused(tmp_path, text, sentence):
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        MaskPalette.read(tmp_path / "map.yaml")


def test_options_of_the_simulators_masks_do_not_go_with_files(data, tmp_path, capsys):
    given = ["annotate", "--data", str(data), "--masks", str(tmp_path)]
    assert main([*given, "--quality", "fast"]) == 2
    assert "--quality is for masks of the simulator" in capsys.readouterr().err
    assert main(["annotate", "--data", str(data), "--palette", "map.json"]) == 2
    assert "--palette says what --masks mean" in capsys.readouterr().err
