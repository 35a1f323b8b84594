"""Models and states of recordings that others have made: data that is looked at, and no code, no
other file and no address in memory comes of it."""

import multiprocessing
import os
import shutil
import signal

import h5py
import numpy as np
import pytest

import envs
from envs.annotation import annotate
from envs.demonstration_writer import PARTIAL
from envs.demonstrations import read_header
from envs.environment_config import EnvironmentConfig
from envs.libero_package import with_local_assets
from envs.recording import ScriptedActor, collect
from errors import UserError
from results.experiments.roundtrip import strip_masks
from tests.envs.received import put

pytestmark = pytest.mark.simulator

SEEN = EnvironmentConfig(size=16, quality="fast")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("demonstrations") / "drawer.hdf5"
    collect("metaworld/drawer-close", 2, path, ScriptedActor, SEEN, seed=3, after_success=2)
    return path


@pytest.fixture
def copy(recorded, tmp_path):
    return shutil.copy(recorded, tmp_path / "copy.hdf5")


@pytest.fixture(scope="module")
def model_file(libero_assets):
    environment = envs.make("libero/object/0", size=8, quality="fast")
    environment.observing = False
    environment.reset(seed=0)
    yield environment.recorded_model()["model_file"]
    environment.close()


# ------------------------------------------------------------------- LIBERO's: a model as text


def test_a_recorded_model_loads_wherever_it_was_recorded(model_file, libero_assets):
    import mujoco

    elsewhere = model_file.replace(str(libero_assets), "C:\\Users\\me\\LIBERO\\assets")
    assert elsewhere != model_file
    counts = [
        mujoco.MjModel.from_xml_string(with_local_assets(text)).ngeom
        for text in (model_file, elsewhere)
    ]
    assert counts[0] == counts[1]


FILE = "names the file .*, which is not one of LIBERO's or robosuite's assets"
ELEMENT = "which LIBERO's models have not"


@pytest.mark.parametrize(
    ("added", "sentence"),
    [
        ('<asset><mesh name="x" file="/etc/passwd"/></asset>', FILE),
        ('<asset><mesh name="x" file="/home/me/assets/../../../etc/passwd"/></asset>', FILE),
        ('<asset><mesh name="x" file="scenes/../../../../../../../../etc/passwd"/></asset>', FILE),
        ('<asset><texture name="x" type="cube" fileright="/etc/hosts"/></asset>', FILE),
        ('<asset><texture name="x" type="2d" file="../secret.png"/></asset>', FILE),
        ('<asset><hfield name="x" file="/etc/passwd" size="1 1 1 1"/></asset>', ELEMENT),
        ('<asset><skin name="x" file="/etc/passwd"/></asset>', ELEMENT),
        ('<asset><model name="x" file="/etc/passwd"/></asset>', ELEMENT),
        ('<include file="/etc/passwd"/>', ELEMENT),
        ('<extension><plugin plugin="mujoco.sdf.bolt"/></extension>', ELEMENT),
        ('<worldbody><geom file="/etc/passwd" size="1"/></worldbody>', "'geom file', " + ELEMENT),
        ('<worldbody><replicate count="1000000"/></worldbody>', ELEMENT),
        ('<worldbody><flexcomp type="mesh" file="/etc/passwd" name="x"/></worldbody>', ELEMENT),
        ('<size nkey="100000000"/>', "'size nkey', " + ELEMENT),
        ('<asset><texture builtin="flat" width="99999" height="9"/></asset>', "'texture width'"),
        ("<worldbody>" + '<geom size="1"/>' * 20_000 + "</worldbody>", "more than 20,000 elements"),
        ("<body>" * 50_000 + "</body>" * 50_000, "is no XML of a model|more than 20,000"),
        ("<body>", "is no XML of a model"),
    ],
)
def test_a_model_reads_no_other_files_and_stays_small(model_file, added, sentence):
    with pytest.raises(UserError, match=sentence):
        with_local_assets(model_file.replace("</mujoco>", f"{added}</mujoco>"))


def test_entities_are_not_read(model_file):
    entities = '<!DOCTYPE m [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    with pytest.raises(UserError, match="declares entities"):
        with_local_assets(entities + model_file)


def test_folders_that_a_model_names_count_for_nothing(model_file, libero_assets):
    named = next(libero_assets.glob("textures/*.png")).name
    compiler = '<compiler meshdir="/etc" texturedir="/etc" assetdir="/etc" strippath="true"/>'
    asset = f'{compiler}<asset><texture name="x" type="2d" file="textures/{named}"/></asset>'
    found = with_local_assets(model_file.replace("</mujoco>", f"{asset}</mujoco>"))
    assert "/etc" not in found
    assert "strippath" not in found
    assert f'file="{libero_assets.resolve()}/textures/{named}"' in found


def test_a_link_in_the_assets_leads_nowhere_else(model_file, libero_assets, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"mine")
    link = libero_assets / f"link-{os.getpid()}.png"
    link.symlink_to(secret)
    try:
        asset = f'<asset><texture name="x" type="2d" file="{link}"/></asset>'
        with pytest.raises(UserError, match=FILE):
            with_local_assets(model_file.replace("</mujoco>", f"{asset}</mujoco>"))
    finally:
        link.unlink()


