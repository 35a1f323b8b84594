"""Visual shifts: the same task under another light, on another table, through another camera.

A shift changes what is drawn and nothing else. It edits the scene between MuJoCo's update and the
drawing of a frame, or the finished picture, never the model or its state: physics and rewards are
the same to the bit, and so are masks, except under ``camera``, which moves the view, and
``distractors``, which are class 7 where they are seen.

A shift is named with a strength from 0 (nothing) to 1: ``lighting:0.5``; several are joined by
``+``. What it draws at random is drawn anew for every episode, from the episode's seed.
"""

import abc
import math
import re
from typing import Any, NamedTuple, Protocol

import numpy as np

from errors import UserError
from mask_classes import BACKGROUND, FIXTURE, GOAL, HAND, OBJECT, OTHER, ROBOT, SECOND

DEFAULT_STRENGTH = 0.5
SURFACES = re.compile("floor|ground|table|terrain")
"""Names of geoms, or of their bodies, on which a task stands."""


class Drawing(Protocol):
    """What a shift asks of ``envs.rendering.Renderer``; MuJoCo's own classes have no types."""

    model: Any  # mujoco.MjModel
    scene: Any  # mujoco.MjvScene

    def upload_texture(self, texture: int, picture: np.ndarray) -> None: ...


class Stage(NamedTuple):
    """What a shift may look at and edit before a frame is drawn."""

    renderer: Drawing  # after its update
    classes: dict[int, np.ndarray]  # class ids by MuJoCo object type and id (envs/semantics.py)
    frame: int  # pictures drawn in this episode before this one

    @property
    def model(self):
        return self.renderer.model

    def geoms(self, *wanted: int):
        """What is drawn of some classes, as (class id, ``mjvGeom``)."""
        scene = self.renderer.scene
        for index in range(scene.ngeom):
            geom = scene.geoms[index]
            kind = self.classes.get(geom.objtype)
            if kind is not None and kind[geom.objid] in wanted:
                yield int(kind[geom.objid]), geom


class Shift(abc.ABC):
    """One kind of change at one strength."""

    def __init__(self, strength: float):
        self.strength = strength

    @abc.abstractmethod
    def begin(self, rng: np.random.Generator) -> None:
        """Draw what stays the same for an episode."""

    def edit(self, stage: Stage) -> None:  # noqa: B027 (some change the picture only)
        """Change the scene of one frame, before it is drawn."""

    def picture(self, image: np.ndarray) -> np.ndarray:
        """Change a picture, (H, W, 3) uint8."""
        return image

    def _deviation(self, rng: np.random.Generator, size=None):
        """Up or down by at least half of the strength: a shift by chance of nothing is none."""
        return self.strength * rng.uniform(0.5, 1.0, size) * rng.choice((-1.0, 1.0), size)


class Lighting(Shift):
    """Lights of another direction, intensity and colour."""

    def begin(self, rng):
        self._turn = math.pi * self._deviation(rng)
        self._gain = 2.0 ** self._deviation(rng)
        self._tint = 1.0 + 0.4 * self._deviation(rng, 3)

    def edit(self, stage):
        scene = stage.renderer.scene
        cosine, sine = math.cos(self._turn), math.sin(self._turn)
        turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        centre = stage.model.stat.center
        for index in range(scene.nlight):
            light = scene.lights[index]
            for colour in (light.ambient, light.diffuse, light.specular):
                colour[:] = np.clip(colour * self._gain * self._tint, 0, 1)
            if not light.headlight:
                light.dir[:] = turn @ light.dir
                light.pos[:] = centre + turn @ (light.pos - centre)


class Background(Shift):
    """Other textures and colours on everything that is background, the sky included."""

    surfaces_only = False

    def begin(self, rng):
        self._seed = int(rng.integers(2**32))

    def edit(self, stage):
        import mujoco

        model = stage.model
        colours = np.random.default_rng(self._seed)
        textures = set()
        if not self.surfaces_only:
            sky = int(mujoco.mjtTexture.mjTEXTURE_SKYBOX)
            textures.update(np.flatnonzero(model.tex_type == sky).tolist())
        for _, geom in stage.geoms(BACKGROUND):
            if self.surfaces_only and not self._is_surface(model, geom):
                continue
            colour = colours.uniform(0.2, 1.0, 3)  # drawn for all, so that none depends on others
            texture = _texture_of(model, geom)
            if texture is None:
                geom.rgba[:3] += self.strength * (colour - geom.rgba[:3])
            else:
                textures.add(texture)
        if stage.frame == 0:
            for texture in sorted(textures):
                stage.renderer.upload_texture(texture, self._pattern(model, texture))

    def _pattern(self, model, texture: int) -> np.ndarray:
        """The texture's picture mixed with seeded patches of colour, (height, width, C) uint8."""
        picture = stored_texture(model, texture)
        rng = np.random.default_rng((self._seed, texture))
        cells = int(rng.integers(3, 9))
        coarse = rng.uniform(0, 255, (cells, cells, picture.shape[2]))
        rows, columns = (_interpolation(cells, length) for length in picture.shape[:2])
        patches = np.einsum("hi,ijc,wj->hwc", rows, coarse, columns, optimize=True)
        return (picture + self.strength * (patches - picture)).astype(np.uint8)

    @staticmethod
    def _is_surface(model, geom) -> bool:
        import mujoco

        if geom.objtype != int(mujoco.mjtObj.mjOBJ_GEOM):
            return False
        body = model.body(int(model.geom_bodyid[geom.objid])).name
        return bool(SURFACES.search(f"{model.geom(geom.objid).name} {body}"))


