"""A tiny dataset by LeRobot's own library: what tests/data/lerobot_tiny was made by.

    python -m tests.envs.lerobot_maker FOLDER        with lerobot 0.4 installed

A red block moves by four pixels a frame, each episode six pixels lower; the other camera sees one
grey, by frame and episode. State, action and masks are functions of the same two numbers.
"""

import sys

import numpy as np

FPS, HEIGHT, WIDTH = 10, 48, 64
TASKS = ("Reach the red block.", "Push it away", "Reach the red block.")
"""By episode."""
OBJECT, COLOUR = 3, (0, 114, 178)
"""Class of the block and its colour in masks."""


def length(episode: int) -> int:
    return 6 + episode


def state(episode: int, frame: int) -> np.ndarray:
    return np.array([frame, episode, frame * episode], np.float32)


def action(episode: int, frame: int) -> np.ndarray:
    return np.array([90 * np.sin(frame), 10 * episode + frame], np.float32)


def mask(episode: int, frame: int) -> np.ndarray:
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    top, left = 8 + 6 * episode, 6 + 4 * frame
    ids[top : top + 12, left : left + 16] = OBJECT
    return ids


def grey(episode: int, frame: int) -> int:
    return 10 * frame + 40 * episode


def frame_of(episode: int, frame: int) -> dict:
    ids = mask(episode, frame)
    front = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    front[ids == OBJECT] = (220, 40, 40)
    drawn = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    drawn[ids == OBJECT] = COLOUR
    return {
        "observation.images.front": front,
        "observation.images.wrist": np.full((HEIGHT, WIDTH, 3), grey(episode, frame), np.uint8),
        "observation.images.front_mask": drawn,
        "observation.state": state(episode, frame),
        "action": action(episode, frame),
        "task": TASKS[episode],
    }


def make(root) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    shape = {"shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]}
    features = {
        "observation.images.front": {"dtype": "video", **shape},
        "observation.images.wrist": {"dtype": "image", **shape},
        "observation.images.front_mask": {"dtype": "image", **shape},
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["a", "b", "c"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    }
    dataset = LeRobotDataset.create(
        "tiny/reach", fps=FPS, features=features, root=root, robot_type="arm", use_videos=True
    )
    for episode in range(len(TASKS)):
        for frame in range(length(episode)):
            dataset.add_frame(frame_of(episode, frame))
        dataset.save_episode()
    dataset.finalize()


if __name__ == "__main__":
    make(sys.argv[1])
