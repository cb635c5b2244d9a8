"""The HTTP interface: `/generate`, which answers with the clip, and `/v1/videos`, whose jobs run in the background."""

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.middleware.cors import CORSMiddleware

from .. import __version__
from ..cli.manifest import STORYBOARD
from . import schema
from .access import Access
from .admission import Refusal
from .board import Board
from .dispatcher import Dispatcher
from .inputs.reader import MediaReader
from .jobs import Job, Planner
from .manifests.identity import used_by
from .manifests.manifest import Unrepeatable, manifest_of, same_again
from .metrics import Metrics
from .page.route import add_page, hints
from .running import Runner, growing_file
from .settings import MIB, Settings
from .store import AWAY, DONE, FAILED, FINISHED, QUEUED, RUNNING, QueueFull, Row, Store
from .storyboards.fields import StoryboardRequest
from .storyboards.making import shot_file
from .storyboards.planning import StoryboardPlanner

logger = logging.getLogger(__name__)

# How often those who watch a job are told news, and its state is looked up.
_TICK_S, _LOOK_UP = 0.1, 10
_STATUS = {"invalid_request": 422, "time_limit": 504, "out_of_memory": 503, "worker_died": 503}
_MEDIA_TYPES = {".mp4": "video/mp4", ".wav": "audio/wav"}
_DAY_S = 24 * 3600
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "the body cannot be read", "model": schema.Refusals},
    401: {"description": "no API key, or a wrong one", "model": schema.Refusals},
    403: {"description": "a web site that is not allowed", "model": schema.Refusals},
    413: {"description": "the request is too large", "model": schema.Refusals},
    422: {"description": "a value is wrong", "model": schema.Refusals},
    429: {"description": "the queue is full; see Retry-After", "model": schema.Refusals},
    503: {"description": "the server is ending, lacks memory, or cannot reach its database", "model": schema.Refusals},
}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    **{status: _REFUSALS[status] for status in (401, 403, 422, 503)},
    404: {"description": "there is no such job", "model": schema.Refusals},
}
_TEMPLATE = "#/components/schemas/{model}"
M = TypeVar("M", bound=BaseModel)


class Server:
    """What the routes work with.

    Args:
        settings: The server.
        runner: What makes the clips.
    """

    def __init__(self, settings: Settings, runner: Runner) -> None:
        self.settings, self.runner = settings, runner
        for folder in (settings.data, settings.inputs, settings.results):
            # What people ask for is nobody else's business on this machine.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.board = Board()
        self.store = Store(settings.database_url, settings.name, settings.limits.max_queue)
        self.metrics = Metrics(self.store.counts)
        self.dispatcher = Dispatcher(settings, self.store, runner, self.board, self.metrics)
        self.media = MediaReader(settings.limits)
        forecast = runner.model.forecast(settings.limits.max_memory_gb)
        self.planner = Planner(settings, runner.model, self.media, forecast)
        self.storyboards = StoryboardPlanner(settings, runner.model, self.media, forecast)
        self.is_ending: Callable[[], bool] = lambda: False

    def row(self, request: Request, job_id: str) -> Row:
        """A job of the one who asks.

        Raises:
            HTTPException: With 404, if there is none.
        """
        row = self.store.get(job_id, request.state.tenant)
        if row is None or row.waited_for:
            raise HTTPException(404, "there is no such video")
        return row

    def video(self, row: Row) -> schema.Video:
        """A job as it is told."""
        job, result = self.job(row), row.result or {}
        size, seconds, shots = job.size, job.seconds, None
        if STORYBOARD in job.options:
            total = len(job.options[STORYBOARD]["shots"])
            shots = schema.Shots(finished=result.get("shots", 0), total=total)
        if "file" in result:
            size, seconds = f"{result['width']}x{result['height']}" if result["frames"] else None, result["seconds"]
        keep_s = self.settings.limits.keep_days * _DAY_S
        return schema.Video(
            id=row.id,
            model=self.settings.model,
            status=row.state,  # type: ignore[arg-type]
            progress=100 if row.state == DONE else self.board.percent(row.id),
            created_at=int(row.created),
            started_at=_second(row.started),
            completed_at=_second(row.finished),
            expires_at=None if row.finished is None else int(row.finished + keep_s),
            prompt=job.prompt,
            size=size,
            seconds=None if seconds is None else f"{seconds:.6g}",
            seed=job.seed,
            mode=job.mode,
            shots=shots,
            error=None if row.error is None else schema.Problem(**row.error),
        )

    def job(self, row: Row) -> Job:
        """What a row is about."""
        return Job.from_json(row.job, self.settings.inputs)

    def again(self, row: Row) -> Job:
        """A new job that makes the clip of a finished one again, after all checks.

        Raises:
            HTTPException: With 409, if that is not possible.
            Refusal: If it would be refused today.
        """
        if row.state != DONE:
            raise HTTPException(409, f"the video is {row.state}, not {DONE}")
        job, inputs = self.job(row), self.settings.inputs
        try:
            again = same_again(job, row.result or {}, used_by(job, self.runner.model.identity), inputs)
        except Unrepeatable as error:
            raise HTTPException(409, str(error)) from error
        try:
            if STORYBOARD in again.options:
                self.storyboards.planned(again.id, again.options[STORYBOARD], again.media, again.preview_every)
            else:
                self.planner.check_again(again)
        except Refusal:
            self.dispatcher.remove(again.id)
            raise
        return again

    def file(self, row: Row) -> Path:
        """The finished file of a job."""
        return self.settings.results / str((row.result or {})["file"])

    def submit(self, job: Job, tenant: str, **how: Any) -> Any:
        """Put a job into the queue.

        Raises:
            HTTPException: With 429 or 503, if it cannot be taken now.
        """
        try:
            if self.is_ending() or not self.dispatcher.works:
                raise HTTPException(503, "the server is ending; ask again in a minute", {"Retry-After": "60"})
            return self.dispatcher.submit(job, tenant, **how)
        except (HTTPException, QueueFull) as error:
            self.dispatcher.remove(job.id)
            if isinstance(error, QueueFull):
                raise HTTPException(429, str(error), {"Retry-After": str(error.retry_after_s)}) from error
            raise


