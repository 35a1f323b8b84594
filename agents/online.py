"""The online loop: act, remember, learn; and the offline one, which only learns; on one page."""

from collections.abc import Collection

from agents.offline_run import OfflineRun
from agents.online_config import RunConfig
from agents.online_run import OnlineRun
from experiment.run_folder import RunFolder


def train(config: RunConfig, folder: RunFolder, trusted: Collection[str] = ()) -> None:
    """Train until `config.steps`, from the folder's checkpoint where it has one.

    Args:
        config: of the run.
        folder: taken for training.
        trusted: classes that run folders among `config.recorded` may name beside those of `config`.

    Raises:
        UserError: a loss is not finite, or the folder's checkpoint or replay cannot be used.
    """
    with OnlineRun(config, folder, trusted) as run:
        run.resume()
        while run.steps < config.steps:
            if run.pretraining_due:  # the prefill is over
                run.pretrain()
            run.stop_if_requested()
            run.collector.begin(run.act())  # the environments move while the agent learns
            run.learn()
            ended = run.collector.finish()
            run.store(ended)
            if ended and run.steps < config.steps:
                if run.evaluation_due:
                    run.evaluate()
                if run.checkpoint_due:
                    run.checkpoint()
                run.restart()
        run.store(run.collector.cut())
        owed = run.catch_up()
        if owed or run.evaluated < run.steps:
            run.evaluate()
            run.checkpoint()


def train_offline(config: RunConfig, folder: RunFolder, trusted: Collection[str] = ()) -> None:
    """Train on `config.recorded` alone for `config.steps` updates; otherwise as `train`."""
    with OfflineRun(config, folder, trusted) as run:
        run.resume()
        run.pretrain()
        while run.steps < config.steps:
            run.stop_if_requested()
            run.learn()
            if run.steps < config.steps:
                if run.evaluation_due:
                    run.evaluate()
                if run.checkpoint_due:
                    run.checkpoint()
        if run.evaluated < run.steps:
            run.evaluate()
            run.checkpoint()
