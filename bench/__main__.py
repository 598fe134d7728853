"""``python -m bench``: measures, and writes tables and timelines to ``build/bench``. Under ten minutes on two cores."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from bench import alone, bulk, bursts, empty, footprint, gateway, machine, pictures, report, results, servers, setups
from bench.calls import ideal, summarise
from bench.report import DOCS, OUTPUT
from bench.results import Results
from bench.setups import CALLS, Setup
from harness.service import ROOT

LOGS = OUTPUT / "logs"
BUDGET_SECONDS = 590.0
LATER_SECONDS = 125.0
"""How long the sections after the first one take."""
WORKER_SECONDS = 3.4
"""Seconds of a core that each worker needs to import TensorFlow and to load a model."""
SECTIONS = ("cpu", "io", "footprint", "empty", "gateway", "tensors")


class Bench:
    """One run. ``only`` names sections, or set-ups by a part of their name; empty means everything."""

    def __init__(self, *, quick: bool, only: Iterable[str], say: Callable[[str], None]) -> None:
        self.quick, self.only, self._say = quick, tuple(only), say
        self._began = time.monotonic()
        self.cores = len(machine.cores())
        self.found = Results(machine.described(), self.cores, sleep=0.3 if quick else 1.0)

    def say(self, text: str) -> None:
        """Print a line that begins with the time since the start."""
        self._say(f"{time.monotonic() - self._began:5.0f} s  {text}")

    def run(self) -> Results:
        """Measure every section that was asked for."""
        for section in SECTIONS:
            if self._wants(section):
                getattr(self, f"_{section}")()
        self._run_rest()
        return self.found

    def _wants(self, section: str) -> bool:
        chosen = set(self.only) & set(SECTIONS)
        return section in chosen or not self.only or (not chosen and section in ("cpu", "io"))

    def _chosen(self, candidates: list[Setup]) -> list[Setup]:
        parts = [part for part in self.only if part not in SECTIONS]
        named = [each for each in candidates if not parts or any(part in each.name for part in parts)]
        return setups.mark_skipped(named, machine.free_megabytes())

    def _common(self) -> list[Setup]:
        usual = setups.common(self.cores)
        if not self.quick or set(self.only) - set(SECTIONS):
            return usual
        return [each for each in usual if each.workers <= 2 * self.cores and each.name != usual[1].name]

    def _calibrate(self) -> alone.Alone:
        if self.found.alone is None:
            self.found.alone = alone.measure(machine.cores()[0], 0.5 if self.quick else 2.5, repeats=3)
            self.say(f"a burn call of {self.found.alone.steps} steps takes {self.found.alone.seconds:.2f} s alone on one core")
        return self.found.alone

    def _cpu(self) -> None:
        with servers.repository("burn") as folder:
            work = self._burning(folder)
            for setup in self._chosen([setups.percore(self.cores), *setups.with_both_thread_counts(self._common())]):
                self.found.cpu.append(self._burst(self._in_time(setup, work, LATER_SECONDS), work))

    def _in_time(self, setup: Setup, work: bursts.Work, later: float) -> Setup:
        """Skip a set-up if the run would become too long with it, unless it was asked for by name."""
        needed = setup.workers * WORKER_SECONDS / self.cores + 1.2 * work.best
        left = BUDGET_SECONDS - (time.monotonic() - self._began) - later
        return (
            setup if self.only or left > needed else replace(setup, skipped="no time left: the bench ends within ten minutes")
        )

    def _burning(self, folder: Path) -> bursts.Work:
        one = self._calibrate()
        best = ideal(CALLS, self.cores, one.seconds)
        return bursts.Work("burn", one.steps, one.seconds, best, {"model_repository": folder}, "burn")

    def _io(self) -> None:
        handler: dict[str, str | Path] = {"handler": "percore.handlers.echo:Sleep"}
        work = bursts.Work("sleep", self.found.sleep, self.found.sleep, self.found.sleep, handler, "default")
        for setup in self._chosen([setups.percore(self.cores), *self._common()]):
            self.found.io.append(self._burst(setup, work))

    def _burst(self, setup: Setup, work: bursts.Work) -> bursts.Burst:
        burst = bursts.measure(setup, work, LOGS)
        found = summarise(burst.calls, work.alone, work.best)
        says = f"run {report.times(found.run_mean)}, makespan {report.times(found.makespan)}, {found.failed} failed"
        threads = "" if work.application == "sleep" else f" (TensorFlow's threads: {report.threads_of(setup)})"
        self.say(f"{work.application}: {setup.name}{threads}: {burst.error or setup.skipped or says}")
        return burst

    def _footprint(self) -> None:
        one = self._calibrate()
        self.found.footprint = footprint.measure(one.steps / one.seconds, 1.0 if self.quick else 3.0)
        self.say("footprint: done")

    def _empty(self) -> None:
        self.found.empty = empty.measure(0.5 if self.quick else 2.5, LOGS)
        self.say(
            "an empty call: "
            + ", ".join(f"{row.name} {row.p50 * 1e3:.2f} ms, {row.rate:.0f}/s" for row in self.found.empty.rows)
        )

    def _gateway(self) -> None:
        self.found.gateway = gateway.measure(0.5 if self.quick else 5.0)
        self.say("the gateway: " + ", ".join(f"{way.name} {way.median * 1e3:.2f} ms" for way in self.found.gateway.ways))

    def _tensors(self) -> None:
        self.found.bulk = bulk.measure()
        self.say("tensors: " + ", ".join(f"{row.name} {row.megabytes_per_second:.0f} MB/s" for row in self.found.bulk))

    def _run_rest(self) -> None:
        """Measure how far the machine drifted. If there is time left, run the sections that are not in the budget."""
        if self.found.cpu and self.found.alone:
            one = self.found.alone
            self.found.alone_again = alone.measure(machine.cores()[0], one.seconds, repeats=1, steps=one.steps)
            if not self.quick and not self.only:
                with servers.repository("burn") as folder:
                    work = self._burning(folder)
                    self.found.cpu.append(self._burst(self._in_time(setups.with_short_timeout(), work, later=15.0), work))


def write(found: Results, folder: Path) -> list[Path]:
    """Write the tables and the timelines; return their paths."""
    texts = {"results.md": report.document(found), **pictures.all_of(found)}
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [folder / name for name in texts]


def main() -> int:
    """Run the bench; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure percore and the usual set-ups.")
    parser.add_argument("--quick", action="store_true", help="fewer set-ups and shorter calls: does it work at all?")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help=f"one of {', '.join(SECTIONS)}, or a set-up"
    )
    parser.add_argument("--render", action="store_true", help="measure nothing: show the last results again")
    parser.add_argument("--write-docs", action="store_true", help="copy table and timelines to docs/bench")
    arguments = parser.parse_args()
    bursts.set_environment()
    LOGS.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / "results.json"
    if not arguments.render:
        bench = Bench(quick=arguments.quick, only=arguments.only, say=lambda text: print(text, flush=True))
        bench.run().write(path)
    written = write(results.read(path), OUTPUT)
    if arguments.write_docs:
        DOCS.mkdir(parents=True, exist_ok=True)
        for each in written:
            shutil.copy(each, DOCS)
    print("\n" + "\n".join(str(each.relative_to(ROOT)) for each in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
