"""The HTTP interface: videos as the `openai` client asks for them, and what this project adds.

POST /v1/videos, GET and DELETE /v1/videos/ID, GET /v1/videos, GET /v1/videos/ID/content are OpenAI's. This project adds
/v1/videos/ID/sidecar, /latents and /events, /v1/models, /health, /ready and /metrics. Errors have OpenAI's form.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse

from ..errors import InputError, S2VideoError
from ..media.formats import FORMATS
from ..media.output_paths import OutputPaths
from ..version import __version__
from . import page
from .body import read_fields
from .files import CONTENT_TYPES, BusyError, as_one_file, in_format, picture, save_image
from .guards import COOKIE, BodyError, Guards, Rules, problem, session_of
from .jobs import Job, is_id
from .metrics import metrics
from .queue import FullError, Glance, JobQueue, OtherRequestError
from .video_request import FieldError, Limits, Models, read_request
from .video_request import Request as VideoRequest

_POLL_AFTER = "1000"  # ms; the header with which the client's polling is slowed down or sped up
_EVENT_EVERY = 0.5  # seconds between two looks at a job for /events
_STATUS = {"waiting": "queued", "running": "in_progress", "done": "completed", "failed": "failed"}


@dataclass(frozen=True)
class Server:
    """What the endpoints work on.

    Attributes:
        world_size: ranks of a replica.
        replicas: number of them.
        is_ready: whether replicas are being supervised.
    """

    queue: JobQueue
    models: Models
    limits: Limits
    world_size: int = 1
    replicas: int = 1
    is_ready: Callable[[], bool] = lambda: True

    @property
    def folder(self) -> Path:
        """The folder of the jobs' files."""
        return self.queue.folder


def build_app(server: Server, rules: Rules) -> Guards:
    """Return the ASGI application."""
    app = FastAPI(title="s2video", version=__version__, docs_url=None, redoc_url=None)
    _add_errors(app)
    _add_videos(app, server)
    _add_files(app, server)
    _add_service(app, server)
    _add_page(app, server, rules)
    return Guards(app, rules)


def as_video(job: Job) -> dict[str, Any]:
    """Return a job as the client's `Video` object; fields beyond OpenAI's are this project's own."""
    error = None if job.error is None else {"code": "video_generation_failed", "message": job.error}
    return {
        **job.shown,
        "id": job.id,
        "object": "video",
        "model": job.model,
        "status": _STATUS[job.state],
        "progress": job.progress,
        "created_at": int(job.created),
        "completed_at": None if job.ended is None or job.state != "done" else int(job.ended),
        "expires_at": None,
        "remixed_from_video_id": None,
        "error": error,
        "phase": job.phase,
        "step": job.step,
        "seconds_left": None if job.seconds_left is None else round(job.seconds_left, 1),
        "ahead": job.ahead,
    }


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(InputError)
    def refused(request: Request, error: InputError) -> Response:
        param = error.field or None if isinstance(error, FieldError) else None
        return problem(400, str(error), code="invalid_value", param=param)

    @app.exception_handler(BusyError)
    def busy(request: Request, error: BusyError) -> Response:
        return problem(429, str(error), code="busy", retry_after="30")

    @app.exception_handler(S2VideoError)
    def failed(request: Request, error: S2VideoError) -> Response:
        return problem(500, str(error), code="failed")

    @app.exception_handler(BodyError)
    def too_much(request: Request, error: BodyError) -> Response:
        return problem(error.status, str(error), code="bad_body")

    @app.exception_handler(HTTPException)
    def other(request: Request, error: HTTPException) -> Response:
        path = request.url.path[:80]
        if error.status_code == 405:
            return problem(405, f"{request.method[:20]} is not possible at {path!r}", code="method_not_allowed")
        if error.status_code == 404:
            is_ours = str(error.detail) != HTTPStatus.NOT_FOUND.phrase
            return problem(404, str(error.detail) if is_ours else f"nothing is at {path!r}", code="not_found")
        return problem(error.status_code, str(error.detail), code="refused")

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return problem(400, f"{name}: {first['msg']}", code="invalid_value", param=name)

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> Response:
        return problem(500, "an error of the server; its log has the details", code="internal_error")


