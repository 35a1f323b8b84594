"""What an environment of the user's own shows: where its picture, masks and state are.

Shape legend: H, W of the environment's own picture, S edge of what the agent sees, D state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import Image

from envs import own_contract
from envs.demonstration_values import CLASSES
from envs.environment import together
from envs.environment_config import ORIENTATIONS, EnvironmentConfig, camera_names
from envs.own_drawing import OwnDrawing
from errors import UserError
from mask_classes import NAMES, UNLABELLED

IMAGE, MASK, PROPRIO, RENDERED = "image", "mask", "proprio", "render"
"""Entries of an observation; the camera where ``render()`` draws the picture."""


class OwnView:
    """Reads observations of one environment as every task here has them.

    A picture is an entry of a Dict, ``image`` or one that ``camera`` names, entries of entries by
    dots (``pixels.top``), or the whole observation, or else what ``render()`` returns.

    Args:
        environment: of the user.
        task: its id, for errors.
        config: what is to be observed, how large, and how it lies.

    Raises:
        UserError: there is no picture, or no mask or state where they are asked for.
    """

    def __init__(self, environment: gymnasium.Env, task: str, config: EnvironmentConfig):
        self.environment, self.task, self.config = environment, task, config
        self.drawing = OwnDrawing(environment)
        self._drawn_shape: tuple[int, ...] | None = None
        leaves = dict(_leaves(environment.observation_space))
        self._leaves = {".".join(map(str, path)): space for path, space in leaves.items()}
        self._paths = {".".join(map(str, path)): path for path in leaves}
        pictures = [name for name, space in self._leaves.items() if own_contract.is_picture(space)]
        self.default_camera = self._default(pictures)
        self.cameras = camera_names(config.camera or self.default_camera)
        known = [name or IMAGE for name in pictures] or [RENDERED]
        if unknown := [camera for camera in self.cameras if camera not in known]:
            raise UserError(f"unknown camera {unknown[0]!r}; {task} has {', '.join(known)}")
        self._masks = [self._mask_of(camera) for camera in self.cameras] if config.masks else []
        state = [
            name
            for name, space in self._leaves.items()
            if name not in pictures and not name.endswith(MASK) and space.is_np_flattenable
        ]
        self._state = [PROPRIO] if PROPRIO in state else state
        if config.proprio and not self._state:
            raise UserError(
                f"{task} observes no state, which --environment.proprio asks for: its observation"
                f" needs an entry {PROPRIO}"
            )

    def _default(self, pictures: list[str]) -> str:
        """The camera that is taken when none is named."""
        if IMAGE in self._leaves and IMAGE not in pictures:
            space = self._leaves[IMAGE]
            raise UserError(
                f"{self.task}: the image of its observation is {space.dtype} {space.shape}, not"
                " uint8 (height, width, 3)"
            )
        if IMAGE in pictures or pictures == [""]:
            return IMAGE
        if len(pictures) > 1:
            raise UserError(
                f"{self.task} shows the pictures {', '.join(pictures)}; name one by"
                " --environment.camera"
            )
        if pictures:
            return pictures[0]
        mode = own_contract.attribute(self.environment, self.task, "render_mode")
        if mode != "rgb_array":
            raise UserError(
                f"{self.task} has no picture: its observation has no uint8 (height, width, 3), and"
                f" its render_mode is {mode!r:.40}; make it with"
                ' render_mode="rgb_array", or observe an image'
            )
        return RENDERED

    @property
    def has_masks(self) -> bool:
        """Whether every camera has masks."""
        return all({f"{name}_{MASK}", MASK} & self._leaves.keys() for name in self.cameras)

    def _mask_of(self, camera: str) -> str:
        """The entry with a camera's masks."""
        there = [name for name in (f"{camera}_{MASK}", MASK) if name in self._leaves]
        if not there:
            raise UserError(
                f"{self.task} observes no masks, which its observation would hold as {MASK}"
                f" (height, width) of classes; leave --environment.masks out and predict a target"
                " that needs none, or record masks elsewhere"
            )
        space = self._leaves[there[0]]
        whole = space.dtype is not None and space.dtype.kind in "iu"
        if not whole or len(space.shape or ()) != 2 or not all(space.shape or ()):
            raise UserError(
                f"{self.task}: the {there[0]} of its observation is {space.dtype} {space.shape},"
                " not whole numbers (height, width)"
            )
        return there[0]

    def proprio_shape(self) -> tuple[int, ...]:
        """(D,) of the state that is observed."""
        sizes = [spaces.flatdim(self._leaves[name]) for name in self._state]
        return (sum(sizes),)

    def read(self, observation: Any) -> dict[str, np.ndarray]:
        """What the agent sees of an observation.

        Raises:
            UserError: it is outside its space, or nothing was drawn.
        """
        seen = together([self._seen(camera, observation) for camera in self.cameras])
        if self.config.proprio:
            parts = [
                spaces.flatten(self._leaves[name], self._part(observation, name))
                for name in self._state
            ]
            with np.errstate(over="ignore"):
                state = np.concatenate([np.asarray(part) for part in parts], dtype=np.float32)
            if not np.isfinite(state).all():
                raise UserError(
                    f"{self.task}: the observed state holds a number that is not finite as float32"
                )
            seen[PROPRIO] = state
        return seen

    def _seen(self, camera: str, observation: Any) -> dict[str, np.ndarray]:
        """The picture of one camera and, if asked for, its mask."""
        size, turn = self.config.size, ORIENTATIONS[self.config.orientation]
        if camera == RENDERED and RENDERED not in self._leaves:
            picture = self._drawn()
        else:
            picture = self._part(observation, camera if camera in self._leaves else "")
        view = {IMAGE: resized(picture, size, Image.Resampling.BOX)}
        if self._masks:
            name = self._masks[self.cameras.index(camera)]
            mask = self._part(observation, name)
            if mask.min() < 0 or mask.max() > UNLABELLED or not CLASSES[mask].all():
                raise UserError(
                    f"{self.task}: the {name} of its observation holds what is no class of masks, 0"
                    f" to {len(NAMES) - 1}, or {UNLABELLED} for unlabelled"
                )
            view[MASK] = resized(mask.astype(np.uint8), size, Image.Resampling.NEAREST)
        return {name: np.ascontiguousarray(turn(value)) for name, value in view.items()}

    def _part(self, observation: Any, name: str) -> Any:
        """A checked entry of an observation."""
        value = observation
        for part in self._paths[name]:
            if not isinstance(value, Mapping) or part not in value:
                raise UserError(f"{self.task}: the observation has no {name}, which its space has")
            value = value[part]
        fault = own_contract.fault_of_observation(self._leaves[name], value, name)
        if fault:
            raise UserError(f"{self.task}: {fault}")
        return np.asarray(value) if isinstance(self._leaves[name], spaces.Box) else value

    def _drawn(self) -> np.ndarray:
        """What ``render()`` returns."""
        self.drawing.make_current()
        picture = own_contract.call(self.task, "render()", self.environment.render)
        if not (
            isinstance(picture, np.ndarray)
            and picture.dtype == np.uint8
            and picture.ndim == 3
            and picture.shape[2] == 3
            and picture.size
        ):
            found = type(picture).__name__
            if isinstance(picture, np.ndarray):
                found = f"{picture.dtype} {picture.shape}"
            raise UserError(
                f"{self.task}: render() returned {found}, not a picture uint8 (height, width, 3)"
            )
        self._drawn_shape = self._drawn_shape or picture.shape
        if picture.shape != self._drawn_shape:
            raise UserError(
                f"{self.task}: render() returned a picture {picture.shape}, before it was"
                f" {self._drawn_shape}"
            )
        return picture


def resized(picture: np.ndarray, size: int, resampling: Image.Resampling) -> np.ndarray:
    """A picture (H, W) or (H, W, 3) uint8 as a square one of edge `size`, squeezed where it is
    none."""
    if picture.shape[:2] == (size, size):
        return picture.copy()
    return np.array(Image.fromarray(picture).resize((size, size), resampling))


def _leaves(space: spaces.Space, path: tuple = ()) -> Iterator[tuple[tuple, spaces.Space]]:
    """What an observation holds, by the keys that lead to it; () where it is no Dict."""
    if not isinstance(space, spaces.Dict):
        yield path, space
        return
    for part, inner in space.items():
        yield from _leaves(inner, (*path, part))
