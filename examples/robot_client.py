"""A robot's side of `python run.py serve --logdir runs/...`; needs no other file of ours.

`look()` gives an observation (docs/acting.md), `move(action)` executes an action: your robot's.
"""

import time

import msgpack
import numpy as np
from websockets.sync.client import connect


def encode(a):
    return {b"__ndarray__": True, b"data": a.tobytes(), b"dtype": a.dtype.str, b"shape": a.shape}


def decode(m):
    return np.frombuffer(m[b"data"], m[b"dtype"]).reshape(m[b"shape"]) if b"data" in m else m


def drive(url, look, move, steps, hertz=10, token="", prompt=None):
    """Control a robot for some steps; `prompt`: what it is to do, where the policy listens."""
    headers = {"Authorization": f"Api-Key {token}"}
    with connect(url, additional_headers=headers, compression=None, max_size=None) as server:
        print(msgpack.unpackb(server.recv()))  # what the policy reads, and how large an action is
        start = time.perf_counter()
        for step in range(steps):
            told = {"prompt": prompt} if prompt else {}
            server.send(msgpack.packb({**look(), **told, "step": step}, default=encode))
            answer = server.recv()
            if isinstance(answer, str):
                raise RuntimeError(answer)
            move(msgpack.unpackb(answer, object_hook=decode)["actions"][0])
            time.sleep(max(0.0, start + (step + 1) / hertz - time.perf_counter()))


if __name__ == "__main__":
    black = {"image": np.zeros((64, 64, 3), np.uint8), "proprio": np.zeros(4, np.float32)}
    drive("ws://127.0.0.1:8000/stream", lambda: black, print, steps=20)
