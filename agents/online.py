"""The online loop: act, remember, learn; on one page."""

from agents.online_config import OnlineConfig
from agents.online_run import OnlineRun
from errors import UserError
from experiment.run_folder import RunFolder


def train(config: OnlineConfig, folder: RunFolder) -> None:
    """Train until `config.steps`, from the folder's checkpoint where it has one.

    Raises:
        UserError: a loss is not finite, or the folder's checkpoint or replay cannot be used.
    """
    run = None
    try:
        run = OnlineRun(config, folder)
        run.resume()
        while run.steps < config.steps:
            run.collector.begin(run.act())
            run.learn()
            run.remember(run.collector.finish())
        run.conclude()
    except UserError:
        folder.abandon()
        raise
    finally:
        if run is not None:
            run.close()
