"""Where the time of a picture goes: what `fast` leaves out, and what is left."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import torch

import envs
from envs.environment_config import EnvironmentConfig
from envs.rendering import Renderer
from results.benchmarks.measuring import timed


def measure_pictures(task: str, view: EnvironmentConfig, repeats: int) -> dict[str, float]:
    """Milliseconds of the pictures of all cameras of one task after a reset, in parts.

    Args:
        task: id.
        view: size and cameras; full and fast are measured.
        repeats: calls of each part.

    Returns:
        ``full``; ``full, no shadows`` (nor reflections and haze); ``fast``, and of it ``poses``
        (what is where), ``geoms`` (drawing them), ``empty`` (drawing without any) and ``reading``
        (the picture from the renderer); ``faces`` that are drawn in full and ``faces, fast``.
    """
    import mujoco

    cpu = torch.device("cpu")  # the pictures are read back to it
    environment = envs.make(task, **{**vars(view), "quality": "fast"})
    full = None
    try:
        environment.reset(seed=0)
        fast = environment.renderer
        cameras = environment.camera_numbers
        width, height = fast.width, fast.height
        viewport = mujoco.MjrRect(0, 0, width, height)
        buffer = np.empty((height, width, 3), np.uint8)
        hidden = environment.hidden_groups
        full = Renderer(fast.model, width, height, "full", hidden_groups=hidden)
        flags = mujoco.mjtRndFlag
        shadows = (flags.mjRND_SHADOW, flags.mjRND_REFLECTION, flags.mjRND_HAZE)

        def picture(renderer: Renderer) -> Callable[[], None]:
            def draw() -> None:
                for camera in cameras:
                    environment.pose(renderer, camera)
                    renderer.image()

            return draw

        def poses() -> None:
            for camera in cameras:
                environment.pose(fast, camera)

        def geoms() -> None:
            mujoco.mjr_render(viewport, fast.scene, fast.context)
            mujoco.mjr_finish()

        def reading() -> None:
            mujoco.mjr_readPixels(buffer, None, viewport, fast.context)

        def median(call: Callable[[], None], times: int = repeats) -> float:
            call()
            return statistics.median(timed(call, times, cpu))

        found = {"full": median(picture(full), max(2, repeats // 5))}
        before = [full.scene.flags[flag] for flag in shadows]
        for flag in shadows:
            full.scene.flags[flag] = False
        found["full, no shadows"] = median(picture(full), max(2, repeats // 5))
        for flag, value in zip(shadows, before, strict=True):
            full.scene.flags[flag] = value
        found["fast"] = median(picture(fast))
        found["poses"] = median(poses)
        found |= {"empty": 0.0, "geoms": 0.0, "reading": 0.0}
        for camera in cameras:
            environment.pose(fast, camera)
            drawn = median(geoms)
            found["reading"] += median(reading)
            fast.scene.ngeom = 0
            empty = median(geoms)
            found["empty"] += empty
            found["geoms"] += drawn - empty
        for renderer in (full, fast):
            environment.pose(renderer, cameras[0])
        for name, renderer in (("faces", full), ("faces, fast", fast)):
            found[name] = float(_faces(renderer))
        return found
    finally:
        if full is not None:
            full.close()
        environment.close()


def _faces(renderer: Renderer) -> int:
    """Triangles of the meshes in the scene."""
    import mujoco

    model, scene = renderer.uploaded, renderer.scene
    meshes = [
        geom.dataid // 2  # MuJoCo: 2·mesh, and 1 more for its convex hull
        for geom in scene.geoms[: scene.ngeom]
        if geom.type == mujoco.mjtGeom.mjGEOM_MESH
    ]
    return int(sum(model.mesh_facenum[mesh] for mesh in meshes))
