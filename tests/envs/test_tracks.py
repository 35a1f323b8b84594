"""Tracks: projected points land on the object they belong to, in the pictures that are drawn."""

import numpy as np
import pytest

import envs
from envs.environment_config import EnvironmentConfig
from envs.recording import ScriptedActor
from envs.tracks import POINTS, Camera, Tracker
from mask_classes import BACKGROUND, HAND, OBJECT

pytestmark = pytest.mark.simulator

SIZE = 128
STEPS = 40


def episode(task, orientation="upright", **options):
    """Masks (T, S, S) of the first camera, its tracks, and the environment at the end."""
    environment = envs.make(
        task,
        size=SIZE,
        quality="fast",
        masks=True,
        proprio=True,
        orientation=orientation,
        **options,
    )
    observation, _ = environment.reset(seed=3)
    scripted = not task.startswith("dmc")
    actor = ScriptedActor(environment) if scripted else None
    if scripted:
        actor.begin(3)
    tracker, masks = Tracker(environment, orientation), []
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        masks.append(
            observation["mask"] if observation["mask"].ndim == 2 else observation["mask"][0]
        )
        tracker.observe()
        action = (
            actor.action(observation)
            if scripted
            else rng.uniform(-1, 1, environment.action_space.shape)
        )
        observation, *_ = environment.step(np.asarray(action, np.float32))
    masks = np.stack(masks)
    found = tracker.datasets(masks, np.random.default_rng(0))
    return masks, found, environment


def classes_under(masks, found):
    """The class of the pixel under every point, (T, N), -1 where it is not seen."""
    column, row = found["tracks"].round().astype(int).clip(0, SIZE - 1).transpose(2, 0, 1)
    under = masks[np.arange(len(masks))[:, None], row, column].astype(int)
    return np.where(found["visible"], under, -1)


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("metaworld/drawer-close", {}),  # seen upside down
        ("metaworld/window-close", {"camera": "topview"}),
        ("metaworld/push", {"orientation": "mirrored"}),
        ("libero/object/0", {"orientation": "opengl"}),
        ("libero/object/0", {"camera": "robot0_eye_in_hand"}),  # a camera that moves
        ("dmc/cheetah-run", {}),  # another
    ],
)
def test_points_stay_on_the_object_they_belong_to(task, options, libero_assets):
    masks, found, environment = episode(task, **options)
    environment.close()
    tracks, visible = found["tracks"], found["visible"]
    assert tracks.shape == (STEPS, POINTS, 2)
    assert visible.shape == (STEPS, POINTS)
    assert visible.mean() > 0.3
    under = classes_under(masks, found)
    agree = []
    for point in under.T:
        seen = point[point >= 0]
        if len(seen):
            agree += list(seen == np.bincount(seen).argmax())
    assert np.mean(agree) > 0.95
    assert len({*under[under >= 0]}) > 1


def test_points_of_the_hand_move_with_it_and_those_of_the_table_stay():
    masks, found, environment = episode("metaworld/drawer-close")
    environment.close()
    under = classes_under(masks, found)
    moved = np.abs(np.diff(found["tracks"], axis=0)).max((0, 2))
    hand = [(point == HAND).any() for point in under.T]
    table = [(point[point >= 0] == BACKGROUND).all() and (point >= 0).any() for point in under.T]
    assert moved[hand].min() > 0.5
    assert moved[table].max() < 1e-3


def test_what_the_hand_covers_is_not_seen():
    """A point of the object is hidden exactly where another class is drawn over it."""
    masks, found, environment = episode("metaworld/push")
    environment.close()
    column, row = found["tracks"].round().astype(int).clip(0, SIZE - 1).transpose(2, 0, 1)
    under = masks[np.arange(STEPS)[:, None], row, column]
    ours = [
        (point[seen] == OBJECT).mean() > 0.9
        for point, seen in zip(under.T, found["visible"].T, strict=True)
        if seen.any()
    ]
    points = np.flatnonzero(found["visible"].any(0))[np.array(ours)]
    assert len(points)
    covered = under[:, points] == HAND
    assert not found["visible"][:, points][covered].any()


@pytest.mark.parametrize("task", ["metaworld/drawer-close", "libero/object/0", "panda/open-drawer"])
def test_the_effector_is_where_the_gripper_is_drawn(task, libero_assets):
    masks, found, environment = episode(task)
    environment.close()
    near = []
    for mask, place in zip(masks, found["effector"], strict=True):
        pixels = np.argwhere(mask == HAND)[:, ::-1]
        near.append(np.linalg.norm(pixels - place, axis=1).min())
    assert np.median(near) < 5
    assert np.abs(np.diff(found["effector"], axis=0)).max() > 1


def test_a_ray_through_a_pixel_projects_to_that_pixel():
    rng = np.random.default_rng(0)
    frame, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    frame *= np.sign(np.linalg.det(frame))
    for flipped, mirrored in ((False, False), (True, False), (False, True)):
        camera, position = Camera(45, 64, flipped, mirrored), rng.normal(size=3)
        pixels = rng.uniform(0, 63, (5, 2))
        points = position + 2.5 * camera.ray(pixels, frame)
        np.testing.assert_allclose(camera.project(points, position, frame), pixels, atol=1e-9)
        behind = camera.project(position - camera.ray(pixels, frame), position, frame)
        assert np.isnan(behind).all()


def test_the_middle_of_the_field_of_view_is_the_middle_of_the_picture():
    camera = Camera(90, 64)
    ahead = np.array([0.0, 0.0, -1.0])
    np.testing.assert_allclose(camera.project(ahead, np.zeros(3), np.eye(3)), [31.5, 31.5])
    up = np.array([0.0, 1.0, -1.0])  # the upper edge, half a pixel above the first row's middle
    np.testing.assert_allclose(camera.project(up, np.zeros(3), np.eye(3)), [31.5, -0.5])


def test_recorded_demonstrations_have_tracks(tmp_path):
    import h5py

    from envs.recording import collect

    seen = EnvironmentConfig(size=32, quality="fast")
    for name in ("one", "two"):
        collect("metaworld/reach", 1, tmp_path / f"{name}.hdf5", ScriptedActor, seen, seed=5)
    with h5py.File(tmp_path / "one.hdf5") as one, h5py.File(tmp_path / "two.hdf5") as two:
        demo, other = one["data/demo_0/obs"], two["data/demo_0/obs"]
        steps = len(demo["proprio"])
        assert demo["corner2_tracks"].shape == (steps, POINTS, 2)
        assert demo["corner2_effector"].shape == (steps, 2)
        assert demo["corner2_visible"].dtype == bool
        np.testing.assert_array_equal(demo["corner2_tracks"], other["corner2_tracks"])
