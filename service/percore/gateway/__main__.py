"""The command line: ``python -m percore.gateway`` with one command for each container, and for its ``preStop``."""

from __future__ import annotations

import argparse
import logging
import os
import resource
import sys

from percore import logs
from percore.errors import START_FAILED, StartError
from percore.gateway import render, settings

log = logging.getLogger("percore.gateway")


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="percore-gateway", description="One queue for all pods.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("haproxy", help="write HAProxy's configuration and become HAProxy")
    controller = commands.add_parser("controller", help="keep HAProxy's servers equal to the pods; metrics, access log")
    controller.add_argument("--once", action="store_true", help="compare once, print the commands, and end")
    controller.add_argument("--dry-run", action="store_true", help="change nothing; log what would change")
    commands.add_parser("drain", help="wait until no call is left; for preStop")
    commands.add_parser("config", help="print HAProxy's configuration")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """Run one command and return its exit status; a setting that breaks its rule is one line on standard error."""
    arguments = _arguments(given)
    try:
        read = settings.load()
        match arguments.command:
            case "haproxy":
                _become_haproxy(read)
            case "config":
                sys.stdout.write(render.configuration(read, render.new_name(read)))
            case "drain":
                _drain(read)
            case _:
                from percore.gateway.server import serve  # noqa: PLC0415 - HAProxy's process needs none of it

                return serve(read, once=arguments.once, dry_run=arguments.dry_run)
    except StartError as error:
        sys.stderr.write(f"percore: cannot start: {error}\n")
        return START_FAILED
    return 0


def _become_haproxy(read: settings.Settings) -> None:
    """Write the configuration, with a name for this life, and let HAProxy take over this process."""
    logs.configure(read.server.log_level)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < render.descriptors(read):
        log.warning("this process may open %d files, and PERCORE_QUEUE_MAX takes %d", most, render.descriptors(read))
    path, program = render.write(read, render.new_name(read)), read.gateway.haproxy
    try:
        os.execlp(program, program, "-db", "-f", str(path))  # noqa: S606 - the operator's own program
    except OSError as error:
        raise StartError(f"PERCORE_GATEWAY_HAPROXY={program!r}: cannot run it: {error.strerror}") from error


def _drain(read: settings.Settings) -> None:
    from percore.gateway.drain import drain  # noqa: PLC0415
    from percore.gateway.runtime import HAProxy  # noqa: PLC0415

    drain(HAProxy(read.server.run_dir / "admin.sock"))


if __name__ == "__main__":
    sys.exit(main())
