"""Tracks of points and of the end effector in the picture, exact: from rays and poses, no tracker.

A point is where the ray through a pixel first meets a geom; it moves with that geom. Where it is
seen at another instant follows from the geom's pose and the camera's; that it is seen, from a ray
to it that meets nothing before. As in a tracker's output (ATM, CoTracker), every point is followed
through the whole episode, before and after the frame that it was chosen in.

Shape legend: T frames, N points, G geoms, S picture edge in pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from envs.environment_config import Orientation
from envs.simulation import MujocoEnvironment
from mask_classes import BACKGROUND

POINTS = 64
"""Points of an episode."""
MOVING = 0.75
"""Share of the points that is chosen on what is not background, of every class as many."""
NEAR = 2e-3
"""Metres that a ray may stop before a point that it meets."""
UNSEEN = -1.0
"""Distance that MuJoCo gives a ray that meets nothing, and a place in no picture."""
MOST_RAYS = 100 * POINTS
"""Rays that look for points: where nearly all of a picture is sky, there are fewer points."""


class Poses(NamedTuple):
    """What is where at one instant, metres and rotation matrices in the world's frame."""

    geoms: np.ndarray
    """(G, 3)."""
    geom_frames: np.ndarray
    """(G, 3, 3)."""
    camera: np.ndarray
    """(3,)."""
    camera_frame: np.ndarray
    """(3, 3)."""
    effector: np.ndarray | None
    """(3,), where the suite has an end effector."""


