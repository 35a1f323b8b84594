"""The online loop: act, remember, learn; on one page."""

from agents.online_config import OnlineConfig
from agents.online_run import OnlineRun
from experiment.run_folder import RunFolder


def train(config: OnlineConfig, folder: RunFolder) -> None:
    """Train until `config.steps`, from the folder's checkpoint where it has one.

    Raises:
        UserError: a loss is not finite, or the folder's checkpoint or replay cannot be used.
    """
    with OnlineRun(config, folder) as run:
        run.resume()
        while run.steps < config.steps:
            if run.pretraining_due:  # the prefill is over
                run.pretrain()
            run.collector.begin(run.act())  # the environments move while the agent learns
            run.learn()
            ended = run.collector.finish()
            run.store(ended)
            if ended and run.steps < config.steps:
                if run.evaluation_due:
                    run.evaluate()
                if run.checkpoint_due:
                    run.checkpoint()
                run.collector.restart()
        run.store(run.collector.cut())
        owed = run.catch_up()
        if owed or run.evaluated < run.steps:
            run.evaluate()
            run.checkpoint()
