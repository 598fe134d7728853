"""The command line: ``python -m percore`` serves on one machine; the other commands are one process each, as in a pod."""

from __future__ import annotations

import argparse
import sys

from percore import __version__, settings
from percore.errors import START_FAILED, StartError


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="percore", description="One call, one core: serve slow TensorFlow models.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="serve on this machine: a gateway, and a worker for each core (the default)")
    worker = commands.add_parser("worker", help="the arbiter and its workers alone; without --workers a pod's one worker")
    worker.add_argument("--workers", type=int, metavar="N", help="workers of one machine, each with a unix socket of its own")
    commands.add_parser("exporter", help="the status server of a pod")
    gateway = commands.add_parser("gateway", help="one queue in front of all pods, or of one machine's workers")
    gateway.add_argument("--workers", type=int, metavar="N", help="workers of one machine, instead of pods")
    gateway.add_argument("--fd", type=int, nargs=2, metavar="FD", help="with --workers: bound sockets for calls and for status")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """Run one command and return its exit status; a setting that breaks its rule is one line on standard error."""
    arguments = _arguments(given)
    try:
        if arguments.command == "gateway":
            return _gateway(arguments)
        read = settings.load()
        # Imported only where needed: each process loads what it uses and nothing else.
        if arguments.command == "worker":
            from percore.worker.server import serve  # noqa: PLC0415

            serve(read, arguments.workers)
        elif arguments.command == "exporter":
            from percore.exporter.server import serve as export  # noqa: PLC0415

            export(read)
        else:
            from percore.supervisor import run  # noqa: PLC0415

            return run(read)
    except StartError as error:
        sys.stderr.write(f"percore: cannot start: {error}\n")
        return START_FAILED
    return 0


def _gateway(arguments: argparse.Namespace) -> int:
    from percore.gateway import process  # noqa: PLC0415 - as above
    from percore.gateway.settings import load  # noqa: PLC0415

    if arguments.workers is None:
        return process.serve(load())
    return process.serve(load(on_machine=True), process.Machine(arguments.workers, *arguments.fd))


if __name__ == "__main__":
    sys.exit(main())
