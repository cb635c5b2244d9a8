"""`ltx2 serve`: the HTTP server."""

import argparse
import importlib.util
import logging
import signal
import socket
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import as_device
from ..cli.generate import with_defaults
from ..cli.loading import check_checkpoint
from ..cli.modes import MODES
from ..cli.options import OPTIONS
from ..cli.values import flag
from .fleet.settings import Fleet, add_options, check_ray, fleet_of
from .group.settings import Group, group_of
from .group.settings import add_options as add_group_options
from .settings import Limits, Settings

if TYPE_CHECKING:
    from .running import Runner

_ENGINE = (
    *("checkpoint", "text_encoder", "upsampler", "diffusion_decoder", "distilled_lora"),
    *("device", "dtype", "offload", "tiling", "compile", "prompt_cache", "step_cache"),
)
_PACKAGES = ("fastapi", "uvicorn", "sqlalchemy", "prometheus_client", "python_multipart", "pydantic")
_INSTALL = "pip install 'ltx2-diffusers[serve]'"
# Connections beyond those that wait for clips: for jobs, events and figures.
_CONNECTIONS = 256

_EPILOG = """\
examples:
  ltx2 serve --port 8000
  ltx2 serve --ray local --replicas 4 --gpus-per-replica 1
  ltx2 serve --checkpoint Lightricks/LTX-2 --host 0.0.0.0 --api-keys keys.txt --lora style=style.safetensors
  curl -X POST http://localhost:8000/generate -H "Content-Type: application/json" \\
    -d '{"prompt": "a red circle moves to the right", "width": 128, "height": 128, "num_frames": 25}'

http://localhost:8000/ is a page for browsers, http://localhost:8000/docs describes the API. Without --api-keys anybody who reaches the port may use the server.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "serve",
        help="answer requests over HTTP",
        usage="ltx2 serve [options]",
        description="Load a checkpoint once and make clips for whoever asks over HTTP.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    address = parser.add_argument_group("address and access")
    address.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; default 127.0.0.1, this machine alone"
    )
    address.add_argument("--port", type=int, default=8000, help="port to listen at, 0 for any free one; default 8000")
    address.add_argument(
        "--api-keys",
        metavar="FILE",
        type=Path,
        help="file with a key on each line, one of which every request has to bring",
    )
    address.add_argument(
        "--allow-origin",
        metavar="SITE",
        action="append",
        default=[],
        help="web site whose pages may call the server; repeatable",
    )
    engine = parser.add_argument_group("checkpoint and LoRA")
    for name in _ENGINE:
        OPTIONS[name].add_to(engine)
    engine.add_argument(
        "--lora",
        metavar="NAME=FILE",
        action="append",
        default=[],
        help="a LoRA that requests may ask for by this name; repeatable",
    )
    engine.add_argument("--model-name", metavar="NAME", help="what the API calls the checkpoint; default its name")
    jobs = parser.add_argument_group("jobs")
    jobs.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        default=Path("ltx2-serve"),
        help="folder of jobs and results; default ltx2-serve",
    )
    jobs.add_argument(
        "--database",
        metavar="URL",
        help="database of jobs, as postgresql://USER:PASSWORD@HOST/NAME; default a SQLite file in --data",
    )
    limits = parser.add_argument_group("limits")
    for limit in fields(Limits):
        kind, metavar = (int, "N") if limit.type is int else (float, "NUMBER")
        limits.add_argument(flag(limit.name), type=kind, metavar=metavar, help=limit.metadata["help"])
    add_group_options(parser)
    add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Load the checkpoint and answer requests until the process is asked to end."""
    _check_installed()
    given = vars(options)
    settings = settings_of(given)
    fleet = fleet_of(given, settings.engine["device"])
    group = group_of(given, settings.engine, fleet)
    if fleet is not None:
        check_ray()
    _check_database(settings)
    check_checkpoint(settings.engine["checkpoint"])
    # Whether it works is tried by the worker; here that would take memory of the device for nothing.
    as_device(settings.engine["device"])
    try:
        listener = socket.create_server((options.host, options.port), family=_family(options.host), reuse_port=False)
    except OSError as error:
        raise ValueError(
            f"--host {options.host} --port {options.port} cannot be listened at: {error.strerror}"
        ) from error
    with listener:
        # A port is one server's alone, so that its name is, too.
        _serve(replace(settings, name=f"{socket.gethostname()}:{listener.getsockname()[1]}"), fleet, group, listener)
    return 0


