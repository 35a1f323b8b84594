"""Run folders of either online method, and of the time before there were methods."""

import pytest
import yaml

from agents.dreamer import Dreamer
from agents.masked_world_model import MaskedWorldModel
from agents.online_loading import load_agent, read_config
from errors import UserError
from experiment.run_folder import RunFolder
from tests.agents.received_runs import (
    dreamer,
    online,
    received_dreamer,
    received_imitation,
    received_online,
    with_weights,
)


def rewritten(folder, **changes):
    """The folder with other values in its configuration; None takes one out."""
    path = folder / "config.yaml"
    record = yaml.safe_load(path.read_text())
    config = {**record["config"], **changes}
    record["config"] = {name: value for name, value in config.items() if value is not None}
    path.write_text(yaml.safe_dump(record))
    return folder


def test_a_folder_is_loaded_as_its_method_says(tmp_path):
    for received, kind, config in (
        (received_online, MaskedWorldModel, online()),
        (received_dreamer, Dreamer, dreamer()),
    ):
        folder = with_weights(received(tmp_path / kind.__name__))
        agent, found, step = load_agent(folder, "cpu")
        assert type(agent) is kind
        assert (found, step) == (config, 7)


def test_runs_from_before_there_were_methods_are_masked_world_models(tmp_path):
    folder = rewritten(with_weights(received_online(tmp_path / "old")), method=None)
    assert isinstance(load_agent(folder, "cpu")[0], MaskedWorldModel)
    with pytest.raises(UserError, match="choose another --logdir"):
        RunFolder.create_or_resume(folder, dreamer())
    RunFolder.create_or_resume(folder, online()).close()  # goes on
    assert yaml.safe_load((folder / "config.yaml").read_text())["config"]["method"] == (
        "masked-world-model"
    )


def test_one_method_does_not_go_on_with_the_others_run(tmp_path):
    folder = received_dreamer(tmp_path / "run")
    with pytest.raises(UserError, match="started with method = dreamer, which now is masked"):
        RunFolder.create_or_resume(folder, online())


@pytest.mark.parametrize("method", ["dreamerv9", 3, ["dreamer"]])
def test_a_method_that_is_not_known_is_one_sentence(tmp_path, method):
    folder = rewritten(received_online(tmp_path / "run"), method=method)
    with pytest.raises(UserError, match="does not know, but masked-world-model and dreamer"):
        read_config(folder)


def test_a_run_of_imitate_is_refused(tmp_path):
    folder = received_imitation(tmp_path / "run")
    with pytest.raises(UserError, match="is a run of imitate; name one of train"):
        read_config(folder)
