"""The imitation loop: learn in stages from demonstrations, evaluate in the simulator; on one
page."""

from collections.abc import Collection

from agents.imitation_config import RunConfig
from agents.imitation_run import ImitationRun
from experiment.run_folder import RunFolder


def imitate(config: RunConfig, folder: RunFolder, trusted: Collection[str] = ()) -> None:
    """Learn every stage, from the folder's checkpoint where it has one.

    Args:
        config: of the run.
        folder: taken for training.
        trusted: what the configuration of `config.dynamics_from` may load from outside the toolkit
            beside what `config` does.

    Raises:
        UserError: the data cannot be used, a loss is not finite, a process that reads or simulates
            has died, or the folder's checkpoint is another run's.
        Stopped: the process was told to; a checkpoint has been written.
    """
    with ImitationRun(config, folder, trusted) as run:
        run.resume()
        for stage in run.stages_left():
            run.begin(stage)
            while run.updates < run.end_of(stage):
                if run.evaluation_due:
                    run.evaluate()
                run.learn(stage, run.next_batches())
                if run.report_due:
                    run.report()
                if run.checkpoint_due:
                    run.checkpoint()
                run.stop_if_requested()
        if run.evaluated < run.updates:
            run.evaluate()