def settings_of(given: dict[str, Any]) -> Settings:
    """The server that options ask for.

    Raises:
        ValueError: If one of them is wrong.
    """
    from .access import read_keys

    loaded = {name: given[name] for name in _ENGINE if given.get(name) is not None}
    if given["gpus_per_replica"]:
        # The machine of the server need not have one itself.
        loaded.setdefault("device", "cuda")
    engine = {name: value for name, value in with_defaults(loaded, MODES[-1]).items() if name in _ENGINE}
    if loras := given["lora"]:
        engine["adapters"] = dict(map(_named_lora, loras))
    limits = {one.name: given[one.name] for one in fields(Limits) if given[one.name] is not None}
    keys: tuple[str, ...] = ()
    if given["api_keys"] is not None:
        keys = read_keys(given["api_keys"].read_text(encoding="utf-8").splitlines())
    checkpoint = engine["checkpoint"]
    return Settings(
        data=given["data"],
        database=given["database"],
        model=given["model_name"] or (Path(checkpoint).stem if Path(checkpoint).exists() else checkpoint),
        engine=engine,
        api_keys=keys,
        origins=tuple(given["allow_origin"]),
        limits=Limits(**limits),
    )


def _serve(settings: Settings, fleet: Fleet | None, group: Group, listener: socket.socket) -> None:
    import uvicorn

    from .app import create_app

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    print(f"ltx2 serve: loading {settings.engine['checkpoint']}", flush=True)
    limits = settings.limits
    app = create_app(settings, _runner(settings, fleet, group))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="info",
            server_header=False,
            limit_concurrency=limits.max_queue + _CONNECTIONS,
            timeout_graceful_shutdown=int(limits.grace),
        )
    )
    app.state.server.is_ending = lambda: server.should_exit
    host, port = listener.getsockname()[:2]
    print(
        f"ltx2 serve: http://{host}:{port}/ is the page for browsers, http://{host}:{port}/docs describes the API",
        flush=True,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn ends in order and then raises the signal again, which would make an error of it.
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])


def _runner(settings: Settings, fleet: Fleet | None, group: Group) -> "Runner":
    """What makes the clips."""
    if fleet is not None:
        from .fleet.runner import FleetRunner

        return FleetRunner(settings, fleet, group)
    from .running import WorkerDied
    from .worker import WorkerProcess

    try:
        return WorkerProcess(settings.engine, settings.inputs, settings.results, settings.limits.time_limit, group)
    except WorkerDied as error:
        raise ValueError(f"{error}; what it said stands above, and if that is nothing, it lacked memory") from error


def _check_installed() -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"the server needs {', '.join(missing)}; install what it needs with: {_INSTALL}")


def _check_database(settings: Settings) -> None:
    """Whether the database that several servers share can be reached, before a checkpoint is loaded for nothing."""
    if settings.database is not None:
        from .store import open_database

        try:
            open_database(settings.database).dispose()
        except ValueError as error:
            raise ValueError(f"--database: {error}") from error


def _named_lora(text: str) -> tuple[str, list[Any]]:
    name, separator, file = text.partition("=")
    if not separator or not name.isidentifier():
        raise ValueError(f"--lora has to be NAME=FILE, as style=style.safetensors, but is {text!r}")
    if not Path(file).exists():
        raise ValueError(f"--lora {name}: there is no file {file!r}")
    # Requests say how strong it is.
    return name, [Path(file), 1.0]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
