"""Demonstration files of others: read as their writers meant them, or refused in a sentence that
names the file and what in it."""

import os
import pathlib
import resource

import h5py
import numpy as np
import pytest

from analysis import inspection
from envs import demonstrations, hdf5, windows
from envs.demonstration_writer import PARTIAL, DemonstrationWriter
from envs.demonstrations import find_files, read_header, read_headers
from envs.windows import WindowConfig, Windows, open_windows, statistics
from errors import UserError
from tests.envs.received import ATTRIBUTES, SIZE, STEPS, WIDTH, arm, put, write

READS = WindowConfig(n_obs_steps=2, future=2, stride=1, chunk=3).reads


@pytest.fixture
def path(tmp_path):
    return tmp_path / "received.hdf5"


def refusal(path, **options):
    """The sentence that a file is refused with; it names the file."""
    with pytest.raises(UserError) as refused:
        read_header(path, **options)
    assert str(path) in str(refused.value)
    return str(refused.value)


def opened(path, target="masks", **options):
    """Windows of one file."""
    return Windows([read_header(path, **options)], READS(target))


# ------------------------------------------------------------------- other files


def raw_storage(file):
    del file["data/demo_0/actions"]
    shape, size = (STEPS, WIDTH), STEPS * WIDTH * 8
    file.create_dataset("data/demo_0/actions", shape, "f8", external=[("/etc/passwd", 0, size)])


def virtual(source):
    def change(file):
        file["copy"] = file["data/demo_0/actions"][()]
        del file["data/demo_0/actions"]
        layout = h5py.VirtualLayout((STEPS, WIDTH), "f8")
        layout[...] = h5py.VirtualSource(source, "copy", (STEPS, WIDTH))
        file.create_virtual_dataset("data/demo_0/actions", layout)

    return change


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (put("data/demo_0/actions", h5py.ExternalLink("other.hdf5", "/x")), "data/demo_0/actions"),
        (put("data/demo_1/obs", h5py.ExternalLink("/etc/passwd", "/")), "data/demo_1/obs"),
        (put("unused", h5py.ExternalLink("other.hdf5", "/")), "unused"),
        (raw_storage, "data/demo_0/actions"),
        (virtual("other.hdf5"), "data/demo_0/actions"),
    ],
)
def test_a_file_that_leads_to_others_is_refused(path, change, name):
    said = refusal(write(path, change))
    assert name in said
    assert "another file" in said


@pytest.mark.parametrize(
    "change",
    [
        put("data/demo_0/obs/all", h5py.SoftLink("/data")),
        lambda file: file["data/demo_0/obs"].__setitem__("all", file["data"]),  # includes itself
        put("unused", h5py.SoftLink("/nowhere")),
        virtual("."),
    ],
)
def test_links_inside_of_a_file_are_its_own_matter(path, change):
    assert len(read_header(write(path, change)).episodes) == 2


@pytest.mark.parametrize("target", ["/nowhere", "/data/demo_2", "/data/demo_0/actions/x"])
def test_a_link_that_leads_nowhere_is_named(path, target):
    said = refusal(write(path, put("data/demo_2", h5py.SoftLink(target))))
    assert "data/demo_2 is a link that leads nowhere" in said


# ------------------------------------------------------------------- attributes

