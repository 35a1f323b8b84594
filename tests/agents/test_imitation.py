"""Imitation in small: real demonstrations and simulator, a tiny model, the whole loop."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import envs
from agents import imitation_evaluation, imitation_loading, imitation_presets, imitation_run
from agents.agent import TaskDescription
from agents.imitation import imitate
from agents.imitation_config import ImitationConfig, View
from agents.imitation_evaluation import Evaluation, Row
from envs.windows import open_windows
from errors import UserError
from experiment.checkpoint import load_checkpoint, save_checkpoint
from experiment.run_folder import RunFolder
from tests.agents.online_runs import equal as same
from tests.agents.tiny_imitation import TASK, TINY, record

pytestmark = pytest.mark.simulator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return record(tmp_path_factory.mktemp("demonstrations") / "drawer.hdf5")


def configured(data, **fields):
    given = {
        "data": (str(data),), "task": TASK, "dynamics_steps": 3, "policy_steps": 3, "batch": 4,
        "workers": 0, "evaluate_episodes": 1, "evaluate_envs": 1, "agent": TINY,
    }  # fmt: skip
    return ImitationConfig(**(given | fields))


def trained(config, folder):
    with RunFolder.create_or_resume(folder, config) as opened:
        imitate(config, opened)
    return load_checkpoint(folder / "checkpoint.pt")


def act_in(agent, view, task=TASK, film=None):
    """One episode."""
    with imitation_evaluation.opened(view, task, 1) as vector:
        seeds = imitation_evaluation.final_seeds(task, 0, 1)
        return imitation_evaluation.evaluate(agent, vector, task, seeds, seed=0, film=film)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    trained(configured(data), folder)
    return folder


def test_a_run_leaves_what_a_user_looks_for(finished):
    """Losses of both stages, pictures of predictions, an evaluation, a curve, a checkpoint."""
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    keys = set().union(*lines)
    assert {"dynamics/flow", "policy/action_flow", "eval/success", f"eval/success/{TASK}"} <= keys
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert lines[-1]["step"] == 6
    for name in ("checkpoint.pt", "dynamics.pt", "curve.png", "pictures/prediction-0000003.png"):
        assert (finished / name).stat().st_size > 0
    agent, config, view, updates = imitation_loading.load_agent(finished)
    assert (updates, config.task, view.size) == (6, TASK, 32)


def test_a_loaded_agent_acts_like_the_one_saved(data, tmp_path):
    window = open_windows([data], TINY.windows().reads())[5]
    image = torch.from_numpy(window["image"][None])
    proprio = torch.from_numpy(window["proprio"])

    def chunk(agent):
        return agent.act(image, proprio, agent.caption(["x"]), torch.Generator().manual_seed(1))

    config = configured(data, dynamics_steps=2, policy_steps=2, micro_batch=2)
    with RunFolder.create_or_resume(tmp_path / "run", config) as opened:
        run = imitation_run.ImitationRun(config, opened)
        run.resume()
        for stage in ("dynamics", "dynamics", "policy", "policy"):
            if stage == "policy":
                run.begin("policy")
            batches = run.next_batches()
            assert [len(batch["action"]) for batch in batches] == [2, 2]  # of a batch of 4
            run.learn(stage, batches)
        run.checkpoint()
        expected = chunk(run.agent)
        run.close()
    found = chunk(imitation_loading.load_agent(tmp_path / "run")[0])
    assert torch.equal(found, expected)
    assert found.shape == (1, 4, 4)
    assert found.abs().max() <= 1
    with_old_names(tmp_path / "run")
    assert torch.equal(chunk(imitation_loading.load_agent(tmp_path / "run")[0]), expected)


def with_old_names(folder):
    """Write a run folder as it was when some fields and states had other names."""
    path = folder / "config.yaml"
    renamed = {"n_obs_steps": "history", "ema_decay": "averaging",
               "n_action_steps": "execute", "num_inference_steps": "euler_steps"}  # fmt: skip
    text = path.read_text()
    for new, old in renamed.items():
        assert f"{new}:" in text
        text = text.replace(f"{new}:", f"{old}:")
    path.write_text(text)
    state = load_checkpoint(folder / "checkpoint.pt")
    agent = state["agent"]
    agent["interface"], agent["averaged"] = agent.pop("data_spec"), agent.pop("ema")
    save_checkpoint(folder / "checkpoint.pt", state)


@pytest.mark.parametrize("train_backbone", [True, False])
def test_stage_two_leaves_the_frozen_parts_alone(data, tmp_path, train_backbone):
    config = configured(data, agent=replace(TINY, train_backbone=train_backbone))
    state = trained(config, tmp_path / "run")
    begun = load_checkpoint(tmp_path / "run" / "dynamics.pt")
    prefix = "world_model."
    ended = {
        name.removeprefix(prefix): value
        for name, value in state["agent"]["networks"].items()
        if name.startswith(prefix)
    }
    changed = {name for name, value in begun.items() if not torch.equal(value, ended[name])}
    assert not {name for name in changed if name.startswith(("vae.", "statistics."))}
    assert bool(changed) == train_backbone


def test_a_killed_run_goes_on_bit_for_bit(data, tmp_path):
    """kill -9 in either stage, the same command again: the same weights as never stopped."""
    config = configured(data, dynamics_steps=6, policy_steps=6, checkpoint_seconds=0.0)
    whole = trained(config, tmp_path / "whole")
    program = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from agents import imitation, imitation_config, imitation_run
from experiment.run_folder import RunFolder
learn, stops = imitation_run.ImitationRun.learn, {stop}
def stopped(self, stage, batches):
    if self.updates == stops:
        os.kill(os.getpid(), signal.SIGKILL)
    learn(self, stage, batches)
imitation_run.ImitationRun.learn = stopped
folder = Path({folder!r})
config = RunFolder.read_config(folder, imitation_config.ImitationConfig)
with RunFolder.create_or_resume(folder, config) as opened:
    imitation.imitate(config, opened)
"""
    folder = tmp_path / "killed"
    with RunFolder.create_or_resume(folder, config):
        pass
    for stop in (4, 9):
        text = program.format(root=str(ROOT), stop=stop, folder=str(folder))
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", text], capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    resumed = trained(config, folder)
    for part in ("agent", "optimizer", "random", "updates"):
        assert same(whole[part], resumed[part]), part