def test_initial_states_are_read_without_calling_what_a_pickle_names(libero_assets, tmp_path):
    import torch

    environment = envs.make("libero/object/0", size=8, quality="fast")
    assert environment.init_states.shape[0] == 50
    del environment.init_states

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    environment._init_states_file = tmp_path / "states"
    torch.save(Payload(), environment._init_states_file)
    with pytest.raises(Exception, match="Weights only load failed"):
        _ = environment.init_states
    assert not (tmp_path / "executed").exists()
    environment.close()


# ------------------------------------------------------------------- arrays of a model, and states


def row(name, index, value):
    return lambda file: file[f"data/demo_1/{name}"].__setitem__(index, value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put("data/demo_1/model/body_parentid", np.full(37, 2**31 - 1)), "demo_1/model/body_pare"),
        (put("data/demo_1/model/geom_size", np.zeros((3, 3))), "no array of this model"),
        (put("data/demo_1/model/nonsense", np.zeros(3)), "no array of this model"),
        (row("model/body_pos", (3, 1), np.nan), "body_pos holds what is not a finite number"),
        (row("states", (4, 5), np.inf), r"demo_1/states, row 4 holds inf, not a finite number"),
        (put("data/demo_1/states", np.zeros((44, 3))), "has not|states of shape"),
        (put("data/demo_1/states", np.zeros(3)), "has not .* rows"),
        (put("data/demo_1/states", 1.0), "has not .* rows"),
        (put("data/demo_1/states", np.array([b"x"])), "not floating-point numbers"),
        (put("data/demo_1/drawn/markers", np.zeros((1, 1, 3))), "has not .* rows"),
        (lambda file: file["data/demo_1"].pop("drawn"), "lack drawn/markers"),
        (lambda file: file["data/demo_1"].pop("model"), "demo_1 has no model_file"),
    ],
)
def test_an_episode_that_cannot_be_replayed_is_named(copy, tmp_path, change, sentence):
    with h5py.File(copy, "r+") as file:
        change(file)
    with pytest.raises(UserError, match=sentence) as refused:
        annotate(copy, tmp_path / "out.hdf5")
    assert "copy.hdf5: data/demo_1" in str(refused.value)
    assert not (tmp_path / "out.hdf5").exists()


def test_markers_of_another_shape_are_refused(copy, tmp_path):
    with h5py.File(copy, "r+") as file:
        steps = len(file["data/demo_1/actions"])
        put("data/demo_1/drawn/markers", np.zeros((steps, 5, 3)))(file)
    with pytest.raises(UserError, match=r"demo_1: .*drawn/markers of shape \(5, 3\)"):
        annotate(copy, tmp_path / "out.hdf5")


def test_a_replay_tells_the_alignment_where_the_file_does_not(copy, tmp_path):
    """And the file with masks says it."""
    with h5py.File(copy, "r+") as file:
        del file["data"].attrs["obs_alignment"]
    assert read_header(copy).alignment is None
    annotate(copy, tmp_path / "out.hdf5")
    assert read_header(tmp_path / "out.hdf5").alignment == "before_action"
    with h5py.File(copy, "r+") as file:
        for demo in file["data"].values():
            demo["obs/proprio"][:] = 0.5
    with pytest.raises(UserError, match="copy.hdf5 does not say .*--obs-alignment before_action"):
        annotate(copy, tmp_path / "other.hdf5")


# ------------------------------------------------------------------- a process of its own


def test_in_a_process_of_its_own_the_same_comes_out(copy, recorded, tmp_path):
    strip_masks(copy)
    annotate(copy, tmp_path / "out.hdf5", apart=True)
    with h5py.File(recorded) as one, h5py.File(tmp_path / "out.hdf5") as other:
        for name in ("actions", "obs/corner2_rgb", "obs/corner2_mask", "states"):
            for demo in one["data"]:
                np.testing.assert_array_equal(one[f"data/{demo}/{name}"],
                                              other[f"data/{demo}/{name}"])  # fmt: skip


def test_a_mistake_in_the_other_process_is_the_same_sentence(copy, tmp_path):
    with h5py.File(copy, "r+") as file:
        del file["data/demo_1/model"]
    with pytest.raises(UserError, match=r"copy.hdf5: data/demo_1 has no model_file"):
        annotate(copy, tmp_path / "out.hdf5", apart=True)


def test_its_death_names_the_file_and_loses_nothing(copy, recorded, tmp_path):
    """Killed after the first episode; the same call goes on with the second."""
    out = tmp_path / "out.hdf5"

    def kill(done, of):
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGSEGV)
        worker.join()

    with pytest.raises(UserError, match=r"copy.hdf5 cannot .* dies of data/demo_1: .*SIGSEGV"):
        annotate(copy, out, apart=True, progress=kill)
    assert not out.exists()
    with h5py.File(out.with_name(out.name + PARTIAL)) as file:
        assert "annotated" in file["data/demo_0"].attrs
    written = []
    annotate(copy, out, progress=lambda done, of: written.append(done))
    assert written == [1, 2]
    assert len(read_header(out).episodes) == 2


def test_what_lies_under_the_name_of_the_file_being_written_is_not_followed(copy, tmp_path):
    victim, out = tmp_path / "victim", tmp_path / "out.hdf5"
    victim.write_text("mine")
    out.with_name(out.name + PARTIAL).symlink_to(victim)
    with pytest.raises(UserError, match="is in the way"):
        annotate(copy, out)
    assert victim.read_text() == "mine"
