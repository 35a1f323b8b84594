"""Train and evaluate world-model agents.

usage: python run.py COMMAND [OPTIONS]

  train      learn a task online: --task metaworld/window-close
  imitate    learn tasks from demonstrations: --data demos/ --task libero/object
  sweep      many runs of train or imitate: --tasks metaworld/easy --seeds 0-4 --out runs/easy
  evaluate   measure a trained agent: --logdir runs/...
  export     keep what acts of a run as a small folder: --logdir runs/... --out FOLDER
  serve      let a robot ask a policy over a websocket: --logdir runs/... --port 8000
  compare    put learning curves beside each other and published ones
  record     keep learning curves of run folders as small files
  collect    record demonstrations with masks: --task metaworld/mt10 --episodes 50 --out demos/
  annotate   add masks to demonstrations, LIBERO's own for example: --data DIR
  convert    LeRobot datasets to demonstration files, and back: DATASET --out demos/
  inspect    say and draw what is in a demonstration file
  tasks      list the ids that --task takes
  presets    how the presets differ, as Markdown tables

python run.py COMMAND --help explains the options of a command, of train and imitate those used
most; their --help-all explains every one. Training can be stopped at any moment; the same command
goes on from the last checkpoint.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

from commands.ending import end, guarded
from errors import UserError

# A command's module is imported when the command is called, and imports what learns or simulates
# inside its functions: --help should not take as long as PyTorch does, and Ctrl-C while it is
# imported should not be a traceback.
COMMANDS = {
    "train": "commands.train",
    "imitate": "commands.imitate",
    "sweep": "commands.sweep",
    "evaluate": "commands.evaluate",
    "export": "commands.export",
    "serve": "commands.serve",
    "compare": "commands.compare",
    "record": "commands.record",
    "presets": "commands.presets",
    "collect": "commands.collect",
    "annotate": "commands.annotate",
    "convert": "commands.convert",
    "inspect": "commands.inspect",
    "tasks": "commands.tasks",
}

RESUMABLE = ("train", "imitate", "sweep", "collect", "annotate", "convert", "evaluate")
"""Commands that keep what they have done when they are stopped."""


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the exit status."""
    name = arguments[0] if arguments else "--help"

    def command() -> None:
        if name in ("-h", "--help"):
            print(__doc__.strip())
        elif name in COMMANDS:
            getattr(importlib.import_module(COMMANDS[name]), name)(arguments[1:])
        else:
            nearest = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "see python run.py --help"
            raise UserError(f"unknown command {name!r}; {hint}")

    again = "; start the same command again to go on" if name in RESUMABLE else ""
    return guarded(command, again)


if __name__ == "__main__":
    end(main(sys.argv[1:]))