WRITERS = {
    "bytes": lambda value: np.bytes_(value) if isinstance(value, str) else value,
    "array of bytes": lambda value: np.array([str(value).encode()]),
    "array of objects": lambda value: np.array([str(value)], dtype=h5py.string_dtype()),
    "without dimensions": lambda value: (
        np.array(value, dtype=h5py.string_dtype()) if isinstance(value, str) else np.array(value)
    ),
    "matrix of one": lambda value: np.array([[str(value).encode()]]),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_attributes_are_read_as_other_writers_store_them(path, writer):
    expected = vars(read_header(write(path)))
    stored = {name: WRITERS[writer](value) for name, value in ATTRIBUTES.items()}

    def change(file):
        for number, demo in enumerate(file["data"].values()):
            demo.attrs["num_samples"] = np.array([STEPS], np.int32)
            demo.attrs["success"] = WRITERS[writer]("True")
            demo.attrs["seed"] = np.array([[float(number)]])

    assert vars(read_header(write(path, change, attributes=stored))) == expected


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("task", 3, "attribute task of data is 3, not text"),
        ("task", np.array([b"a", b"b"]), "attribute task of data is array.*not text"),
        ("task", b"\xff\xfe", "attribute task of data is not UTF-8 text"),
        ("action_repeat", 2.7, "action_repeat of data is 2.7, not a whole number from 1"),
        ("action_repeat", 0, "action_repeat of data is 0"),
        ("action_repeat", "two", "action_repeat of data is 'two'"),
        ("action_repeat", np.nan, "action_repeat of data is nan"),
        ("obs_alignment", "before", "obs_alignment is 'before', not before_action"),
        ("problem_info", h5py.Empty("f8"), "no language_instruction"),
        ("problem_info", "[" * 9000, "no language_instruction"),
        ("problem_info", '{"language_instruction": "\\ud800"}', "no language_instruction"),
        ("macros_image_convention", "sideways", "macros_image_convention is 'sideways'"),
    ],
)
def test_an_attribute_that_is_something_else_is_named(path, name, value, sentence):
    with pytest.raises(UserError, match=sentence):
        read_header(write(path, lambda file: file["data"].attrs.__setitem__(name, value)))


def test_an_empty_attribute_is_one_that_is_not_there(path):
    def change(file):
        file["data"].attrs["macros_image_convention"] = h5py.Empty("S1")
        file["data/demo_0"].attrs["success"] = h5py.Empty("f4")
        file["data/demo_0"].attrs["seed"] = np.array([])

    header = read_header(write(path, change))
    assert header.orientation == "opengl"  # LIBERO's own
    assert (header.episodes[0].success, header.episodes[0].seed) == (True, None)


@pytest.mark.parametrize(
    ("value", "sentence"), [(7, "12 rows, its attribute num_samples says 7"), ("x", "'x', not a")]
)
def test_a_number_of_steps_that_disagrees_is_refused(path, value, sentence):
    change = lambda file: file["data/demo_1"].attrs.__setitem__("num_samples", value)  # noqa: E731
    assert sentence in refusal(write(path, change))


@pytest.mark.simulator
def test_a_problem_file_that_libero_has_not_is_named_with_the_file(path, libero_assets):
    attributes = ATTRIBUTES | {"bddl_file_name": "C:\\mine\\libero_object\\pick_up_my_cup.bddl"}
    del attributes["task"]
    said = refusal(write(path, attributes=attributes))
    assert "no task libero_object/pick_up_my_cup" in said
    assert "C:\\mine" in said


# ------------------------------------------------------------------- datasets


def declared(shape, **options):
    def change(file):
        del file["data/demo_0/actions"]
        file.create_dataset("data/demo_0/actions", shape, "f8", **options)

    return change


def half_written(file):
    declared((STEPS, WIDTH), chunks=(1, WIDTH))(file)
    file["data/demo_0/actions"][:5] = 0.5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (declared((10**9, 10**4), chunks=(1, 10**4)), "declares 74,506 GiB"),
        (declared((10**12, WIDTH)), "declares"),
        (declared((STEPS, WIDTH)), "was not written to its end"),
        (half_written, "was not written to its end"),
        (put("data/demo_0/actions", 1.0), "has shape ()"),
        (put("data/demo_0/actions", h5py.Empty("f8")), "holds nothing"),
        (put("data/demo_0/actions", np.zeros((0, WIDTH))), "has no steps"),
        (put("data/demo_0/actions", np.zeros((STEPS, 0))), "has no columns"),
        (put("data/demo_0/actions", np.zeros((STEPS, WIDTH), int)), "int64, not a floating-point"),
        (put("data/demo_0/actions", np.zeros((STEPS, WIDTH), complex)), "complex128, not a"),
        (put("data/demo_0/actions", np.zeros((STEPS, WIDTH), "f4,f4")), "not a floating-point"),
        (put("data/demo_0/obs/proprio", np.zeros(STEPS)), "has shape (12,), not 2 dimensions"),
        (put("data/demo_0/obs/corner2_rgb", np.zeros((STEPS, 0, 0, 3), np.uint8)), "edge of 0"),
        (put("data/demo_0/obs/corner2_rgb", np.zeros((STEPS, 3, 9, 9), np.uint8)), "has shape"),
        (put("data/demo_0/obs", np.zeros(3)), "has no pictures"),
        (put("data/demo_0", np.zeros(3)), "data/demo_0 is not a group"),
        (put("data", np.zeros(3)), "has no group data"),
    ],
)
def test_a_dataset_of_no_use_is_named(path, change, sentence):
    assert sentence in refusal(write(path, change))


