"""DeepMind Control: every task of ``dm_control.suite`` and the vision tasks of ``manipulation``.

Ids: ``dmc/<domain>-<task>`` (``dmc/walker-walk``) and ``dmc/<manipulation task>``
(``dmc/reach_duplo``, loaded as ``reach_duplo_vision``).
"""

import numpy as np

from envs.environment_config import EnvironmentConfig
from envs.simulation import ModelSnapshot, MujocoEnvironment, PlainAttributes, import_suite

# dm_control.suite.ALL_TASKS of dm-control 1.0.28, kept here so that listing needs no import.
SUITE_TASKS = (
    "acrobot-swingup",
    "acrobot-swingup_sparse",
    "ball_in_cup-catch",
    "cartpole-balance",
    "cartpole-balance_sparse",
    "cartpole-swingup",
    "cartpole-swingup_sparse",
    "cartpole-two_poles",
    "cartpole-three_poles",
    "cheetah-run",
    "dog-stand",
    "dog-walk",
    "dog-trot",
    "dog-run",
    "dog-fetch",
    "finger-spin",
    "finger-turn_easy",
    "finger-turn_hard",
    "fish-upright",
    "fish-swim",
    "hopper-stand",
    "hopper-hop",
    "humanoid-stand",
    "humanoid-walk",
    "humanoid-run",
    "humanoid-run_pure_state",
    "humanoid_CMU-stand",
    "humanoid_CMU-walk",
    "humanoid_CMU-run",
    "lqr-lqr_2_1",
    "lqr-lqr_6_2",
    "manipulator-bring_ball",
    "manipulator-bring_peg",
    "manipulator-insert_ball",
    "manipulator-insert_peg",
    "pendulum-swingup",
    "point_mass-easy",
    "point_mass-hard",
    "quadruped-walk",
    "quadruped-run",
    "quadruped-escape",
    "quadruped-fetch",
    "reacher-easy",
    "reacher-hard",
    "stacker-stack_2",
    "stacker-stack_4",
    "swimmer-swimmer6",
    "swimmer-swimmer15",
    "walker-stand",
    "walker-walk",
    "walker-run",
)
# dm_control.manipulation.ALL: those with a "_vision" form, without that suffix.
MANIPULATION_TASKS = (
    "stack_2_bricks",
    "stack_2_bricks_moveable_base",
    "stack_3_bricks",
    "stack_2_of_3_bricks_random_order",
    "reassemble_3_bricks_fixed_order",
    "reassemble_5_bricks_random_order",
    "lift_brick",
    "lift_large_box",
    "place_brick",
    "place_cradle",
    "reach_duplo",
    "reach_site",
)
TASKS = SUITE_TASKS + MANIPULATION_TASKS
VISION20 = (
    "acrobot-swingup", "ball_in_cup-catch", "cartpole-balance", "cartpole-balance_sparse",
    "cartpole-swingup", "cartpole-swingup_sparse", "cheetah-run", "finger-spin", "finger-turn_easy",
    "finger-turn_hard", "hopper-hop", "hopper-stand", "pendulum-swingup", "quadruped-run",
    "quadruped-walk", "reacher-easy", "reacher-hard", "walker-run", "walker-stand", "walker-walk",
)  # fmt: skip
"""The 20 tasks on which DreamerV3 learns from pixels."""

# lqr never ends by itself; a learning loop needs episodes: the length of the other tasks.
UNLIMITED_ENV_STEPS = 1000
UNBOUNDED = 1e10  # mjMAXVAL, which dm_control gives as the bound of an actuator without one (lqr)
# lqr draws its springs and dampers when it is loaded. They are part of the task, so that training
# and evaluation, in whatever process, face the same system.
LQR_SYSTEM_SEED = 0


def highest_return(name: str) -> float:
    """What an episode of a task pays at most: 1 per control step, which are 1000 in the suite and
    250 in manipulation."""
    return 1000.0 if "-" in name else 250.0