class Camera:
    """A pinhole camera of square pictures; pixel (0, 0) is the middle of the upper left one.

    Args:
        fovy: vertical field of view, degrees.
        size: S.
        flipped: rows are counted from below.
        mirrored: columns are counted from the right.
    """

    def __init__(self, fovy: float, size: int, flipped: bool = False, mirrored: bool = False):
        self.focal = 0.5 * size / np.tan(np.radians(fovy) / 2)
        self.middle = (size - 1) / 2
        self.signs = np.array([-1.0 if mirrored else 1.0, 1.0 if flipped else -1.0])

    def ray(self, pixel: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Unit directions (..., 3) in the world of pixels (..., 2), x before y.

        Args:
            pixel: (..., 2).
            frame: (3, 3) of the camera, which looks along its −z with y up.
        """
        across = (np.asarray(pixel) - self.middle) * self.signs / self.focal
        along = np.concatenate([across, -np.ones((*across.shape[:-1], 1))], -1)
        along /= np.linalg.norm(along, axis=-1, keepdims=True)
        return along @ frame.T

    def project(self, point: np.ndarray, position: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Pixels (..., 2) of points (..., 3) in the world; NaN of one behind the camera."""
        seen = (point - position) @ frame
        depth = np.where(seen[..., 2:] < 0, -seen[..., 2:], np.nan)
        return self.middle + self.signs * self.focal * seen[..., :2] / depth


class Tracker:
    """Follows one camera through an episode; ``datasets`` then says where points were in its
    pictures.

    Args:
        environment: whose first camera it is; ``observe`` is called once a recorded frame.
        orientation: of the recorded pictures.
    """

    def __init__(self, environment: MujocoEnvironment, orientation: Orientation):
        import mujoco

        self._environment = environment
        self._number = environment.camera_numbers[0]
        self._size = environment.config.size
        flipped = environment.upside_down(self._number) != (orientation == "opengl")
        fovy = float(environment.model.cam_fovy[self._number])
        self._camera = Camera(fovy, self._size, flipped, orientation == "mirrored")
        self._poses: list[Poses] = []
        self._scratch = mujoco.MjData(environment.model)
        self._groups = np.ones(mujoco.mjNGROUP, np.uint8)
        self._groups[3:] = 0  # MuJoCo draws the first three
        self._groups[list(environment.hidden_groups)] = 0
        self._geom = np.zeros(1, np.int32)

    def observe(self) -> None:
        """Take note of this instant."""
        data, effector = self._environment.data, self._environment.effector()
        self._poses.append(
            Poses(
                data.geom_xpos.copy(),
                data.geom_xmat.reshape(-1, 3, 3).copy(),
                data.cam_xpos[self._number].copy(),
                data.cam_xmat[self._number].reshape(3, 3).copy(),
                None if effector is None else np.array(effector),
            )
        )

    def datasets(self, masks: np.ndarray | None, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Where points and effector were in the pictures of the T frames observed.

        Args:
            masks: (T, S, S) as recorded, or None.
            rng: chooses the points.

        Returns:
            ``tracks`` (T, N, 2) float32 pixels, x before y, counted from the middle of the first;
            ``visible`` (T, N) bool; ``effector`` (T, 2) float32 where there is one.
        """
        tracks, visible = self._follow(*self._choose(masks, rng))
        found = {"tracks": tracks, "visible": visible}
        if self._poses[0].effector is not None:
            places = [np.asarray(poses.effector) for poses in self._poses]
            pixels = map(self._pixels, self._poses, places)
            found["effector"] = np.stack(list(pixels)).astype(np.float32)
        return found

    def _pixels(self, poses: Poses, points: np.ndarray) -> np.ndarray:
        """(..., 2) of points (..., 3); ``UNSEEN`` behind the camera."""
        pixels = self._camera.project(points, poses.camera, poses.camera_frame)
        return np.nan_to_num(pixels, nan=UNSEEN)

    def _choose(
        self, masks: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Geoms (N,) and places on them (N, 3), of pixels in frames chosen at random."""
        geoms: list[int] = []
        local: list[np.ndarray] = []
        for _ in range(MOST_RAYS):
            if len(geoms) == POINTS:
                break
            frame = int(rng.integers(len(self._poses)))
            pixel = rng.integers(self._size, size=2)
            if masks is not None and len(geoms) < MOVING * POINTS:
                there = np.setdiff1d(masks[frame], [BACKGROUND])
                if len(there):  # a hand of few pixels has as many points as an arm of many
                    places = np.argwhere(masks[frame] == rng.choice(there))
                    pixel = places[rng.integers(len(places))][::-1]
            poses = self._pose(frame)
            way = self._camera.ray(pixel, poses.camera_frame)
            distance = self._cast(poses.camera, way)
            if distance != UNSEEN:  # not the sky
                geom = int(self._geom[0])
                point = poses.camera + distance * way - poses.geoms[geom]
                geoms.append(geom)
                local.append(point @ poses.geom_frames[geom])
        return np.array(geoms, int), np.array(local).reshape(-1, 3)

    def _follow(self, geoms: np.ndarray, local: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tracks (T, N, 2) float32 of places (N, 3) on geoms (N,), and where they are seen."""
        tracks = np.zeros((len(self._poses), len(geoms), 2), np.float32)
        visible = np.zeros(tracks.shape[:2], bool)
        for frame in range(len(self._poses)):
            poses = self._pose(frame)
            turned = np.einsum("nij,nj->ni", poses.geom_frames[geoms], local)
            points = poses.geoms[geoms] + turned
            pixels = self._pixels(poses, points)
            distance = np.linalg.norm(points - poses.camera, axis=-1)
            inside = ((pixels > -0.5) & (pixels < self._size - 0.5)).all(-1)
            for number in np.flatnonzero(inside):
                way = (points[number] - poses.camera) / distance[number]
                first = self._cast(poses.camera, way)
                visible[frame, number] = first > distance[number] - NEAR
            tracks[frame] = pixels
        return tracks, visible

    def _pose(self, frame: int) -> Poses:
        """The poses of a frame, which rays then meet."""
        poses = self._poses[frame]
        self._scratch.geom_xpos[:] = poses.geoms
        self._scratch.geom_xmat[:] = poses.geom_frames.reshape(-1, 9)
        return poses

    def _cast(self, origin: np.ndarray, direction: np.ndarray) -> float:
        """Metres to the first geom that a ray meets, ``UNSEEN`` if none."""
        import mujoco

        model, geom = self._environment.model, self._geom
        return mujoco.mj_ray(model, self._scratch, origin, direction, self._groups, 1, -1, geom)