def test_a_frame_that_unpacks_to_more_than_memory_is_not_read(path, monkeypatch):
    def packed_together(file):
        masks = file["data/demo_0/obs/corner2_mask"][()]
        del file["data/demo_0/obs/corner2_mask"]
        file["data/demo_0/obs"].create_dataset("corner2_mask", data=masks, chunks=masks.shape)

    monkeypatch.setattr(demonstrations, "LARGEST_CHUNK", STEPS * SIZE * SIZE - 1)
    assert "stored in pieces of more than 3,071 bytes" in refusal(write(path, packed_together))


def test_files_in_which_the_library_dies_are_named(path, tmp_path, monkeypatch):
    """Whatever kills it, here a signal: the files before are fine, the one it died of is named."""
    other = write(tmp_path / "other.hdf5")
    read_headers([other, write(path)])
    program = tmp_path / "dies.py"
    program.write_text("import os\nos.write(1, b'..')\nos.kill(os.getpid(), 11)\n")
    monkeypatch.setattr(hdf5.hdf5_probe, "__file__", str(program))
    with pytest.raises(UserError, match=r"received.hdf5 is damaged, .*dies of it \(SIGSEGV\)"):
        read_headers([other, path])
    program.write_text("import os\nos.write(1, b'.')\nos.kill(os.getpid(), 27)\n")
    with pytest.raises(UserError, match=r"other.hdf5 is damaged, reading it does not end"):
        read_headers([other, path])


# ------------------------------------------------------------------- filter keys


def filters(file):
    file["mask/train"] = np.array([b"demo_0", b"demo_2"])
    file["mask/valid"] = np.array(["demo_1"], dtype=h5py.string_dtype())
    file["mask/wrong"] = np.array([b"demo_1", b"demo_9"])
    file["mask/numbers"] = np.arange(3)
    file["mask/empty"] = np.array([], dtype="S6")


def test_a_filter_key_chooses_demonstrations(path):
    write(path, filters, demos=3)
    chosen = {key: read_header(path, key).episodes for key in (None, "train", "valid")}
    names = {key: [episode.name for episode in episodes] for key, episodes in chosen.items()}
    assert names == {
        None: ["demo_0", "demo_1", "demo_2"],
        "train": ["demo_0", "demo_2"],
        "valid": ["demo_1"],
    }
    assert len(opened(path, filter_key="valid")) == STEPS
    assert opened(path, filter_key="valid").note == ""
    said = "has filter keys (empty, numbers, train, valid, wrong) and none was chosen"
    assert said in opened(path).note
    assert opened(write(path)).note == ""


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("test", "no filter key 'test'; it has empty, numbers, train, valid, wrong"),
        ("wrong", "the filter key wrong names demo_9, which is not in the file"),
        ("numbers", "mask/numbers is no list of names"),
        ("empty", "the filter key empty names 0 demonstrations"),
    ],
)
def test_a_filter_key_that_does_not_fit_is_named(path, key, sentence):
    assert sentence in refusal(write(path, filters, demos=3), filter_key=key)


