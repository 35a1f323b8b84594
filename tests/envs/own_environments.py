"""Environments as users write them: one that is right, and many that are wrong in one thing."""

import gymnasium
import numpy as np
from gymnasium import spaces

SIZE = 12


class Slider(gymnasium.Env):
    """A dot on a line, moved by a Box action in [-3, 5]; the goal is at the right end."""

    observation_space = spaces.Box(0, 255, (SIZE, 2 * SIZE, 3), np.uint8)
    action_space = spaces.Box(-3.0, 5.0, (1, 1), np.float32)
    instruction = "move the dot to the right"

    def __init__(self):
        self.taken = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(SIZE))
        return self.observed(), {}

    def step(self, action):
        self.taken.append(np.array(action))
        self.place = int(np.clip(self.place + round(float(action[0, 0])), 0, 2 * SIZE - 1))
        done = self.place == 2 * SIZE - 1
        return self.observed(), float(self.place), done, False, {"is_success": np.float32(done)}

    def observed(self):
        picture = np.zeros((SIZE, 2 * SIZE, 3), np.uint8)
        picture[:, self.place] = 255, 0, 0
        return picture


class Rich(Slider):
    """The same with a mask, a state and two cameras."""

    observation_space = spaces.Dict(
        {
            "image": Slider.observation_space,
            "mask": spaces.Box(0, 3, (SIZE, 2 * SIZE), np.int64),
            "wrist": spaces.Dict({"picture": spaces.Box(0, 255, (4, 4, 3), np.uint8)}),
            "proprio": spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "other": spaces.Box(-1, 1, (5,), np.float32),
        }
    )
    mask_value = 3

    def observed(self):
        image = super().observed()
        return {
            "image": image,
            "mask": np.where(image.any(-1), self.mask_value, 0),
            "wrist": {"picture": np.full((4, 4, 3), self.place, np.uint8)},
            "proprio": np.array([self.place, 0.5]),
            "other": np.zeros(5, np.float32),
        }


class Switch(Slider):
    """The same with the actions 2, 3 and 4: left, stay, right."""

    action_space = spaces.Discrete(3, start=2)

    def step(self, action):
        assert self.action_space.contains(action)
        return super().step(np.array([[float(action) - 3]]))


class Drawn(Slider):
    """A state, and a picture from `render()`."""

    observation_space = spaces.Box(-100, 100, (3,), np.float64)
    render_mode = "rgb_array"

    def observed(self):
        return np.array([self.place, 1.0, 2.0])

    def render(self):
        return super().observed()


class DrawnSwitch(Drawn):
    action_space = spaces.Discrete(2)

    def step(self, action):
        return super().step(np.full((1, 1), action))


class Endless(Slider):
    def step(self, action):
        return self.observed(), 1.0, False, False, {}


# ------------------------------------------------------------------- wrong in one thing


class NoPicture(Drawn):
    render_mode = None


class DrawsNothing(Drawn):
    def render(self):
        return None


class ChannelsFirst(Slider):
    observation_space = spaces.Dict({"image": spaces.Box(0, 255, (3, SIZE, SIZE), np.uint8)})

    def observed(self):
        return {"image": np.zeros((3, SIZE, SIZE), np.uint8)}


class FloatPicture(Slider):
    def observed(self):
        return super().observed().astype(np.float32)


class OtherShape(Slider):
    def observed(self):
        return super().observed()[1:]


class OldReset(Slider):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class OldStep(Slider):
    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, info


class NoSeed(Slider):
    def reset(self):
        return super().reset()


class NanReward(Slider):
    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float("nan"), *rest


class VectorReward(Slider):
    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, np.zeros(3), *rest


class NumberEnd(Slider):
    def step(self, action):
        observation, reward, _, *rest = super().step(action)
        return observation, reward, 0, *rest


class NoInfo(Slider):
    def step(self, action):
        return *super().step(action)[:4], None


class OutsideState(Drawn):
    def observed(self):
        return np.array([self.place, 1.0, 2000.0])


class MissingEntry(Rich):
    def observed(self):
        observation = super().observed()
        del observation["wrist"]
        return observation


class Unbounded(Slider):
    action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)


class Many(Slider):
    action_space = spaces.MultiDiscrete([2, 3])


class NoActions(Slider):
    action_space = None


class Crashes(Slider):
    def step(self, action):
        raise ZeroDivisionError("a wheel is stuck")


class CrashesWhenMade(Slider):
    def __init__(self):
        raise OSError("no such robot")


class CrashesLater(Slider):
    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float("inf") if len(self.taken) > 20 else 0.0, *rest


class StrangeMask(Rich):
    observation_space = spaces.Dict(
        {**Rich.observation_space, "mask": spaces.Box(0, 255, (SIZE, 2 * SIZE), np.int64)}
    )
    mask_value = 77


class BeyondFloat(Slider):
    action_space = spaces.Box(-1.7e308, 1.7e308, (2,), np.float64)


class TooMany(Slider):
    action_space = spaces.Discrete(10**9)


class Ragged(Slider):
    def observed(self):
        return [[1, 2], [3]]


class NothingDrawn(Drawn):
    def render(self):
        return np.zeros((0, 5, 3), np.uint8)


class GrowingPicture(Drawn):
    def render(self):
        self.drawn = getattr(self, "drawn", 0) + 1
        return np.zeros((SIZE + self.drawn, SIZE, 3), np.uint8)


class InfiniteState(Drawn):
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def observed(self):
        return np.array([self.place, 1e300, 0])


class TextReward(Slider):
    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, np.array("one"), *rest


class HugeReward(Slider):
    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, 10**400, *rest


class TextSuccess(Slider):
    def step(self, action):
        return *super().step(action)[:4], {"success": "no"}


class TwoSuccesses(Slider):
    def step(self, action):
        return *super().step(action)[:4], {"success": np.array([True, False])}


class Leaves(Slider):
    def step(self, action):
        raise SystemExit(0)

    def close(self):
        raise OSError("the door is locked")


class NoRoomForMasks(Rich):
    observation_space = spaces.Dict(
        {**Rich.observation_space, "mask": spaces.Box(0, 3, (0, SIZE), np.int64)}
    )

    def observed(self):
        return {**super().observed(), "mask": np.zeros((0, SIZE), np.int64)}


class Broken(Slider):
    @property
    def spec(self):
        raise RuntimeError("not\nyet")


class Odd(Slider):
    """Right, but for what nothing depends on; its entry is called with a dot."""

    observation_space = spaces.Dict({"robot.image": Slider.observation_space})
    metadata = None
    spec = "none"

    def observed(self):
        return {"robot.image": super().observed()}

    def close(self):
        raise OSError("the door is locked")


def no_environment():
    return {"observation": 1}