class Table(Background):
    """Other textures and colours on the floor and the table only."""

    surfaces_only = True


class Recoloured(Shift):
    """Another colour for every class of a group."""

    group: tuple[int, ...] = ()

    def begin(self, rng):
        self._colours = {name: _vivid(rng) for name in self.group}

    def edit(self, stage):
        for name, geom in stage.geoms(*self.group):
            geom.rgba[:3] += self.strength * (self._colours[name] - geom.rgba[:3])


class Objects(Recoloured):
    """Other colours for the task's objects, goal and fixtures."""

    group = (OBJECT, GOAL, SECOND, FIXTURE, OTHER)


class Robot(Recoloured):
    """Another colour for the robot, and another for its hand."""

    group = (ROBOT, HAND)


class Camera(Shift):
    """A camera that stands and looks a little elsewhere."""

    offset = 0.12  # of the distance to what it looks at, across the view, at strength 1
    angle = math.radians(4.0)  # around each axis, at strength 1

    def begin(self, rng):
        self._offset = self.offset * self._deviation(rng, 2)
        self._angles = self.angle * self._deviation(rng, 3)

    def edit(self, stage):
        distance = _focus_distance(stage)
        for camera in stage.renderer.scene.camera:
            forward, up = np.array(camera.forward), np.array(camera.up)
            right = np.cross(forward, up)
            camera.pos[:] += distance * (self._offset[0] * right + self._offset[1] * up)
            # Turn back towards what was looked at, then by the angles: right, up, around.
            yaw = self._angles[0] + math.atan(self._offset[0])
            pitch = self._angles[1] - math.atan(self._offset[1])
            forward = _rotated(_rotated(forward, up, yaw), right, pitch)
            up = _rotated(_rotated(up, right, pitch), forward, self._angles[2])
            camera.forward[:], camera.up[:] = forward, up


class Distractors(Shift):
    """Coloured bodies that drift through the view; nothing collides with them."""

    most = 6

    def begin(self, rng):
        count = max(1, round(self.most * self.strength)) if self.strength else 0
        self._places = rng.uniform(-0.8, 0.8, (count, 2))  # of half the view, right and up
        self._sway = rng.uniform(0.1, 0.3, (count, 2))
        self._speed = rng.uniform(0.02, 0.08, (count, 2))  # radians a frame
        self._phase = rng.uniform(0, 2 * math.pi, (count, 2))
        self._depth = rng.uniform(0.7, 1.0, count)  # of the distance to what is looked at
        self._size = rng.uniform(0.03, 0.06, count) * (0.5 + 0.5 * self.strength)
        self._boxes = rng.random(count) < 0.5
        self._colours = [_vivid(rng) for _ in range(count)]

    def edit(self, stage):
        import mujoco

        scene = stage.renderer.scene
        camera = scene.camera[0]
        forward, up = np.array(camera.forward), np.array(camera.up)
        right, distance = np.cross(forward, up), _focus_distance(stage)
        half = camera.frustum_top / camera.frustum_near  # tangent of half the view
        places = self._places + self._sway * np.sin(self._speed * stage.frame + self._phase)
        kinds = (mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_BOX)
        for index, (x, y) in enumerate(places):
            depth = distance * self._depth[index]
            position = camera.pos + depth * (forward + half * (x * right + y * up))
            geom = scene.geoms[scene.ngeom]
            mujoco.mjv_initGeom(
                geom,
                kinds[int(self._boxes[index])].value,
                np.full(3, distance * self._size[index]),
                position,
                np.eye(3).flatten(),
                np.append(self._colours[index], 1.0).astype(np.float32),
            )
            geom.objtype = int(mujoco.mjtObj.mjOBJ_UNKNOWN)
            geom.objid = 0
            geom.segid = scene.ngeom
            geom.category = int(mujoco.mjtCatBit.mjCAT_DECOR)
            scene.ngeom += 1


class Noise(Shift):
    """Gaussian noise on every value of the picture."""

    deviation = 50.0  # of 255, at strength 1

    def begin(self, rng):
        self._rng = rng

    def picture(self, image):
        noise = self._rng.standard_normal(image.shape, np.float32)
        noisy = image + self.deviation * self.strength * noise
        return np.clip(noisy.round(), 0, 255).astype(np.uint8)