def test_a_file_without_filter_keys_says_so(path):
    assert "it has none; leave --filter-key out" in refusal(write(path), filter_key="train")


# ------------------------------------------------------------------- alignment


@pytest.mark.parametrize("alignment", ["before_action", "after_action"])
def test_states_tell_which_instant_the_pictures_show(path, alignment):
    header = read_header(arm(path, alignment))
    assert (header.alignment, header.aligned_by) == (alignment, "its states")
    assert header.lag == (alignment == "after_action")


@pytest.mark.parametrize("options", [{"states": False}, {"still": True}])
def test_where_nothing_tells_the_alignment_is_asked_for(path, options):
    arm(path, "before_action", **options)
    header = read_header(path)
    assert (header.alignment, header.aligned_by) == (None, "nobody")
    assert "observation  not said" in inspection.describe(header)
    with pytest.raises(UserError, match=r"received.hdf5 does not say .* --obs-alignment before_ac"):
        opened(path, "none")
    for alignment, lag in (("before_action", 0), ("after_action", 1)):
        given = opened(path, "pixels", obs_alignment=alignment)
        assert len(given) == 2 * (STEPS - lag)
        assert given.recordings[0].aligned_by == "the option"


def test_states_that_are_no_numbers_tell_nothing(path):
    arm(path, "before_action")
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            demo["states"][:, 3] = np.nan
    assert read_header(path).alignment is None


def test_an_option_does_not_contradict_the_file(path):
    assert read_header(write(path), obs_alignment="before_action").alignment == "before_action"
    said = refusal(path, obs_alignment="after_action")
    assert "says that its obs_alignment is before_action" in said


# ------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("name", "place", "value", "sentence"),
    [
        ("actions", (3, 2), np.nan, "data/demo_1/actions, row 3 holds nan, not a finite number"),
        ("actions", (4, 0), -np.inf, "data/demo_1/actions, row 4 holds -inf, not a finite number"),
        ("actions", (5, 1), 7.5, r"data/demo_1/actions, row 5 holds 7.5, outside of \[-1, 1\]"),
        ("obs/proprio", (6, 1), np.nan, "data/demo_1, proprioception, row 6 holds nan"),
    ],
)
def test_a_number_of_no_use_is_named_with_its_row(path, name, place, value, sentence):
    write(path, lambda file: file[f"data/demo_1/{name}"].__setitem__(place, value))
    recordings = [read_header(path)]
    with pytest.raises(UserError, match=sentence) as refused:
        statistics(recordings)
    assert str(path) in str(refused.value)
    with pytest.raises(UserError, match=sentence):
        list(opened(path, "none"))
    said = inspection.describe(recordings[0])
    assert "faults       1" in said
    assert f"row {place[0]} holds" in said


def test_actions_at_their_bounds_pass_whatever_their_precision(path):
    for kind in (np.float16, np.float32, np.float64):
        edge = np.full((STEPS, WIDTH), 1.0, kind)
        edge[::2] = np.nextafter(kind(-1), kind(-2))  # one rounding beyond
        write(path, put("data/demo_0/actions", edge))
        assert statistics([read_header(path)])["action_max"] == [1.0] * WIDTH


@pytest.mark.parametrize("value", [8, 9, 254])
def test_masks_of_something_else_are_refused_and_listed(path, value):
    def change(file):
        file["data/demo_1/obs/corner2_mask"][:, 0, 0] = value

    with pytest.raises(UserError, match=rf"demo_1/obs/corner2_mask, row 6 holds {value}, no class"):
        opened(write(path, change))
    assert len(opened(path, "pixels"))  # they are not looked at there
    said = inspection.describe(read_header(path))
    assert f"  {value:>3} no class" in said
    assert f"data/demo_1/obs/corner2_mask: row 0 holds {value}" in said


def test_one_wrong_mask_is_found_when_it_is_read(path):
    write(path, lambda file: file["data/demo_1/obs/corner2_mask"].__setitem__((2, 3, 4), 77))
    windows = opened(path)
    with pytest.raises(UserError, match=r"received.hdf5: data/demo_1/obs/corner2_mask, row 2 ho"):
        list(windows)
    assert "row 2 holds 77" in inspection.describe(read_header(path))


