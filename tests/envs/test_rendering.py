"""What `smooth` draws, on scenes of plain shapes, of which no quality thins the meshes."""

import mujoco
import numpy as np
import pytest

from envs.rendering import Renderer

pytestmark = pytest.mark.simulator

SIZE = 32
HALF_WIDTH = 1.0
"""Metres that half of the picture's edge shows at the height of the box's top."""
SCENE = f"""<mujoco>
  <visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual>
  <worldbody>
    <camera name="above" pos="0 0 {HALF_WIDTH + 0.5}" fovy="90"/>
    <geom type="plane" size="9 9 1" rgba="0 0 0 1"/>
    <body name="box" mocap="true"><geom type="box" size=".4 .3 .5" rgba="1 1 1 1"/></body>
    <geom type="sphere" pos=".6 -.5 .4" size=".2" rgba=".9 .3 .1 1"/>
  </worldbody>
</mujoco>"""
CLASSES = {int(mujoco.mjtObj.mjOBJ_GEOM): np.array([0, 3, 4], np.uint8)}


@pytest.fixture
def scene():
    """The model, its data, and a maker of renderers that are closed at the end."""
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    made = []

    def renderer(size, quality, **options):
        made.append(Renderer(model, size, size, quality, **options))
        return made[-1]

    yield model, data, renderer
    for one in made:
        one.close()


def drawn(renderer, model, data, x=0.0):
    """The picture with the box moved to `x` metres."""
    data.mocap_pos[0] = x, 0, 0
    mujoco.mj_forward(model, data)
    renderer.update(data, 0)
    return renderer.image()


@pytest.mark.parametrize("upside_down", [False, True])
def test_every_pixel_of_smooth_is_the_mean_of_four(scene, upside_down):
    model, data, renderer = scene
    smooth = drawn(renderer(SIZE, "smooth", upside_down=upside_down), model, data)
    fine = drawn(renderer(2 * SIZE, "fast", upside_down=upside_down), model, data)
    corners = [fine[row::2, column::2].astype(float) for row in (0, 1) for column in (0, 1)]
    assert smooth.shape == (SIZE, SIZE, 3)
    assert smooth.dtype == np.uint8
    np.testing.assert_array_equal(smooth, np.floor(np.mean(corners, 0) + 0.5))


def test_a_move_of_half_a_pixel_shows_in_smooth_alone(scene):
    """From where the box's edges lie just beyond the samples of fast."""
    model, data, renderer = scene
    pixel = 2 * HALF_WIDTH / SIZE
    before, after = 0.3 * pixel, 0.8 * pixel
    pictures = {
        quality: [drawn(one, model, data, x).astype(int) for x in (before, after)]
        for quality in ("fast", "smooth")
        for one in [renderer(SIZE, quality)]
    }
    assert np.array_equal(*pictures["fast"])
    moved = pictures["smooth"][1] - pictures["smooth"][0]
    rows = np.abs(moved).max((1, 2)) > 0
    assert rows.sum() >= 0.5 * 0.3 / HALF_WIDTH * SIZE  # along both upright edges of the box
    assert moved.max() > 40 < -moved.min()  # one edge gives what the other takes


def test_masks_of_smooth_are_those_of_fast(scene):
    model, data, renderer = scene
    masks = []
    for quality in ("fast", "smooth"):
        one = renderer(SIZE, quality)
        drawn(one, model, data)
        masks.append(one.mask(CLASSES))
        np.testing.assert_array_equal(one.mask(CLASSES), masks[-1])
    assert masks[0].shape == (SIZE, SIZE)
    assert {0, 3, 4} == set(np.unique(masks[0]))
    np.testing.assert_array_equal(*masks)


def test_a_picture_stays_when_the_next_one_is_drawn(scene):
    model, data, renderer = scene
    for upside_down in (False, True):
        for quality in ("smooth", "fast"):
            one = renderer(SIZE, quality, upside_down=upside_down)
            first = drawn(one, model, data)
            kept = first.copy()
            assert not np.array_equal(drawn(one, model, data, 0.5), kept)
            np.testing.assert_array_equal(first, kept)
