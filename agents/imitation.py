"""The imitation loop: learn to predict, then to act, from demonstrations; on one page."""

from agents.imitation_config import ImitationConfig
from agents.imitation_run import ImitationRun
from errors import UserError
from experiment.run_folder import RunFolder


def imitate(config: ImitationConfig, folder: RunFolder) -> None:
    """Learn both stages, from the folder's checkpoint where it has one.

    Raises:
        UserError: the data cannot be used, a loss is not finite, or the folder's checkpoint is
            another run's.
    """
    run = None
    try:
        run = ImitationRun(config, folder)
        run.resume()
        while run.updates < config.first_stage_steps:
            run.learn("dynamics", run.next_batches())
            run.report_if_due()
        run.begin_policy()
        while run.updates < config.first_stage_steps + config.policy_steps:
            run.learn("policy", run.next_batches())
            run.evaluate_if_due()
        run.conclude()
    except UserError:
        folder.abandon()
        raise
    finally:
        if run is not None:
            run.close()