SHIFTS: dict[str, type[Shift]] = {
    "background": Background,
    "table": Table,
    "lighting": Lighting,
    "objects": Objects,
    "robot": Robot,
    "camera": Camera,
    "distractors": Distractors,
    "noise": Noise,
}


class Shifts:
    """Several shifts together.

    Args:
        description: ``lighting:0.5+noise:0.2``; the strength is 0.5 where none is given.

    Raises:
        UserError: no such shift, or a strength outside [0, 1].
    """

    def __init__(self, description: str):
        self.parts = [SHIFTS[name](strength) for name, strength in parse(description)]

    def begin(self, rng: np.random.Generator) -> None:
        """Draw what stays the same for an episode; each shift from a generator of its own."""
        for part, child in zip(self.parts, rng.spawn(len(self.parts)), strict=True):
            part.begin(child)

    def edit(self, stage: Stage) -> None:
        """Change the scene of one frame, before it is drawn."""
        for part in self.parts:
            part.edit(stage)

    def picture(self, image: np.ndarray) -> np.ndarray:
        """Change a picture, (H, W, 3) uint8."""
        for part in self.parts:
            image = part.picture(image)
        return image


def parse(description: str) -> list[tuple[str, float]]:
    """``lighting:0.5+noise`` → [("lighting", 0.5), ("noise", 0.5)].

    Raises:
        UserError: no such shift, or a strength outside [0, 1].
    """
    pairs = []
    for part in description.split("+"):
        name, _, text = part.strip().partition(":")
        if name not in SHIFTS:
            raise UserError(f"unknown shift {name!r}; there are {', '.join(SHIFTS)}")
        try:
            strength = float(text) if text else DEFAULT_STRENGTH
        except ValueError:
            strength = math.nan
        if not 0.0 <= strength <= 1.0:
            raise UserError(f"the strength of shift {name!r} must be from 0 to 1, not {text}")
        pairs.append((name, strength))
    return pairs


def scene_edits(description: str) -> list[str]:
    """Those shifts of a description that edit MuJoCo's scene, and not the picture alone."""
    return [name for name, _ in parse(description) if SHIFTS[name].edit is not Shift.edit]


def listed(description: str) -> list[str]:
    """What `evaluate --shifts` names: ``all``, ``all:0.3``, or ``lighting,noise:0.2``.

    Returns:
        Descriptions with their strengths, ``["lighting:0.5", "noise:0.2"]``.

    Raises:
        UserError: no such shift, a strength outside [0, 1], or one named twice.
    """
    every, _, strength = description.partition(":")
    if every.strip() == "all":
        parts = [f"{name}:{strength}" if strength else name for name in SHIFTS]
    else:
        parts = description.split(",")
    named = ["+".join(f"{name}:{s:g}" for name, s in parse(part)) for part in parts]
    if len(set(named)) < len(named):
        raise UserError(f"a shift is named twice in {description!r}")
    return named


def stored_texture(model, texture: int) -> np.ndarray:
    """A view of a model's texture, (height, width, C) uint8; the six sides of a sky are stacked."""
    shape = model.tex_height[texture], model.tex_width[texture], model.tex_nchannel[texture]
    start = model.tex_adr[texture]
    return model.tex_data[start : start + math.prod(shape)].reshape(shape)


def _texture_of(model, geom) -> int | None:
    """The colour texture of a drawn geom, None where it has none."""
    import mujoco

    if geom.matid < 0:
        return None
    texture = model.mat_texid[geom.matid, int(mujoco.mjtTextureRole.mjTEXROLE_RGB)]
    return int(texture) if texture >= 0 else None


def _interpolation(cells: int, length: int) -> np.ndarray:
    """Weights (length, cells) of linear interpolation between `cells` evenly spaced values."""
    place = np.linspace(0, cells - 1, length)
    return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(cells)))


def _vivid(rng: np.random.Generator) -> np.ndarray:
    """A colour that is neither dark nor pale, (3,) in [0, 1]."""
    import colorsys

    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.6, 1.0), rng.uniform(0.6, 1.0)))


def _focus_distance(stage: Stage) -> float:
    """Metres from the camera to what the task is about: its objects, else the robot."""
    camera = stage.renderer.scene.camera[0]
    forward = np.array(camera.forward)
    for group in ((OBJECT, GOAL), (ROBOT, HAND), (BACKGROUND,)):
        depths = [float((geom.pos - camera.pos) @ forward) for _, geom in stage.geoms(*group)]
        depths = [depth for depth in depths if depth > camera.frustum_near]
        if depths:
            return float(np.median(depths))
    return 1.0


def _rotated(vector: np.ndarray, axis: np.ndarray, angle: float) -> np.ndarray:
    """`vector` turned around the unit vector `axis` by `angle` radians (Rodrigues)."""
    along = axis * (axis @ vector)
    return along + math.cos(angle) * (vector - along) + math.sin(angle) * np.cross(axis, vector)
