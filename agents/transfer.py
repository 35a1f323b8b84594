"""An autoencoder that another run has trained, taken over by a new one (paper, figure 15)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from typing import Any

from agents.masked_world_model import MaskedWorldModel
from agents.online_config import OnlineConfig
from errors import UserError
from experiment.checkpoint import fitting
from experiment.config_record import names_loaded
from experiment.run_folder import RunFolder

LEARNING_ALONE = frozenset(
    {"mask", "mask_ratio", "features", "reward_weight", "beta", "target_weight"}
)
"""Fields of an autoencoder that say how it learns, or what is taken of it, not what it is."""
PREFIX = "autoencoder."
"""Of its weights among an agent's modules."""


def take_over(agent: Any, config: OnlineConfig, trusted: Collection[str] = ()) -> None:
    """Copy the autoencoder that a new run is to begin with into its agent, if it names one.

    Args:
        agent: fresh, of `config`.
        config: of the new run; `agent.autoencoder_from` names the other.
        trusted: classes that the other run's configuration may name, beside those of `config`.

    Raises:
        UserError: there is no such run, it has no checkpoint, or its autoencoder is another.
    """
    source = getattr(config.agent, "autoencoder_from", None)
    if source is None:
        return
    assert isinstance(agent, MaskedWorldModel)  # no other has such an option
    folder = RunFolder.open(source)
    if folder.of_imitation:
        raise UserError(f"{source} is a run of imitate; --autoencoder-from takes runs of train")
    other = folder.config.load(OnlineConfig, {*trusted, *names_loaded(config)})
    theirs, theirs_views = other.agent, other.environment.views
    if not hasattr(theirs, "autoencoder"):
        raise UserError(f"{source} has no autoencoder; --autoencoder-from takes a run that has one")
    for field in fields(theirs.autoencoder):
        there = getattr(theirs.autoencoder, field.name)
        here = getattr(config.agent.autoencoder, field.name)
        if field.name not in LEARNING_ALONE and there != here:
            option = field.name.replace("_", "-")
            raise UserError(
                f"the autoencoder of {source} has {field.name} {there}, this run {here}; give the "
                f"same --agent.autoencoder.{option}"
            )
    state = folder.load_checkpoint("cpu")
    if state is None:
        raise UserError(f"{source} has no checkpoint yet; train it longer")
    if theirs_views != config.environment.views:
        raise UserError(
            f"the autoencoder of {source} sees {theirs_views} cameras, this run"
            f" {config.environment.views}; name as many with --environment.camera"
        )
    with fitting(folder.checkpoint_path):
        modules = state["agent"]["modules"]
        weights = {
            name.removeprefix(PREFIX): value
            for name, value in modules.items()
            if name.startswith(PREFIX)
        }
        agent.load_autoencoder(weights)
