"""The command line. ``percore serve`` serves on one machine; the other commands are one process each, as in a pod."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from percore import __version__, settings
from percore.errors import START_FAILED, SettingsError, StartError

SETTINGS_HELP = "Other settings are environment variables: see docs/settings.md."
PORT = click.IntRange(1, 65535)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    epilog="Without a command: serve. " + SETTINGS_HELP,
)
@click.version_option(__version__, message="%(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """One call, one core: serve slow TensorFlow models."""
    if context.invoked_subcommand is None:
        context.invoke(serve)


@cli.command(epilog=SETTINGS_HELP)
@click.argument("app", required=False, metavar="[MODULE[:APP]]")
@click.option(
    "--models",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Serve the models in this folder, NAME/VERSION/saved_model.pb or NAME/VERSION/model.keras, or in this models.config.  "
    "[PERCORE_MODEL_REPOSITORY]",
)
@click.option(
    "--handler", metavar="MODULE:CLASS", help="Serve this class of yours, from a module of this folder.  [PERCORE_HANDLER]"
)
@click.option("--host", metavar="ADDRESS", help="Listen on this address; 127.0.0.1 by default.  [PERCORE_HOST]")
@click.option("--port", type=PORT, metavar="PORT", help="Take calls on this port; 8080 by default.  [PERCORE_PORT]")
@click.option(
    "--status-port",
    type=PORT,
    metavar="PORT",
    help="Answer probes and metrics on this port; 9090 by default.  [PERCORE_STATUS_PORT]",
)
def serve(
    app: str | None, models: Path | None, handler: str | None, host: str | None, port: int | None, status_port: int | None
) -> None:
    """Serve on this machine: a gateway, and a worker for each core.

    MODULE:APP is a WSGI app of yours, as Gunicorn takes it: myapp:app, or 'myapp:create_app()'. MODULE alone means
    MODULE:application. Without it percore serves models.  [PERCORE_APP]

    An argument or an option overrides its environment variable, which is shown in brackets.
    """
    served = {"PERCORE_APP": app, "PERCORE_MODEL_REPOSITORY": models, "PERCORE_HANDLER": handler}
    chosen = [key for key, value in served.items() if value is not None]
    if len(chosen) > 1:
        raise click.UsageError("MODULE:APP, --models and --handler: give one of them")
    if chosen:
        for key in served:
            os.environ.pop(key, None)
    given = {
        **served,
        "PERCORE_HOST": host,
        "PERCORE_PORT": port,
        "PERCORE_STATUS_PORT": status_port,
    }
    # The processes of the service inherit the environment.
    os.environ.update({key: str(value) for key, value in given.items() if value is not None})
    # Imported here and in the commands below, so that each process imports only the modules that it uses.
    from percore.supervisor import run  # noqa: PLC0415

    sys.exit(run(settings.load()))


@cli.command(epilog=SETTINGS_HELP)
@click.argument("uri", metavar="URI")
@click.argument("folder", type=click.Path(path_type=Path), metavar="FOLDER")
@click.option("--digest", metavar="SHA256", help="Refuse models with another digest.  [PERCORE_MODEL_DIGEST]")
@click.option(
    "--name",
    default="",
    metavar="NAME",
    help="Name for a single model that has none; by default the end of the URI.",
)
def fetch(uri: str, folder: Path, digest: str | None, name: str) -> None:
    """Fetch models to FOLDER, as NAME/VERSION/...

    URI begins with s3://, gs://, az://, https:// or file://. It names a folder of models, the folder of one model, or one
    .tar.gz, .tar, .zip, .keras or .h5.
    """
    if digest is not None:
        os.environ["PERCORE_MODEL_DIGEST"] = digest
    from percore import logs  # noqa: PLC0415
    from percore.fetch.command import fetch as fetch_models  # noqa: PLC0415

    given = settings.load()
    try:
        settings.NAME.parse(name or "model")
    except ValueError:
        raise SettingsError(f"--name={name!r}: must be {settings.NAME.text}") from None
    logs.configure(given.server.log_level)
    status = 0
    try:
        fetch_models(given, uri, folder, name)
    except StartError as error:
        click.echo(f"percore: cannot fetch: {error}", err=True)
        status = START_FAILED
    # Skip Python's own shutdown: during it, a thread of obstore may call into Python, and this would abort the process.
    os._exit(status)


@cli.command(epilog=SETTINGS_HELP)
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Workers of one machine, each with a unix socket.")
def worker(workers: int | None) -> None:
    """Run the arbiter and its workers alone.

    Without --workers it is the one worker of a pod, which listens on PERCORE_PORT.
    """
    os.environ.pop("WEB_CONCURRENCY", None)  # Gunicorn would read the number of workers from it
    from percore.worker.arbiter import serve as serve_calls  # noqa: PLC0415

    serve_calls(settings.load(), workers)


@cli.command("status-server", epilog=SETTINGS_HELP)
def status_server() -> None:
    """Run the status server of a pod: probes, metrics, reads."""
    from percore.status.server import serve as serve_status  # noqa: PLC0415

    serve_status(settings.load())


@cli.command(epilog=SETTINGS_HELP)
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Send calls to workers of this machine, not to pods.")
@click.option("--fd", type=int, nargs=2, metavar="FD FD", help="With --workers: bound sockets, for calls and for status.")
def gateway(workers: int | None, fd: tuple[int, int] | None) -> None:
    """Run the gateway alone: one queue for all pods."""
    if (workers is None) != (fd is None):
        raise click.UsageError("--workers and --fd: give both or none")
    from percore.gateway import process  # noqa: PLC0415
    from percore.gateway.gateway_settings import load  # noqa: PLC0415

    machine = None if workers is None or fd is None else process.Machine(workers, *fd)
    sys.exit(process.serve(load(on_machine=machine is not None), machine))


def main(given: list[str] | None = None) -> None:
    """Run one command. If a setting breaks its rule, print one line to standard error."""
    try:
        cli.main(args=given, prog_name="percore")
    except StartError as error:
        click.echo(f"percore: cannot start: {error}", err=True)
        sys.exit(START_FAILED)