def create_app(settings: Settings, runner: Runner) -> FastAPI:
    """The application that answers requests.

    Args:
        settings: The server.
        runner: What makes the clips; it is closed when the application ends.
    """
    server = Server(settings, runner)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(server.media.warm_up)
        server.dispatcher.start()
        yield
        await run_in_threadpool(server.dispatcher.stop, settings.limits.grace)
        server.store.close()

    app = FastAPI(title="LTX-2", version=__version__, summary="Video with synchronised sound.", lifespan=lifespan)
    app.state.server = server
    _add_generate(app, server)
    _add_videos(app, server)
    _add_storyboards(app, server)
    _add_watching(app, server)
    _add_handlers(app, server)
    add_page(app)
    app.add_middleware(Access, settings=settings)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.origins), allow_methods=["*"], allow_headers=["*"]
        )
    app.openapi = partial(_described, app, server)  # type: ignore[method-assign]
    return app


def _add_generate(app: FastAPI, server: Server) -> None:
    refusals = {**_REFUSALS, 504: {"description": "the clip took too long", "model": schema.Refusals}}

    @app.post(
        "/generate",
        response_model=schema.GenerateResponse,
        responses=refusals,
        openapi_extra=_described_by("GenerateRequest", "application/json"),
    )
    async def generate(request: Request) -> Response:
        """Make a clip and answer with it."""
        wanted = await _wanted(request, schema.GenerateRequest)
        job = await run_in_threadpool(server.planner.generate, wanted)
        # The media lie in files now, and need no memory while the clip is waited for.
        wanted.image, wanted.audio = wanted.image and "given", wanted.audio and "given"
        _, ended = await run_in_threadpool(partial(server.submit, job, request.state.tenant, waited_for=True))
        try:
            await _until(asyncio.wrap_future(ended), request)
            return await run_in_threadpool(_answer, server, wanted, job)
        finally:
            # Nobody else knows of it. A caller who is gone wants nothing any more.
            await asyncio.shield(run_in_threadpool(_close, server, job.id))


async def _until(ended: "asyncio.Future[None]", request: Request) -> None:
    """Wait for the end of a job, or of the connection of the one who asked for it."""
    gone = asyncio.ensure_future(request.receive())
    both: set[asyncio.Future[Any]] = {ended, gone}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()


def _close(server: Server, job_id: str) -> None:
    server.dispatcher.cancel(job_id)
    server.dispatcher.remove(job_id)