def test_unlabelled_pixels_are_masks(path):
    write(path, lambda file: file["data/demo_0/obs/corner2_mask"].__setitem__(slice(None), 255))
    assert (opened(path)[0]["future"] == 255).all()
    assert "faults" not in inspection.describe(read_header(path))


def test_the_words_of_a_file_move_no_cursor(path):
    attributes = ATTRIBUTES | {"made_by": "me\x1b[2J\r\n", "task": "metaworld/re\x1b[31mach"}
    said = inspection.describe(read_header(write(path, attributes=attributes)))
    assert "\x1b" not in said
    assert "me?[2J??" in said


# ------------------------------------------------------------------- files and folders


def test_hidden_files_are_no_data(tmp_path):
    for name in ("a.hdf5", "inner/b.h5", "._a.hdf5", ".ipynb_checkpoints/a-checkpoint.hdf5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name)
    assert [p.name for p in find_files([tmp_path])] == ["a.hdf5", "b.h5"]
    assert [p.name for p in find_files([tmp_path / "._a.hdf5"])] == ["._a.hdf5"]  # asked for


def test_pipes_devices_and_impossible_names_are_no_data(tmp_path):
    os.mkfifo(tmp_path / "pipe.hdf5")
    cases = {
        tmp_path / "pipe.hdf5": "is a pipe or a device",
        "/dev/zero": "is a pipe or a device",
        tmp_path / ("a" * 300): "cannot be read",
        tmp_path / "nowhere": "there is no file or folder",
        tmp_path: "there is no .hdf5 or .h5 file",  # the pipe in it is none
    }
    for path, sentence in cases.items():
        with pytest.raises(UserError, match=sentence):
            find_files([path])


def test_more_files_than_may_be_open_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "OPEN_FILES", 3)
    for number in range(8):
        write(tmp_path / f"{number}.hdf5", demos=1)
    found = open_windows([tmp_path], READS("none"))
    first = found[0]["image"]
    for index in next(found.batches(len(found), seed=0)):
        found[index]
        links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        assert sum(str(tmp_path) in link for link in links) <= 3
    np.testing.assert_array_equal(found[0]["image"], first)


def test_the_limit_of_open_files_is_named_and_no_file_blamed(path):
    write(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free := os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(UserError, match="Too many open files"):
            hdf5.opened(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ------------------------------------------------------------------- writing


def test_what_is_begun_is_not_written_through_a_link(tmp_path):
    """Planted beside the data under the name of a file that is being written."""
    victim, out = tmp_path / "victim", tmp_path / "out.hdf5"
    victim.write_text("mine")
    partial = out.with_name(out.name + PARTIAL)
    partial.symlink_to(victim)
    with pytest.raises(UserError, match=rf"{PARTIAL} is in the way"), DemonstrationWriter(out, {}):
        pass
    partial.unlink()
    os.mkfifo(partial)
    with pytest.raises(UserError, match=rf"{PARTIAL} is in the way"), DemonstrationWriter(out, {}):
        pass
    partial.unlink()
    partial.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=rf"{PARTIAL} is in the way"), DemonstrationWriter(out, {}):
        pass
    assert victim.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_what_is_begun_does_not_lead_to_other_files(tmp_path):
    victim, out = write(tmp_path / "victim.hdf5"), tmp_path / "out.hdf5"
    before = victim.read_bytes()
    partial = out.with_name(out.name + PARTIAL)
    with h5py.File(partial, "w") as file:
        file["data"] = h5py.ExternalLink(str(victim), "/data")
    with (
        pytest.warns(UserWarning, match="is a link to another file.*starting over"),
        DemonstrationWriter(out, {"task": "x"}) as writer,
    ):
        assert writer.episodes == 0
    assert victim.read_bytes() == before
    assert pathlib.Path(f"{partial}.damaged").exists()
