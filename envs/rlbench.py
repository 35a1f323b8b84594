"""RLBench: over a hundred tasks of a Panda arm in CoppeliaSim, which is installed apart.

The published protocol (Masked World Models, Table 1 and appendix F): displacements of the joints
and a gripper that is open or closed, the front camera, 200 control steps, an action held for two.
An episode terminates with success, where the task says it is lost, and with a motion that the arm
cannot make.

Nobody has run this against the simulator yet (docs/rlbench.md says what is checked).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding

from envs import rlbench_package
from envs.environment import Environment, observation_space, together
from envs.environment_config import ORIENTATIONS, EnvironmentConfig, camera_names
from envs.rlbench_package import CAMERAS, SHAPED, InvalidMotion, Settings, Shape, Simulation
from errors import UserError
from mask_classes import BACKGROUND, FIXTURE, GOAL, HAND, OBJECT, OTHER, ROBOT

# The files of rlbench/tasks of RLBench 1.2.0 (January 2025), so that listing needs no import.
TASKS = (
    "basketball_in_hoop", "beat_the_buzz", "block_pyramid", "change_channel", "change_clock",
    "close_box", "close_door", "close_drawer", "close_fridge", "close_grill", "close_jar",
    "close_laptop_lid", "close_microwave", "empty_container", "empty_dishwasher",
    "get_ice_from_fridge", "hang_frame_on_hanger", "hit_ball_with_queue", "hockey",
    "insert_onto_square_peg", "insert_usb_in_computer", "lamp_off", "lamp_on",
    "lift_numbered_block", "light_bulb_in", "light_bulb_out", "meat_off_grill", "meat_on_grill",
    "move_hanger", "open_box", "open_door", "open_drawer", "open_fridge", "open_grill",
    "open_jar", "open_microwave", "open_oven", "open_washing_machine", "open_window",
    "open_wine_bottle", "phone_on_base", "pick_and_lift", "pick_and_lift_small", "pick_up_cup",
    "place_cups", "place_hanger_on_rack", "place_shape_in_shape_sorter", "play_jenga",
    "plug_charger_in_power_supply", "pour_from_cup_to_cup", "press_switch", "push_button",
    "push_buttons", "put_all_groceries_in_cupboard", "put_books_on_bookshelf",
    "put_bottle_in_fridge", "put_groceries_in_cupboard", "put_item_in_drawer",
    "put_knife_in_knife_block", "put_knife_on_chopping_board", "put_money_in_safe",
    "put_plate_in_colored_dish_rack", "put_rubbish_in_bin", "put_shoes_in_box",
    "put_toilet_roll_on_stand", "put_tray_in_oven", "put_umbrella_in_umbrella_stand",
    "reach_and_drag", "reach_target", "remove_cups", "scoop_with_spatula", "screw_nail",
    "set_the_table", "setup_checkers", "setup_chess", "slide_block_to_target",
    "slide_cabinet_open", "slide_cabinet_open_and_place_cups", "solve_puzzle", "stack_blocks",
    "stack_chairs", "stack_cups", "stack_wine", "straighten_rope", "sweep_to_dustpan",
    "take_cup_out_from_cabinet", "take_frame_off_hanger", "take_item_out_of_drawer",
    "take_lid_off_saucepan", "take_money_out_safe", "take_off_weighing_scales",
    "take_plate_off_colored_dish_rack", "take_shoes_out_of_box", "take_toilet_roll_off_stand",
    "take_tray_out_of_oven", "take_umbrella_out_of_umbrella_stand", "take_usb_out_of_computer",
    "toilet_seat_down", "toilet_seat_up", "turn_oven_on", "turn_tap", "tv_on", "unplug_charger",
    "water_plants", "weighing_scales", "wipe_desk",
)  # fmt: skip
MAX_ENV_STEPS = 200  # Table 1 (the authors' code lets it be 200 agent steps)
JOINTS = 7
ACTION = JOINTS + 1
PROPRIO = JOINTS + 1 + 7
OPEN_ABOVE = 0.5  # of the last number of an action: RLBench's Discrete
PARTS: Mapping[str, Mapping[str, int]] = {
    "reach_target": {"target": GOAL, "distractor0": OTHER, "distractor1": OTHER},
    "push_button": {
        "target_button_topPlate": OBJECT,
        "target_button_wrap": OBJECT,
        "push_button_target": FIXTURE,
    },
}
"""Classes of a task's shapes by their names, where the task's own order would mislead."""
BOUNDARY = "boundary"
"""In the name of a shape that is never seen: where a task may place things."""


# ------------------------------------------------------------ what needs no simulator


def handles_of(mask: np.ndarray) -> np.ndarray:
    """Handles of what the pixels show, (H, W) int64, of a mask as RLBench has it, (H, W).

    Its floating-point numbers come from colours between 0 and 1, and lie beside the whole ones.
    """
    return np.rint(np.asarray(mask, np.float64)).astype(np.int64)


def mask_of(handles: np.ndarray, classes: Mapping[int, int]) -> np.ndarray:
    """Class ids of handles, (H, W) uint8; a handle that `classes` lacks is background."""
    shown, where = np.unique(handles, return_inverse=True)
    table = np.array([classes.get(int(handle), BACKGROUND) for handle in shown], np.uint8)
    return table[where].reshape(handles.shape)


def parts_of(task: str, own: Sequence[str]) -> dict[str, int]:
    """Class ids by the names of a task's own shapes.

    Args:
        task: "push_button".
        own: their names in the task's order. The first four are classes 3 to 6, unless ``PARTS``
            knows the task.
    """
    if task in PARTS:
        return dict(PARTS[task])
    seen = [name for name in own if BOUNDARY not in name]
    return {name: min(OBJECT + number, OTHER) for number, name in enumerate(seen)}


def classes_of(
    shapes: Iterable[Shape], parts: Mapping[str, int], arm: str, gripper: str, base: str
) -> dict[int, int]:
    """Class ids by handle: of a shape, what its name says, else that of what it is part of.

    Args:
        shapes: of the whole scene.
        parts: classes of the task's own shapes, by name.
        arm, gripper: names of the robot's two parts.
        base: name of what the task's objects are part of; those without a class of their own are
            class 7. The rest of the scene (table, walls, floor) is background.
    """
    named = {base: OTHER, arm: ROBOT, gripper: HAND} | dict(parts)
    return {
        shape.handle: next((named[name] for name in shape.names if name in named), BACKGROUND)
        for shape in shapes
    }


def proprioception(observation: Any) -> np.ndarray:
    """What the robot feels, (15,) float32: joint angles (7, radians), 1 for an open gripper, and
    the pose of its tip (position in metres, quaternion x, y, z, w)."""
    parts = observation.joint_positions, [observation.gripper_open], observation.gripper_pose
    return np.concatenate([np.ravel(part) for part in parts]).astype(np.float32)


def view_of(
    observation: Any, camera: str, config: EnvironmentConfig, classes: Mapping[int, int]
) -> dict[str, np.ndarray]:
    """What one camera sees in an observation of RLBench: ``image`` and, if asked for, ``mask``."""
    turn = ORIENTATIONS[config.orientation]
    image = np.asarray(getattr(observation, f"{camera}_rgb"), np.uint8)
    view = {"image": np.ascontiguousarray(turn(image))}
    if config.masks:
        handles = handles_of(getattr(observation, f"{camera}_mask"))
        view["mask"] = np.ascontiguousarray(turn(mask_of(handles, classes)))
    return view


def observed(
    observation: Any,
    cameras: Sequence[str],
    config: EnvironmentConfig,
    classes: Mapping[int, int],
) -> dict[str, np.ndarray]:
    """An observation of ours of one of RLBench's."""
    seen = together([view_of(observation, name, config, classes) for name in cameras])
    if config.proprio:
        seen["proprio"] = proprioception(observation)
    return seen