def _answer(server: Server, wanted: schema.GenerateRequest, job: Job) -> Response:
    """The answer to a call that has ended."""
    row = server.store.get(job.id)
    if row is None or row.state != DONE:
        error = (row.error if row is not None else None) or {
            "code": "cancelled",
            "message": "the server ended the call",
        }
        status = _STATUS.get(error["code"], 500 if row is not None and row.state == FAILED else 503)
        if status == 422:
            raise Refusal(error["message"])
        raise HTTPException(status, error["message"])
    result = row.result or {}
    mode = "audio" if wanted.audio is not None else "text" if wanted.image is None else "image"
    answer = schema.GenerateResponse(
        video=f"data:video/mp4;base64,{base64.b64encode(server.file(row).read_bytes()).decode()}",
        duration_seconds=wanted.num_frames / wanted.fps,
        resolution=f"{wanted.width}x{wanted.height}",
        fps=wanted.fps,
        seed=job.seed,
        generation_time_seconds=round(result["generation_seconds"], 2),
        mode=f"{mode}-to-video",  # type: ignore[arg-type]
        has_audio=result["has_audio"],
    )
    return Response(answer.model_dump_json(), media_type="application/json")


def _add_videos(app: FastAPI, server: Server) -> None:
    body = _described_by("VideoRequest", "application/json", "multipart/form-data")

    @app.post("/v1/videos", response_model=schema.Video, responses=_REFUSALS, openapi_extra=body)
    async def create_video(request: Request) -> schema.Video:
        """Have a clip made in the background. A request that is sent twice with one Idempotency-Key is done once."""
        wanted = await _wanted(request, schema.VideoRequest, forms=True)
        return await run_in_threadpool(_submitted, server, request, partial(server.planner.video, wanted))

    @app.get("/v1/videos", responses={status: _REFUSALS[status] for status in (401, 403, 422, 503)})
    def list_videos(
        request: Request,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> schema.VideoList:
        """The jobs, a page at a time."""
        rows = server.store.page(request.state.tenant, after, limit + 1, order == "desc")
        data = [server.video(row) for row in rows[:limit]]
        ends = (data[0].id, data[-1].id) if data else (None, None)
        return schema.VideoList(data=data, first_id=ends[0], last_id=ends[1], has_more=len(rows) > limit)

    @app.get("/v1/videos/{video_id}", responses=_NOT_FOUND)
    def retrieve_video(request: Request, video_id: str) -> schema.Video:
        """How a job stands."""
        return server.video(server.row(request, video_id))

    @app.delete("/v1/videos/{video_id}", responses=_NOT_FOUND)
    def delete_video(request: Request, video_id: str) -> schema.DeletedVideo:
        """Forget a job with its files; one that runs ends at its next step."""
        row = server.row(request, video_id)
        _close(server, row.id)
        return schema.DeletedVideo(id=row.id)

    @app.post("/v1/videos/{video_id}/cancel", responses=_NOT_FOUND)
    def cancel_video(request: Request, video_id: str) -> schema.Video:
        """End a job before it is done, at its next step; one that has ended stays as it is."""
        row = server.row(request, video_id)
        server.dispatcher.cancel(row.id)
        return server.video(server.row(request, video_id))


def _submitted(server: Server, request: Request, planned: Callable[[], Job]) -> schema.Video:
    """The job of a request in the queue, or the one that this request has already."""
    key = request.headers.get("idempotency-key")
    if key is not None and len(key) > 255:
        raise Refusal("`Idempotency-Key` has more than 255 characters; give a shorter one")
    job_id, _ = server.submit(planned(), request.state.tenant, request_key=key)
    return server.video(server.row(request, job_id))


def _add_storyboards(app: FastAPI, server: Server) -> None:
    body = _described_by("StoryboardRequest", "application/json")
    not_finished: dict[int | str, dict[str, Any]] = {
        409: {"description": "it is not finished, or cannot be made again here", "model": schema.Refusals}
    }

    @app.post("/v1/storyboards", response_model=schema.Video, responses=_REFUSALS, openapi_extra=body)
    async def create_storyboard(request: Request) -> schema.Video:
        """Have a clip of several shots made in the background: a job like those of `/v1/videos`, and listed there."""
        wanted = await _wanted(request, StoryboardRequest)
        return await run_in_threadpool(_submitted, server, request, partial(server.storyboards.job, wanted))

    @app.get(
        "/v1/videos/{video_id}/shots/{number}/content",
        response_class=FileResponse,
        responses={**_NOT_FOUND, **not_finished},
    )
    def shot_content(request: Request, video_id: str, number: Annotated[int, PathParameter(ge=1)]) -> FileResponse:
        """The MP4 file of a shot of a storyboard, counted from 1, as soon as it is finished."""
        row = server.row(request, video_id)
        board = server.job(row).options.get(STORYBOARD)
        if board is None or number > len(board["shots"]):
            raise HTTPException(404, "this video has no such shot")
        file = shot_file(server.settings.results, row.id, number)
        if not file.exists():
            raise HTTPException(409, f"shot {number} is not finished")
        return FileResponse(file, media_type="video/mp4", filename=f"{row.id}_{file.name}")

    @app.get("/v1/videos/{video_id}/manifest", responses={**_NOT_FOUND, **not_finished})
    def video_manifest(request: Request, video_id: str) -> schema.Manifest:
        """How a finished clip was made."""
        row = server.row(request, video_id)
        if row.state != DONE:
            raise HTTPException(409, f"the video is {row.state}, not {DONE}")
        return manifest_of(server.job(row), row.result or {}, server.settings.model)

    @app.post(
        "/v1/videos/{video_id}/replay",
        response_model=schema.Video,
        responses={**_REFUSALS, **_NOT_FOUND, **not_finished},
    )
    def replay_video(request: Request, video_id: str) -> schema.Video:
        """Make a finished clip again, in a new job: with the same files, seed and checkpoint, so with equal frames."""
        row = server.row(request, video_id)
        return _submitted(server, request, partial(server.again, row))


def _add_watching(app: FastAPI, server: Server) -> None:
    @app.get(
        "/v1/videos/{video_id}/content",
        response_class=FileResponse,
        responses={**_NOT_FOUND, 409: {"description": "the clip is not finished", "model": schema.Refusals}},
    )
    def video_content(request: Request, video_id: str) -> Response:
        """The finished MP4 file, or the WAV file of a job that makes sound alone; parts of it by `Range`.

        Of a job with `stream` that is not finished, the file as it grows; the answer breaks off if the job fails.
        """
        row = server.row(request, video_id)
        if row.state in (QUEUED, RUNNING) and server.job(row).stream:
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return StreamingResponse(_growing(server, request, video_id), media_type="video/mp4", headers=headers)
        if row.state != DONE:
            raise HTTPException(409, f"the video is {row.state}, not {DONE}")
        file = server.file(row)
        if not file.exists():
            raise HTTPException(404, "the file of this video is gone")
        return FileResponse(file, media_type=_MEDIA_TYPES[file.suffix], filename=file.name)

    @app.get("/v1/videos/{video_id}/events", response_class=StreamingResponse, responses=_NOT_FOUND)
    def video_events(request: Request, video_id: str) -> StreamingResponse:
        """What happens to a job, as server-sent events `status`, `progress`, `preview` and, of a storyboard, `shot`, until it has ended."""
        server.row(request, video_id)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(server, request, video_id), media_type="text/event-stream", headers=headers)

    @app.get("/health", responses={503: {"model": schema.Health}})
    def health() -> Response:
        """Whether the server works."""
        model, counts = server.runner.model, dict[str, int]()
        with suppress(*AWAY):
            counts = server.store.counts()
        works = bool(counts) and server.dispatcher.works
        status: Any = "stopping" if server.is_ending() else "ok" if works else "down"
        answer = schema.Health(
            status=status,
            model=server.settings.model,
            checkpoint_version=model.version,
            checkpoint_kind=model.kind,
            device=model.device,
            adapters=list(model.adapters),
            queued=counts.get(QUEUED),
            running=counts.get(RUNNING),
        )
        return JSONResponse(answer.model_dump(), 200 if status == "ok" else 503)

    @app.get("/metrics", response_class=Response, responses={status: _REFUSALS[status] for status in (401, 403, 503)})
    def metrics() -> Response:
        """Counters, as Prometheus reads them."""
        return Response(server.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _events(server: Server, request: Request, job_id: str) -> AsyncIterator[str]:
    """Events of a job until it has ended, it is gone, or the server ends."""
    seen: str | None = None
    entry, count, ticks = server.board.find(job_id), 0, 0
    while not server.is_ending():
        entry = entry or server.board.find(job_id)
        begun = entry is not None and "status" in entry.events
        state, told = seen, ""
        # A job that is no longer on the board has ended, or is another server's.
        if ticks % _LOOK_UP == 0 or (begun and seen != RUNNING) or server.board.find(job_id) is None:
            row = await run_in_threadpool(server.store.get, job_id)
            if row is None:
                return
            state, told = row.state, _event("status", server.video(row).model_dump())
        count, news = server.board.news(entry, count)
        parts = [_event(kind, event) for kind, event in news if kind != "status"]
        if state != seen:
            # What is told of the last steps comes before the end.
            parts.insert(len(parts) if state in FINISHED and seen is not None else 0, told)
        for part in parts:
            yield part
        seen, ticks = state, ticks + 1
        if state in FINISHED or await request.is_disconnected():
            return
        await asyncio.sleep(_TICK_S)


async def _growing(server: Server, request: Request, job_id: str) -> AsyncIterator[bytes]:
    """The file of a job while it is written, from its start."""
    place = growing_file(server.settings.results, job_id)
    with ExitStack() as opened:
        file = None
        while not await request.is_disconnected():
            row = await run_in_threadpool(server.store.get, job_id)
            if row is None or row.state not in (QUEUED, RUNNING, DONE) or server.is_ending():
                raise RuntimeError("the video was not finished")
            if file is None:
                # It has its last name as soon as it is complete, and is the same file.
                path = server.file(row) if row.state == DONE else place
                with suppress(FileNotFoundError):
                    file = opened.enter_context(path.open("rb"))
            while file is not None and (part := await run_in_threadpool(file.read, MIB)):
                yield part
            if row.state == DONE:
                return
            await asyncio.sleep(_TICK_S)


def _event(kind: str, event: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(event)}\n\n"


async def _wanted(request: Request, model: type[M], forms: bool = False) -> M:
    """The request of a body in JSON, or of a form with files, as OpenAI's clients send one.

    Nothing else keeps the body, which may be large, while the clip is waited for.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if forms and kind == "multipart/form-data":
        values = await _form(request)
    elif kind == "application/json":
        try:
            values = json.loads(b"".join([chunk async for chunk in request.stream()]))
        except (ValueError, RecursionError) as error:
            raise Refusal(f"the body is no JSON: {error}") from None
    else:
        raise Refusal("the body has to be JSON; send it with 'Content-Type: application/json'")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(found) from None


async def _form(request: Request) -> dict[str, Any]:
    """Fields of a form, files as base64."""
    values: dict[str, Any] = {}
    async with request.form(max_files=64, max_fields=256, max_part_size=MIB) as form:
        for name, value in form.multi_items():
            if name in values:
                raise Refusal(f"`{name}` is given twice; give lists in JSON", name)
            if isinstance(value, UploadFile):
                values[name] = base64.b64encode(await value.read()).decode()
            else:
                values[name] = _from_form(value)
    return values


def _from_form(text: str) -> Any:
    """A field of a form, in which lists and objects are JSON."""
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _add_handlers(app: FastAPI, server: Server) -> None:
    """Every refusal in the same form, without what the request held."""

    @app.exception_handler(RequestValidationError)
    def refuse_values(_request: Request, error: RequestValidationError) -> JSONResponse:
        details = [{name: one[name] for name in ("loc", "msg", "type")} for one in error.errors()]
        server.metrics.refused.labels("422").inc()
        return JSONResponse({"detail": details}, 422)

    @app.exception_handler(Refusal)
    def refuse(_request: Request, error: Refusal) -> JSONResponse:
        said = [(["body", *one.place], str(one)) for one in (error, *error.others)]
        server.metrics.refused.labels("422").inc()
        return JSONResponse({"detail": [{"loc": loc, "msg": msg, "type": "value_error"} for loc, msg in said]}, 422)

    def wait(_request: Request, error: Exception) -> JSONResponse:
        logger.warning("the database cannot be reached: %s", error)
        server.metrics.refused.labels("503").inc()
        detail = "the database of jobs cannot be reached; ask again in some seconds"
        return JSONResponse({"detail": detail}, 503, headers={"Retry-After": "5"})

    for kind in AWAY:
        app.add_exception_handler(kind, wait)

    @app.exception_handler(HTTPException)
    def refuse_otherwise(_request: Request, error: HTTPException) -> JSONResponse:
        server.metrics.refused.labels(str(error.status_code)).inc()
        return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)


def _described(app: FastAPI, server: Server) -> dict[str, Any]:
    """The OpenAPI description, with the requests that are read by hand."""
    if app.openapi_schema is None:
        description = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        bodies = (schema.GenerateRequest, schema.VideoRequest, StoryboardRequest)
        read: list[Any] = [(body, "validation") for body in bodies]
        _, added = models_json_schema(read, ref_template=_TEMPLATE)
        description["components"]["schemas"] |= added["$defs"]
        model = server.runner.model
        description["components"]["schemas"]["VideoRequest"] |= hints(server.settings, model.version, model.kind)
        app.openapi_schema = description
    return app.openapi_schema


def _described_by(model: str, *kinds: str) -> dict[str, Any]:
    """What the description says of a body that is read by hand."""
    content = {"schema": {"$ref": _TEMPLATE.format(model=model)}}
    return {"requestBody": {"required": True, "content": dict.fromkeys(kinds, content)}}


def _second(time_s: float | None) -> int | None:
    return None if time_s is None else int(time_s)