def test_more_policy_steps_continue_a_finished_run(data, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    state = trained(configured(data, policy_steps=4), folder)
    assert state["updates"] == 7
    with pytest.raises(UserError, match="dynamics_steps = 3, which now is 5"):
        RunFolder.create_or_resume(folder, configured(data, policy_steps=4, dynamics_steps=5))
    with pytest.raises(UserError, match="give --policy-steps 4 or more"):
        RunFolder.create_or_resume(folder, configured(data, policy_steps=2))


def test_a_run_that_ends_with_an_evaluation_keeps_what_was_evaluated(data, tmp_path):
    """However young the last checkpoint is, and the same command has nothing left to do."""
    config = configured(data, dynamics_steps=1, policy_steps=2, evaluate_every=2)
    state = trained(config, tmp_path / "run")
    assert (state["updates"], state["evaluated"]) == (3, 3)
    written = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    trained(config, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == written


def test_a_finished_stage_one_can_be_taken_over(data, finished, tmp_path):
    config = configured(data, dynamics_from=str(finished), policy_steps=2)
    trained(config, tmp_path / "run")
    taken = load_checkpoint(tmp_path / "run" / "dynamics.pt")
    assert same(taken, load_checkpoint(finished / "dynamics.pt"))
    other = replace(TINY, dynamics=replace(TINY.dynamics, target="pixels"))
    with pytest.raises(UserError, match=r"made with another --agent\.dynamics"):
        trained(replace(config, agent=other), tmp_path / "other")
    with pytest.raises(UserError, match=r"made with another --agent\.n-obs-steps"):
        trained(replace(config, agent=replace(TINY, n_obs_steps=3)), tmp_path / "other")
    copied = tmp_path / "copied"
    shutil.copytree(finished, copied)
    shutil.copy(copied / "checkpoint.pt", copied / "dynamics.pt")
    with pytest.raises(UserError, match="holds no stage 1 of these sizes"):
        trained(replace(config, dynamics_from=str(copied)), tmp_path / "other")


def test_what_changes_no_result_may_change_between_starts(data, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with RunFolder.create_or_resume(folder, configured(data, workers=1, checkpoint_seconds=5.0)):
        assert RunFolder.read_config(folder, ImitationConfig).workers == 1


def test_data_that_changed_its_ranges_is_refused(data, finished, tmp_path):
    """The same number of windows, other actions: what the agent learned means something else."""
    folder, other = tmp_path / "run", tmp_path / "drawer.hdf5"
    shutil.copytree(finished, folder)
    shutil.copy(data, other)
    with h5py.File(other, "r+") as file:
        for demo in file["data"].values():
            demo["actions"][:] *= 0.5
    config = RunFolder.read_config(folder, ImitationConfig)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace(str(data), str(other)))
    with pytest.raises(UserError, match="other ranges than when the run"):
        trained(replace(config, data=(str(other),), policy_steps=4), folder)


def test_damaged_data_is_one_sentence_from_a_reading_process_too(data, tmp_path):
    damaged = tmp_path / "drawer.hdf5"
    shutil.copy(data, damaged)
    with h5py.File(damaged) as file:
        chunks = file["data/demo_0/obs/corner2_mask"].id
        places = [chunks.get_chunk_info(n) for n in range(chunks.get_num_chunks())]
    with open(damaged, "r+b") as file:
        for place in places:
            file.seek(place.byte_offset)
            file.write(bytes(place.size))
    with pytest.raises(UserError) as caught:
        trained(configured(damaged, workers=1), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert str(damaged) in str(caught.value)


def test_the_run_time_path_sees_no_mask(data, finished, tmp_path, monkeypatch):
    """No mask is drawn, and pictures, proprioception and words alone give actions."""
    opened, make_vector = [], envs.make_vector

    def recorded(*arguments, **options):
        opened.append((options, make_vector(*arguments, **options)))
        return opened[-1][1]

    monkeypatch.setattr(envs, "make_vector", recorded)
    agent, _, view, _ = imitation_loading.load_agent(finished)
    assert act_in(agent, view, film=[])[0]["length"] > 0
    trained(configured(data, dynamics_steps=1, policy_steps=1), tmp_path / "run")
    assert len(opened) == 2
    for options, vector in opened:
        assert options["masks"] is False
        assert set(vector.single_observation_space.spaces) == {"image", "proprio"}


def test_a_film_shows_what_stage_one_predicts(finished):
    """Stage 2 trains the transformer on, and nothing keeps its predictions good."""
    with Evaluation(finished, None, episodes=1, seed=0) as evaluation:
        assert evaluation.agent.predictor is None
        frames = evaluation.film(1)
    assert {frame.shape for frame in frames} == {(64, 32, 3)}
    stage_one = load_checkpoint(finished / "dynamics.pt")
    assert same(stage_one, dict(evaluation.agent.predictor.state_dict()))
    ended = evaluation.agent.ema.world_model.state_dict()
    assert not all(torch.equal(ended[name], value) for name, value in stage_one.items())
    agent, asked = evaluation.agent, []
    for part, model in (("stage 1", agent.predictor), ("stage 2", agent.ema.world_model)):
        model.transformer.register_forward_hook(lambda *_, part=part: asked.append(part))
    agent.predict(torch.zeros(1, 1, 2, 32, 32, 3, dtype=torch.uint8), agent.caption(["x"]))
    assert set(asked) == {"stage 1"}


def test_an_evaluation_is_written_row_by_row_and_added_to(finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    calls, opened, evaluate, make_vector = [], [], imitation_evaluation.evaluate, envs.make_vector

    def counted(agent, *rest):
        calls.append(agent is None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(agent, *rest)

    def recorded(*arguments, **options):
        opened.append(options["shift"])
        return make_vector(*arguments, **options)

    monkeypatch.setattr(imitation_evaluation, "evaluate", counted)
    monkeypatch.setattr(envs, "make_vector", recorded)
    rows = [Row("agent"), Row("random", random=True), Row("noise:0.2", shift="noise:0.2")]
    with pytest.raises(KeyboardInterrupt), Evaluation(folder, None, 1, seed=0) as evaluation:
        evaluation.measure(rows)
    assert opened == ["", "noise:0.2"]  # the random policy acted where the agent had
    kept = json.loads((folder / "evaluation.json").read_text())
    assert "agent" in kept
    assert "random" in kept
    assert "noise:0.2" not in kept
    with Evaluation(folder, None, 1, seed=0) as evaluation:
        found = evaluation.measure([rows[0], rows[2]])
    assert calls[3:] == [False]
    assert found["random"] == kept["random"]  # measured before, still there
    assert found["shifts"] == ["noise:0.2"]
    with Evaluation(folder, None, 1, seed=1) as evaluation:  # other starts: nothing is kept
        evaluation.measure(rows[:1])
    assert len(calls) == 5
    assert "random" not in json.loads((folder / "evaluation.json").read_text())


def test_frames_of_history_are_the_strided_past_and_begin_with_the_first(finished):
    agent, *_ = imitation_loading.load_agent(finished)
    seen, act = [], agent.act

    def listening(image, *rest):
        seen.append(image[:, 0, :, 0, 0, 0].numpy())
        return act(image, *rest)

    agent.act = listening
    actor = agent.actor(TaskDescription("metaworld/drawer-close", "x"))
    for step in range(7):
        image = np.full((2, 32, 32, 3), 10 * step, np.uint8)
        image[1] += 1
        first = np.array([step == 0, step in (0, 2)])
        actor.policy(
            {"image": image, "proprio": np.zeros((2, 4), np.float32), "is_first": first},
            None,
            explore=False,
        )
    # n_action_steps is 3, stride 2, n_obs_steps 2; the second environment starts again at step 2
    assert [rows.tolist() for rows in seen] == [
        [[0, 0], [1, 1]],
        [[21, 21]],
        [[10, 30]],
        [[31, 51]],
        [[40, 60]],
    ]


def test_mistakes_are_one_sentence(data, finished, tmp_path):
    stripped = tmp_path / "stripped.hdf5"
    stripped.write_bytes(data.read_bytes())
    with h5py.File(stripped, "r+") as file:
        for demo in file["data"].values():
            del demo["obs/corner2_mask"]
    with pytest.raises(UserError, match="run.py annotate --data"):
        trained(configured(stripped), tmp_path / "a")
    assert not (tmp_path / "a" / "config.yaml").exists()
    trained(configured(stripped, agent=replace(TINY, world_model="none"), dynamics_steps=0,
                       policy_steps=1), tmp_path / "b")  # fmt: skip

    agent, _, view, _ = imitation_loading.load_agent(finished)
    with pytest.raises(UserError, match="the task has 2 cameras, the data"):
        act_in(agent, replace(view, camera="corner2,corner"))
    with pytest.raises(UserError, match="the task has 16 pixels a side, the data"):
        act_in(agent, replace(view, size=16))
    with pytest.raises(UserError, match="the task has 15 numbers of proprioception, the data"):
        act_in(agent, View("0", 32, "fast", 2), "dmc/hopper-hop")
    with pytest.raises(UserError, match="--episodes is 51; LIBERO has 50 recorded starts"):
        imitation_evaluation.final_seeds("libero/object/0", 0, 51)
    with pytest.raises(UserError, match="unknown camera 'corner2'"):
        trained(configured(data, task="dmc/walker-walk"), tmp_path / "d")
    assert not (tmp_path / "d" / "config.yaml").exists()
    with pytest.raises(UserError, match="threads must be at least 0, not -1"):
        configured(data, threads=-1)
    with pytest.raises(UserError, match=r"ema_decay must be at least 0 and below 1, not 2\.0"):
        replace(TINY, ema_decay=2.0)
    with pytest.raises(UserError, match="unknown task"):
        imitate(configured(data, task="metaworld/nothing"), RunFolder(tmp_path / "c"))
    with pytest.raises(UserError, match="batch .* must be a multiple of micro_batch"):
        configured(data, micro_batch=3)
    with pytest.raises(UserError, match="unknown preset"):
        imitation_presets.preset("tiny")

    early = tmp_path / "early"
    config = configured(data, dynamics_steps=2)
    run_folder = RunFolder.create_or_resume(early, config)
    run = imitation_run.ImitationRun(config, run_folder)
    run.resume()
    run.checkpoint()
    run.close()
    run_folder.close()
    with pytest.raises(UserError, match="has no policy yet"):
        imitation_loading.load_agent(early)


def test_interrupting_says_how_to_go_on(data, tmp_path):
    command = [
        sys.executable, "run.py", "imitate", "--data", str(data), "--task", TASK,
        "--dynamics-steps", "100000", "--logdir", str(tmp_path / "run"), "--workers", "0",
        "--batch", "2",
    ]  # fmt: skip
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # A test run started in the background ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        process.stdout.readline()
        process.stdout.readline()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "start the same command again to go on" in errors
