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
    commands.add_parser("run", help="serve on this machine: a worker on each core, and the exporter (the default)")
    worker = commands.add_parser("worker", help="the arbiter and its workers alone; a pod's one worker without --fd")
    worker.add_argument("--fd", type=int, help="a listening socket that the workers share")
    commands.add_parser("exporter", help="the exporter alone")
    commands.add_parser("gateway", help="one queue in front of all pods")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """Run one command and return its exit status; a setting that breaks its rule is one line on standard error."""
    arguments = _arguments(given)
    try:
        if arguments.command == "gateway":
            return _gateway()
        read = settings.load()
        # Imported only where needed: each process loads what it uses and nothing else.
        if arguments.command == "worker":
            from percore.worker.server import serve  # noqa: PLC0415

            serve(read, arguments.fd)
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


def _gateway() -> int:
    from percore.gateway import process  # noqa: PLC0415 - as above
    from percore.gateway.settings import load  # noqa: PLC0415

    return process.serve(load())


if __name__ == "__main__":
    sys.exit(main())