def _add_videos(app: FastAPI, server: Server) -> None:
    @app.post("/v1/videos")
    async def create(request: Request) -> Response:
        fields, image = await read_fields(request)
        key = request.headers.get("idempotency-key")
        if key is not None and not 0 < len(key) <= 200:
            return problem(400, "Idempotency-Key: expected 1 to 200 characters", code="invalid_value")
        return await run_in_threadpool(_create, server, fields, image, key)

    @app.post("/v1/videos/estimate")
    async def estimated(request: Request) -> dict[str, Any]:
        fields, image = await read_fields(request)
        return await run_in_threadpool(_estimate, server, fields, image)

    @app.get("/v1/videos")
    def listed(after: str | None = None, limit: int = 20, order: Literal["asc", "desc"] = "desc") -> dict[str, Any]:
        if not 1 <= limit <= 100:
            raise FieldError("limit", f"limit: expected 1 to 100, got {limit}")
        if after is not None and not is_id(after):
            raise FieldError("after", f"after: expected the id of a video, got {after[:80]!r}")
        jobs, more = server.queue.page(after=after, limit=limit, order=order)
        data = [as_video(job) for job in jobs]
        ids = [job.id for job in jobs]
        edges = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
        return {"object": "list", "data": data, **edges, "has_more": more}

    glance = Glance(server.queue)

    async def retrieve(request: Request) -> Response:
        """Without a thread and without FastAPI's checks, because hundreds of clients may poll."""
        name = request.path_params["name"]
        job = glance.find(name)
        if job is None:
            raise HTTPException(404, f"no video {name[:80]!r}")
        return JSONResponse(as_video(job), headers={"openai-poll-after-ms": _POLL_AFTER})

    app.add_route("/v1/videos/{name}", retrieve, methods=["GET"])

    @app.delete("/v1/videos/{name}")
    def delete(name: str) -> dict[str, Any]:
        job = server.queue.remove(name)
        if job is None:
            raise HTTPException(404, f"no video {name[:80]!r}")
        return {"id": job.id, "object": "video.deleted", "deleted": True}

    @app.get("/v1/videos/{name}/events")
    async def events(name: str) -> Response:
        job = await run_in_threadpool(_found, server, name)
        return StreamingResponse(
            _events(glance, job), media_type="text/event-stream", headers={"cache-control": "no-cache"}
        )


@contextmanager
def _read(server: Server, fields: Mapping[str, Any], image: bytes | None) -> Iterator[VideoRequest]:
    """Give a request for the queue; its image stays only if a job of it is in the queue at the end."""
    path = None if image is None else save_image(image, server.folder)
    try:
        yield read_request(
            fields, server.models, server.folder, server.limits, image=path, world_size=server.world_size
        )
    finally:
        if path is not None:
            server.queue.drop_image(path)


def _estimate(server: Server, fields: Mapping[str, Any], image: bytes | None) -> dict[str, Any]:
    numbers = {"world_size": server.world_size, "replicas": server.replicas}
    with _read(server, fields, image) as request:
        return page.estimate(request, server.queue, server.models, **numbers)


def _create(server: Server, fields: Mapping[str, Any], image: bytes | None, key: str | None) -> Response:
    limits = server.limits
    try:
        with _read(server, fields, image) as request:
            job = server.queue.submit(replace(request, idempotency_key=key), most=limits.waiting)
    except FullError:
        return problem(
            429, f"{limits.waiting} videos wait already; try again later", code="queue_full", retry_after="30"
        )
    except OtherRequestError:
        return problem(422, "Idempotency-Key: expected a new key for another request", code="idempotency_key_reused")
    return JSONResponse(as_video(job), headers={"openai-poll-after-ms": _POLL_AFTER})


def _found(server: Server, name: str) -> Job:
    job = server.queue.find(name)
    if job is None:
        raise HTTPException(404, f"no video {name[:80]!r}")
    return job


