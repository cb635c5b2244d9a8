"""Hands out the page, and tells it what the server takes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from ...cli.generate import with_defaults
from ...cli.modes import MODES
from ...guidance import preset
from ..schema import SERVED
from ..settings import Settings

PATH = "/page/"
"""Under this lie the files of the page; they hold nothing of anybody's, so that no key is needed for them."""
_FOLDER = Path(__file__).parent
# A computer's own table of types may say otherwise, and browsers run no script of a wrong one.
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = {file.name: _TYPES[file.suffix] for file in _FOLDER.iterdir() if file.suffix in _TYPES}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # After an update of the package no part of the page may be of the version before.
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Add the page to an application, at `/`."""

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in _FILES:
            raise HTTPException(404, "there is no such file")
        return FileResponse(_FOLDER / name, media_type=_FILES[name], headers=_HEADERS)

    app.add_route("/", page, include_in_schema=False)
    app.add_route(f"{PATH}{{name}}", page, include_in_schema=False)


def hints(settings: Settings, version: str, kind: str) -> dict[str, Any]:
    """What the description of the API says beside names and types: `x-defaults` of fields and `x-limits` of the server.

    Args:
        settings: The server.
        version: Version of the model.
        kind: `"dev"` or `"distilled"`.
    """
    reference = preset(version, kind)
    options = with_defaults({"checkpoint": settings.engine["checkpoint"], "device": "cpu"}, MODES[-1])
    defaults = {name: value for name, value in options.items() if name in SERVED and name != "seed"}
    scales = {"": reference.video, "audio_": reference.audio}
    for start, scale in scales.items():
        defaults |= {
            f"{start}guidance_scale": scale.cfg_scale,
            f"{start}stg_scale": scale.stg_scale,
            f"{start}modality_scale": scale.modality_scale,
            f"{start}guidance_rescale": scale.rescale_scale,
        }
    defaults |= {"steps": reference.num_inference_steps, "sampler": reference.sampler}
    return {"x-defaults": defaults, "x-limits": asdict(settings.limits)}
