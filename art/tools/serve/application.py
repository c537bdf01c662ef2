"""The page and what it asks for, over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from art.tools.serve.clips import Busy, Clip, Clips
from art.tools.serve.limits import BEGINNING, Limits, Refused, check_beginning

PAGE = Path(__file__).parent / "page"
SAMPLES = Path(__file__).parent / "samples"


def make_application(
    clips: Clips, limits: Limits, about: dict[str, Any], closing: Callable[[], None] = lambda: None
) -> Starlette:
    """The page as an ASGI application, unguarded.

    Args:
        clips: what it brings clips to.
        limits: what a clip may be.
        about: the model, as :func:`.answer.describe` says it.
        closing: called when it ends, while a clip may still be looked at.
    """
    routes = _Routes(clips, limits, about)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(clips.work()), asyncio.create_task(clips.clean())]
        try:
            yield
        finally:
            closing()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return Starlette(
        lifespan=lifespan,
        exception_handlers={HTTPException: _told},
        routes=[
            Route("/", lambda _: FileResponse(PAGE / "index.html"), methods=["GET"]),
            Route("/about", routes.about, methods=["GET"]),
            Route("/clips", routes.bring, methods=["POST"]),
            Route("/clips/{id}", routes.state, methods=["GET"]),
            Route("/clips/{id}", routes.remove, methods=["DELETE"]),
            Route("/clips/{id}/{file}", routes.file, methods=["GET"]),
            Mount("/page", StaticFiles(directory=PAGE)),
            Mount("/samples", StaticFiles(directory=SAMPLES)),
        ],
    )


def sample_names() -> list[str]:
    """The sample clips, by their names without suffix."""
    return sorted(path.stem for path in SAMPLES.glob("*.mp4"))


class _Routes:
    def __init__(self, clips: Clips, limits: Limits, about: dict[str, Any]) -> None:
        self._clips, self._limits = clips, limits
        samples = [{"file": f"{name}.mp4", "title": name.replace("_", " ")} for name in sample_names()]
        self._about = {
            **about,
            "samples": samples,
            "limits": {"bytes": limits.bytes, "megabytes": limits.megabytes, "seconds": limits.seconds},
        }

    async def about(self, _: Request) -> Response:
        """The model, the samples and the limits."""
        return JSONResponse(self._about)

    async def bring(self, request: Request) -> Response:
        """A clip as the body of the request, called ?name=; or one of the samples, ?sample=."""
        sample, name = request.query_params.get("sample"), request.query_params.get("name", "clip")
        try:
            if sample is None:
                clip = self._clips.admit(name)
                await self._receive(request, clip, name)
            else:
                if sample not in {path.name for path in SAMPLES.glob("*.mp4")}:
                    raise HTTPException(404, "There is no such sample.")
                clip = self._clips.admit(sample)
                shutil.copyfile(SAMPLES / sample, clip.source)
        except Refused as refused:
            return JSONResponse({"message": str(refused)}, 503 if isinstance(refused, Busy) else 400)
        except ClientDisconnect:
            return Response(status_code=400)
        self._clips.submit(clip)
        return JSONResponse({"id": clip.id}, 201)

    async def _receive(self, request: Request, clip: Clip, name: str) -> None:
        """Write the body into the clip's file; whatever is wrong with it leaves nothing behind."""
        try:
            announced = request.headers.get("content-length", "")
            if announced.isdecimal() and int(announced) > self._limits.bytes:
                raise self._limits.too_large(name, int(announced))
            size, beginning = 0, b""
            with clip.source.open("wb") as file:
                async for part in request.stream():
                    if not clip.wanted:
                        raise Refused("Your clip did not arrive in time. Bring it again.")
                    clip.seen = time.monotonic()
                    size += len(part)
                    if size > self._limits.bytes:
                        raise self._limits.too_large(name, None)
                    if len(beginning) < BEGINNING <= len(beginning) + len(part):
                        check_beginning(beginning + part[:BEGINNING], name)
                    beginning += part[: BEGINNING - len(beginning)]
                    await asyncio.to_thread(file.write, part)
            check_beginning(beginning, name)
        except BaseException:
            self._clips.remove(clip)
            raise

    async def state(self, request: Request) -> Response:
        """How far a clip is, and its answer once there is one."""
        clip = self._find(request)
        return JSONResponse(clip.told(self._clips.ahead(clip)))

    async def remove(self, request: Request) -> Response:
        """The page has left."""
        self._clips.remove(self._find(request))
        return Response(status_code=204)

    async def file(self, request: Request) -> Response:
        """One of the files of an answer."""
        clip, file = self._find(request), request.path_params["file"]
        if clip.state != "done" or file not in {path.name for path in clip.out.glob("*")}:
            raise HTTPException(404, "There is no such file.")
        return FileResponse(clip.out / file, filename=file, content_disposition_type="inline")

    def _find(self, request: Request) -> Clip:
        clip = self._clips.find(request.path_params["id"])
        if clip is None:
            raise HTTPException(404, "This answer is no longer kept. Bring the clip again.")
        return clip


async def _told(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"message": error.detail}, error.status_code, error.headers)