async def _events(glance: Glance, job: Job) -> AsyncIterator[str]:
    """Yield the job as an event whenever it changes, until it ends or is deleted."""
    last = None
    while True:
        shown = json.dumps(as_video(job))
        if shown != last:
            yield f"event: {_STATUS[job.state]}\ndata: {shown}\n\n"
            last = shown
        if job.state in ("done", "failed"):
            return
        await asyncio.sleep(_EVENT_EVERY)
        found = glance.find(job.id)
        if found is None:
            yield f'event: deleted\ndata: {{"id": "{job.id}"}}\n\n'
            return
        job = found


def _add_files(app: FastAPI, server: Server) -> None:
    def finished(name: str) -> tuple[Job, OutputPaths]:
        job = _found(server, name)
        if job.state != "done":
            raise HTTPException(404, f"the video is not ready: it is {_STATUS[job.state]}")
        return job, OutputPaths(server.folder / job.job)

    @app.get("/v1/videos/{name}/content")
    def content(
        name: str, variant: Literal["video", "thumbnail", "spritesheet"] = "video", codec: str | None = None
    ) -> Response:
        job, files = finished(name)
        if variant != "video":
            return Response(
                picture(files.video, variant), media_type=f"image/{'webp' if variant == 'thumbnail' else 'jpeg'}"
            )
        if codec is None:
            return _file(server, job, files.video)
        if codec not in FORMATS:
            raise FieldError("codec", f"codec: expected one of {', '.join(FORMATS)}, got {codec[:40]!r}")
        return _file(server, job, in_format(job.job, server.folder, codec))

    @app.get("/v1/videos/{name}/sidecar")
    def sidecar(name: str) -> Response:
        return FileResponse(finished(name)[1].sidecar, media_type="application/json")

    @app.get("/v1/videos/{name}/latents")
    def latents(name: str) -> Response:
        job, files = finished(name)
        return _file(server, job, files.latents)


def _file(server: Server, job: Job, path: Path) -> Response:
    """Return a file of a job for download."""
    one = as_one_file(path)
    if server.queue.find(job.id) is None:  # deleted while this file was made
        server.queue.remove_files(job.job)
        raise HTTPException(404, f"no video {job.id!r}")
    return FileResponse(one, media_type=CONTENT_TYPES.get(one.suffix, "application/octet-stream"), filename=one.name)


def _add_service(app: FastAPI, server: Server) -> None:
    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        data = [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "s2video",
                "size": f"{config.sampling.width}x{config.sampling.height}",
                "frames": config.sampling.num_frames,
                "fps": str(config.output.fps),
                "steps": config.sampling.num_inference_steps,
                "cfg_scale": config.guidance.cfg_scale,
                "s2_scale": config.guidance.s2_scale,
            }
            for name, config in server.models.configs.items()
        ]
        return {"object": "list", "data": data, "loras": list(server.models.loras)}

    @app.api_route("/health", methods=["GET", "HEAD"])  # load balancers ask in either way
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.api_route("/ready", methods=["GET", "HEAD"])
    def ready() -> Response:
        if server.is_ready():
            return JSONResponse({"status": "ready"})
        return problem(503, "the server is starting or stopping", code="not_ready")

    @app.get("/metrics")
    def measured() -> Response:
        return PlainTextResponse(metrics(server.queue), media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI, server: Server, rules: Rules) -> None:
    headers = {"cache-control": "no-store", "x-content-type-options": "nosniff", "x-frame-options": "DENY"}

    @app.get("/")
    def index(request: Request) -> Response:
        knows = rules.knows({name.lower(): value for name, value in request.headers.items()})
        html = page.page(server.queue, server.models, server.limits) if knows else page.key_page()
        return HTMLResponse(html, headers=headers)

    @app.get("/history")
    def history() -> Response:
        return HTMLResponse(page.history(server.queue), headers=headers)

    @app.post("/session")
    def session(request: Request) -> Response:
        """Answer a request with the right key with a cookie, for pages, whose videos cannot send a header."""
        answer = JSONResponse({"status": "ok"})
        if rules.key is not None:
            answer.set_cookie(COOKIE, session_of(rules.key), httponly=True, samesite="strict", path="/")
        return answer