class DeepMindControl(MujocoEnvironment):
    """One DMC task. ``terminated`` only where the task ends an episode with discount 0.

    Camera 0, except quadruped (2). Proprioception (D,): the task's own
    observation, flattened.

    Args:
        name: one of ``TASKS``.
        config, seed: see ``MujocoEnvironment``.

    Raises:
        UserError: dm_control is not installed; unknown camera; no GL context.
    """

    def __init__(
        self,
        name: str,
        config: EnvironmentConfig,
        seed: int | None = None,
    ):
        self.name = name
        self.instruction = name.replace("-", " ").replace("_", " ")
        self.domain = name.split("-")[0]
        self.default_camera = 2 if self.domain == "quadruped" else 0
        self._environment = _load(name)
        if name in MANIPULATION_TASKS:
            self._random = self._environment.random_state
            limit = self._environment._time_limit / self._environment.control_timestep()
        else:
            self._random = self._environment.task.random
            limit = self._environment._step_limit
        limit = round(limit) if np.isfinite(limit) else UNLIMITED_ENV_STEPS
        self._snapshot = ModelSnapshot(self.model)
        self._attributes = PlainAttributes(self._environment.task)
        self._steps = 0
        self._latest = self._environment.reset()
        spec = self._environment.action_spec()
        low, high = (np.broadcast_to(bound, spec.shape) for bound in (spec.minimum, spec.maximum))
        bounded = (low > -UNBOUNDED) & (high < UNBOUNDED)
        bounds = np.where(bounded, low, -np.inf), np.where(bounded, high, np.inf)
        super().__init__(config, bounds, limit, seed)

    @property
    def model(self):
        """The ``mujoco.MjModel`` being simulated; manipulation tasks make one every episode."""
        return self._environment.physics.model.ptr

    @property
    def data(self):
        """The ``mujoco.MjData`` being simulated."""
        return self._environment.physics.data.ptr

    def _reset_simulation(self, options) -> None:
        self._attributes.restore()
        if self.name in SUITE_TASKS:
            self._snapshot.restore()
        self._random.seed(self.np_random.integers(2**32, dtype=np.uint32))
        self._latest = self._environment.reset()
        self._steps = 0
        if self._renderer is not None and self._renderer.model is self.model:
            self._renderer.upload_heightfields()

    def _step_simulation(self, action):
        self._latest = latest = self._environment.step(action)
        self._steps += 1
        terminated = bool(latest.last() and latest.discount == 0)
        out_of_time = latest.last() or self._steps >= self.max_env_steps
        return float(latest.reward), terminated, bool(out_of_time and not terminated), {}

    def _state(self) -> np.ndarray:
        parts = [np.ravel(value) for value in self._latest.observation.values()]
        return np.concatenate(parts).astype(np.float32)

    def _classes(self):
        from envs.semantics import dmc_classes

        return dmc_classes(self.name, self.model)

    def close(self) -> None:
        """Free the renderer and the physics."""
        super().close()
        if self._environment is not None:
            self._environment.close()
            self._environment = None


def _load(name: str):
    """The dm_control environment of a task, without camera observations of its own."""
    if name in SUITE_TASKS:
        suite = import_suite("dm_control.suite", "dm-control==1.0.28")
        domain, task = name.split("-", 1)
        if domain == "quadruped":
            suite.quadruped.Physics._get_sensor_names = _sensor_names
        return suite.load(domain, task, {"random": np.random.RandomState(LQR_SYSTEM_SEED)})
    manipulation = import_suite("dm_control.manipulation", "dm-control==1.0.28")
    from dm_control import composer
    from dm_control.composer.observation import observable
    from dm_control.manipulation.shared import registry

    # What manipulation.load does; but there the constructor already renders the task's own cameras.
    task = registry.get_constructor(f"{name}_vision")()
    for observed in task.observables.values():
        if isinstance(observed, (observable.MJCFCamera, observable.MujocoCamera)):
            observed.enabled = False
    return composer.Environment(task, time_limit=manipulation._TIME_LIMIT)


def _sensor_names(physics, *sensor_types) -> list[str]:
    """The names of quadruped's sensors of some types.

    dm-control 1.0.28 asks for ``numpy.in1d`` here, which NumPy 2.4 no longer has.
    """
    numbers = np.flatnonzero(np.isin(physics.model.sensor_type, sensor_types))
    return [physics.model.id2name(number, "sensor") for number in numbers]