def command(action: np.ndarray) -> np.ndarray:
    """What RLBench is told, (8,) float64, for an action in [-1, 1]: displacements of the joints in
    radians, and 1 for a gripper to open or 0.

    Raises:
        ValueError: the action has another shape.
    """
    action = np.asarray(action, np.float64)
    if action.shape != (ACTION,):
        raise ValueError(f"action has shape {action.shape}, not {(ACTION,)}")
    told = np.clip(action, -1, 1)
    told[JOINTS] = float(told[JOINTS] > OPEN_ABOVE)
    return told


def button_reward(tip: np.ndarray, plate: np.ndarray, pressed: float) -> float:
    """Of push_button, which RLBench has none for (appendix F): minus the distance from the tip to
    the button plus how far it is pressed, metres; `tip`, `plate`: (3,)."""
    return float(abs(pressed) - np.linalg.norm(np.subtract(tip, plate)))


# ------------------------------------------------------------------- the environment


class RLBench(Environment):
    """One RLBench task. ``info["success"]``: it was done at a control step of this step.

    ``reset(seed=s)`` draws variation, colours and places as a function of ``s``; whether physics
    repeats to the bit is up to the simulator. ``options={"variation": k}`` chooses the variation.
    ``info["instruction"]`` of a reset describes that episode's variation; the attribute
    ``instruction`` is what all of the task's episodes have in common, the words of its name.

    Actions (8,): displacements of the joints (±1 is ±1 radian, of which the arm does in a control
    step what it can), then the gripper (above 0.5 open, else closed). Proprioception (15,):
    ``proprioception``. Rewards: shaped where RLBench has them (``SHAPED``) and of push_button, else
    1 with success. A motion that the arm cannot make ends the episode with reward 0 and without
    another picture.

    The simulator starts at the first reset, in this process.

    Args:
        name: one of ``TASKS``.
        config, seed: see ``MujocoEnvironment``.

    Raises:
        UserError: RLBench or CoppeliaSim are missing; unknown camera; a visual shift is asked for.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # 20 control steps a second / 2
    max_env_steps = MAX_ENV_STEPS

    def __init__(self, name: str, config: EnvironmentConfig, seed: int | None = None):
        self.name, self.config = name, config
        self.instruction = name.replace("_", " ")
        self.action_repeat = config.action_repeat or self.default_action_repeat
        self.cameras = camera_names(config.camera or CAMERAS[0])
        if unknown := [camera for camera in self.cameras if camera not in CAMERAS]:
            raise UserError(f"unknown camera {unknown[0]!r}; this task has {', '.join(CAMERAS)}")
        if config.shift:
            raise UserError("visual shifts edit MuJoCo's scenes; rlbench tasks have none")
        rlbench_package.require()
        if seed is not None:
            self._np_random, self._np_random_seed = seeding.np_random(seed)
        self.action_space = gymnasium.spaces.Box(-1, 1, (ACTION,), np.float32)
        self.observation_space = observation_space(config, len(self.cameras), (PROPRIO,))
        self._simulation: Simulation | None = None
        self._classes: dict[int, int] = {}
        self._steps = 0
        self._pressed = 0.0
        self._drawn = 0, 0
        self._latest: dict[str, np.ndarray] = {}

    @property
    def simulation(self) -> Simulation:
        """The simulator with this task in it, launched at the first use.

        Raises:
            UserError: another rlbench task is open in this process; the simulator does not start.
        """
        if self._simulation is None:
            config = self.config
            settings = Settings(self.cameras, config.size, config.masks, config.quality)
            self._simulation = Simulation(self.name, settings)
        return self._simulation

    def _draw(self, options: Mapping[str, Any]) -> tuple[int, int]:
        """Seed and variation of the next episode, from this environment's generator.

        Raises:
            UserError: there is no such variation.
        """
        seed = int(self.np_random.integers(2**32, dtype=np.uint32))
        count = self.simulation.variations
        variation = int(self.np_random.integers(count))
        asked = options.get("variation", variation)
        if not 0 <= asked < count:
            raise UserError(f"variation {asked} is not one of the {count} of rlbench/{self.name}")
        return seed, int(asked)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start an episode; see the class for what ``seed`` and ``options`` do."""
        super().reset(seed=seed)
        self._drawn = self._draw(options or {})
        descriptions, first = self.simulation.reset(*self._drawn)
        self._steps = 0
        self._classes = self.scene_classes() if self.config.masks else {}
        if self.name == "push_button":
            self._pressed = self.simulation.button()[2]
        told = descriptions[0] if descriptions else self.instruction
        return self._show(first), {"instruction": told, "variation": self._drawn[1]}

    def step(self, action: np.ndarray):
        """Repeat ``action``, (8,) float32; Gymnasium's five values, the reward summed.

        Raises:
            ValueError: the action has another shape.
        """
        told = command(action)
        simulation = self.simulation
        total, steps, success = 0.0, 0, False
        terminated = truncated = False
        latest = None
        while steps < self.action_repeat and not (terminated or truncated):
            steps += 1
            self._steps += 1
            try:
                latest, terminated = simulation.step(told)
            except InvalidMotion:
                terminated = True
                break
            success |= simulation.success()
            total += self._reward()
            truncated = self._steps >= self.max_env_steps and not terminated
        seen = self._latest if latest is None else self._show(latest)
        info = {"success": success, "env_steps": steps}
        return seen, total, terminated, truncated, info

    def _reward(self) -> float:
        """Of the present state."""
        if self.name in SHAPED:
            return self.simulation.shaped_reward()
        if self.name == "push_button":
            tip, plate, position = self.simulation.button()
            return button_reward(tip, plate, position - self._pressed)
        return float(self.simulation.success())

    def demonstrate(self) -> tuple[Sequence[Any], list[float]] | None:
        """RLBench's planner at the episode that ``reset`` has started: its observations (T + 1),
        one a control step, and the rewards (T,) of all but the first; None where it fails."""
        rewards: list[float] = []
        observations = self.simulation.demonstration(
            *self._drawn, lambda observation: rewards.append(self._reward())
        )
        return None if observations is None else (observations, rewards)

    def scene_classes(self) -> dict[int, int]:
        """Class ids by handle, of the scene as it is now."""
        simulation = self.simulation
        parts = parts_of(self.name, simulation.own_names())
        arm, gripper = simulation.robot_names()
        return classes_of(simulation.shapes(), parts, arm, gripper, simulation.base_name())

    def _show(self, observation: Any) -> dict[str, np.ndarray]:
        self._latest = observed(observation, self.cameras, self.config, self._classes)
        self._image = self._latest["image"]
        return self._latest

    def close(self) -> None:
        """Give the simulator back; may be called twice."""
        if self._simulation is not None:
            self._simulation.close()
            self._simulation = None
