"""The robot loop in real time, in short."""

import agents
from results.experiments.robot_loop import loop, served, untrained


def test_every_method_has_a_policy_and_one_is_asked(tmp_path):
    folders = untrained(tmp_path)
    assert set(folders) == {"masked-world-model", "mask-world-model", "mask2act"}
    for folder in folders.values():
        agents.load(folder).reset()
    with served(folders["mask2act"]) as url:
        row = loop(url, seconds=0.5, hertz=10)
    assert (row["method"], row["chunk"], row["steps"]) == ("mask2act", 1, 4)
    assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"]
