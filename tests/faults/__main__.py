"""Put faults into every kind of input, kill processes, fill disks, and count what survives.

    python -m tests.faults --out results/faults

Every try is drawn from the seed. One that went wrong is made again, and its folder kept, by

    python -m tests.faults --only KIND:NUMBER --seed SEED
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass
from pathlib import Path

from analysis.output import page_of, write_report
from commands.command_line import script
from errors import UserError
from tests.faults import hardships, report, tries
from tests.faults.judge import GOOD, Verdict, judged
from tests.faults.kinds import KINDS
from tests.faults.works import KILLED, WORKS

MODULE = "tests.faults"


@dataclass(frozen=True)
class Faults:
    """Put faults into every kind of input, kill processes and fill disks."""

    tries: int = 2290
    """Inputs with a fault."""
    kills: int = 100
    """Processes to kill."""
    disks: int = 42
    """Disks to fill."""
    only: tuple[str, ...] = ()
    """Kinds of input (config, events, ...), each with all of --tries, or KIND:NUMBER for one try;
    nothing is killed then and no disk filled."""
    imitation: bool = True
    """Also put faults into a run of imitation, which takes longer."""
    seed: int = 0
    """Of everything that is drawn."""
    jobs: int = 2
    """Tries at once."""
    work: Path = Path("runs/faults")
    """Folder to work in; made anew. What went wrong stays there."""
    out: Path | None = None
    """Report, written to OUT.md and OUT.json; printed only when not given."""
    merge: bool = False
    """Keep the rows of OUT.json that are of other kinds than are tried now, each with the run that
    it is of."""


def main(options: Faults) -> None:
    """Make the tries and report them, as far as they are, every minute.

    Raises:
        UserError: a try went wrong.
    """
    if options.out is not None:
        page_of(options.out)
    if options.merge and not (options.out and options.out.with_suffix(".json").exists()):
        raise UserError("--merge adds to a report; name an --out whose OUT.json is there")
    chosen = _chosen(options)
    tries.remove(options.work)
    work = options.work.resolve()
    (work / "originals").mkdir(parents=True)
    tries.import_all()
    began = shown = time.monotonic()
    verdicts: list[Verdict] = []
    with tries.pool(options.jobs) as pool:
        tries.make_originals(pool, work / "originals", options.imitation)
        planned = [] if options.only else _hardships(pool, options, work)
        planned += [
            pool.submit(_judged, kind, options.seed, number, work) for kind, number in chosen
        ]
        for done in as_completed(planned):
            if done.exception() is not None:  # of this suite itself
                pool.shutdown(wait=False, cancel_futures=True)
            verdicts += done.result()
            for verdict in done.result():
                if verdict.verdict not in GOOD:
                    print(report.line(verdict), flush=True)
            if time.monotonic() - shown > 60 or len(verdicts) == len(planned):
                shown = time.monotonic()
                _write(options, verdicts, shown - began)
    _write(options, verdicts, time.monotonic() - began)
    wrong = sum(verdict.verdict not in GOOD for verdict in verdicts)
    print(f"{len(verdicts)} tries, {wrong} went wrong")
    if wrong:
        raise UserError(f"{wrong} of {len(verdicts)} tries went wrong; they are listed above")


def _judged(kind: Callable, seed: int, number: int, work: Path) -> list[Verdict]:
    return [judged(kind, seed, number, work / "originals", work)]


def _write(options: Faults, verdicts: list[Verdict], seconds: float) -> None:
    if options.out is None:
        return
    now, earlier = report.run(verdicts, options.seed, options.jobs, seconds), []
    if options.merge:
        tried = {verdict.name for verdict in verdicts}
        earlier = report.kept(options.out.with_suffix(".json"), now, tried)
    write_report(options.out, *report.report(now, earlier))


def _chosen(options: Faults) -> list[tuple[Callable, int]]:
    """(kind, number) of every input."""
    by_name = {kind.__name__: kind for kind in KINDS}
    chosen: list[tuple[Callable, int]] = []
    kinds: list[Callable] = []
    for text in options.only:
        name, _, number = text.partition(":")
        if name not in by_name or not (number.isdigit() or number == ""):
            raise UserError(f"--only {text}: name one of {', '.join(by_name)}, or KIND:NUMBER")
        if number:
            chosen.append((by_name[name], int(number)))
        else:
            kinds.append(by_name[name])
    return chosen + tries.planned(options.tries, kinds if options.only else list(KINDS))


def _hardships(pool: Executor, options: Faults, work: Path) -> list[Future[list[Verdict]]]:
    """Kills and full disks, of all commands in turn."""
    names = [name for name in WORKS if options.imitation or name != "imitate"]
    originals = work / "originals"
    submitted = []
    known = {}

    def undisturbed(name: str) -> hardships.Undisturbed:
        if name not in known:
            folder = work / f"undisturbed-{name}"
            known[name] = pool.submit(hardships.undisturbed, name, originals, folder).result()
        return known[name]

    killed = [name for name in names if name in KILLED]
    for number, first in enumerate(range(0, options.kills, hardships.KILLS)):
        name = killed[number % len(killed)]
        kills = min(hardships.KILLS, options.kills - first)
        folder = work / f"kill-{name}-{number}"
        arguments = (name, number, options.seed, kills, undisturbed(name), originals, folder)
        submitted.append(pool.submit(hardships.killed, *arguments))
    for number in range(options.disks):
        name = names[number % len(names)]
        folder = work / f"disk-{name}-{number}"
        disk = (name, number, options.seed, undisturbed(name), originals, folder)
        submitted.append(pool.submit(hardships.without_room, *disk))
    return submitted


if __name__ == "__main__":
    sys.exit(script(main, Faults, MODULE))
