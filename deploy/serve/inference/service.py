"""The service that all routes share: the models, the limits, and the way of a request through them."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Depends, Request
from numpy.typing import NDArray
from PIL import Image
from starlette.requests import ClientDisconnect

from ehm.deploy.serve.inference.batching import Images, Outputs, Result
from ehm.deploy.serve.inference.forms import read_form_image
from ehm.deploy.serve.inference.images import measure_size, read_image
from ehm.deploy.serve.inference.memory import Memory, Record
from ehm.deploy.serve.inference.metrics import Metrics
from ehm.deploy.serve.inference.models import Models
from ehm.deploy.serve.inference.served_model import ServedModel
from ehm.deploy.serve.settings import Settings
from ehm.errors import RequestError
from ehm.processors import count_available_processors

__all__ = ["Served", "Service", "Upload", "find_service"]

T = TypeVar("T")
_CLIENT_LEFT = 499
"""nginx's status for a client that left: nobody receives it, but the log and the metrics show it."""


@dataclass(frozen=True)
class Upload:
    """An image that was sent, as `read_image` gives it, and its file's name if the client gave one."""

    image: Any
    name: str | None = None


class Service:
    """A running server, as ``app.state.service``: ``models`` by name, ``settings``, and the way of requests.

    A server that is ``stopping`` says that it is not ready and still takes requests, until its port is ``closed``.
    ``under_way`` counts the requests inside, ``memory`` the bytes that they hold.
    """

    def __init__(self, bundles: Mapping[str, Path], settings: Settings, api_key: str | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.models = Models(bundles, settings, self.metrics)
        self.stopping = False
        self.closed = False
        self.under_way = 0
        self.memory = Memory(settings.max_memory)
        self._image_count = 0  # images that are being read, or run at once
        self._key = api_key.encode() if api_key else None
        self._decoders = ThreadPoolExecutor(count_available_processors(), thread_name_prefix="decode")
        Image.init()  # which registers formats, and is no work for several threads at once

    @property
    def ready(self) -> bool:
        """True if requests should be sent here."""
        return self.models.ready and not self.stopping

    @property
    def crowded(self) -> bool:
        """True if more is under way than may wait for each model, and as much again that is read and decoded."""
        return self.under_way > 2 * self.settings.queue * max(1, len(self.models))

    @property
    def guarded(self) -> bool:
        """True if requests need an API key."""
        return self._key is not None

    def allows_key(self, key: str | None) -> bool:
        """Return whether a request with that API key may pass."""
        if self._key is None:
            return True
        # the time that the comparison takes tells nothing about the right key
        return key is not None and hmac.compare_digest(key.encode(), self._key)

    def find_model(self, request: Request, name: str | None, version: str | None = None) -> ServedModel:
        """Return the model that a request is for, by default the only one.

        Raises RequestError: 404 if there is none of that name, 400 if one of several has to be named.
        """
        if name is None:
            if len(self.models) > 1:
                raise RequestError(400, f"?model=: expected one of {', '.join(self.models)}")
            name = next(iter(self.models), "")
        model = self.models.find(name, version)
        self.get_record(request).model = name
        return model

    def get_record(self, request: Request) -> Record:
        """Return the facts about a request that are logged."""
        record: Record = request.state.record
        return record

    def hold_bytes(self, request: Request, count: int) -> None:
        """Account for ``count`` bytes until the request is answered; RequestError if there are too many."""
        self.memory.hold(self.get_record(request), count)

    async def infer(
        self, name: str, images: Images, names: Sequence[str] = (), deadline: float | None = None
    ) -> Outputs:
        """Return outputs of the model ``name`` for prepared ``images`` (B, ...): those ``names``, or all.

        ``deadline`` is on the event loop's clock, by default the server's timeout from now. Raises RequestError.
        """
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + self.settings.timeout
        result = await self.models.find(name).infer(images, names, deadline)
        return result.outputs

    async def run_model(
        self, request: Request, model: ServedModel, images: Images, names: Sequence[str], timeout: float | None = None
    ) -> Outputs:
        """Return outputs of a model for an HTTP request, within ``timeout`` seconds if they are given.

        The request leaves the queue if its client leaves. Raises RequestError as `infer` does.
        """
        record = self.get_record(request)
        record.asked = True
        if timeout is not None:
            record.deadline = min(record.deadline, asyncio.get_running_loop().time() + timeout)
        work = asyncio.ensure_future(model.infer(images, names, record.deadline))
        gone = asyncio.ensure_future(_wait_for_disconnect(request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise RequestError(_CLIENT_LEFT, "the client has left")
            result = work.result()
        finally:
            work.cancel()
            gone.cancel()
        record.batch = result.batch
        return result.outputs

    async def offload(self, request: Request, function: Callable[..., T], *args: Any) -> T:
        """Call a function that takes a while in a thread, within the request's deadline (504)."""
        loop = asyncio.get_running_loop()
        call = loop.run_in_executor(self._decoders, lambda: function(*args))
        try:
            return await asyncio.wait_for(call, self.get_record(request).deadline - loop.time())
        except asyncio.TimeoutError:
            raise RequestError(504, "the deadline passed before the answer was ready") from None

    async def read_body(self, request: Request) -> bytes:
        """Return the whole body; RequestError: 413 too large, 408 too slow, 415 for a content coding."""
        limit = self.settings.max_bytes
        # unpacked, a body can be a thousand times as large as its limit
        if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise RequestError(415, "Content-Encoding: expected none; send the body as it is")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > limit:
            raise RequestError(413, f"the body has {length} bytes, more than {limit}")
        try:
            left = self.get_record(request).deadline - asyncio.get_running_loop().time()
            return await asyncio.wait_for(self._collect_body(request, limit), left)
        except asyncio.TimeoutError:
            raise RequestError(408, "the body did not arrive in time") from None
        except ClientDisconnect:
            raise RequestError(_CLIENT_LEFT, "the client has left") from None

    async def read_image(self, request: Request, model: ServedModel) -> Upload:
        """Read the image of a request as ``model`` was trained to see it, and its file's name; raises RequestError."""
        data, name = await self._read_file(request)
        pixels = model.manifest.preprocessing.pixels
        image = await self.offload(request, read_image, data, self.settings.max_pixels, None, pixels)
        width, height = measure_size(image)
        self.hold_bytes(request, pixels.count * pixels.dtype.itemsize * width * height)
        return Upload(image, name)

    async def answer_image(
        self, request: Request, model: ServedModel, names: Sequence[str]
    ) -> tuple[Outputs, str | None]:
        """Return outputs ``names`` (1, ...) of a model for the image of a request, and the name of its file."""
        data, name = await self._read_file(request)
        loop = asyncio.get_running_loop()
        record = self.get_record(request)

        def prepare_and_run() -> tuple[NDArray[Any], Result | None]:
            # in one go, so that no more images are unpacked at a time than there are cores
            pixels = model.manifest.preprocessing.pixels
            image = read_image(data, self.settings.max_pixels, model.predictor.sufficient_size, pixels)
            width, height = measure_size(image)
            model.check_size(height, width)
            images = model.predictor.prepare(image)[np.newaxis]
            if self._image_count > 1:  # others are on their way: they may share a batch
                return images, None
            record.asked = True
            return images, model.batcher.run_now(images, names, loop)

        self._image_count += 1
        try:
            images, result = await self.offload(request, prepare_and_run)
        finally:
            self._image_count -= 1
        self.hold_bytes(request, images.nbytes)
        if result is None:
            return await self.run_model(request, model, images, names), name
        record.batch = result.batch
        return result.outputs, name

    async def _read_file(self, request: Request) -> tuple[bytes, str | None]:
        """Return an image file and its name: the whole body, or the field ``image`` of a form; raises RequestError."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json" or kind.startswith("text/"):
            raise RequestError(
                415, f"Content-Type: expected an image file, as it is or as the form field image, not {kind}"
            )
        data = await self.read_body(request)
        name = None
        if kind == "multipart/form-data":
            data, name = await self.offload(
                request, read_form_image, request.headers, data, _list_query_parameters(request)
            )
        return data, name

    async def _collect_body(self, request: Request, limit: int) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise RequestError(413, f"the body has more than {limit} bytes")
            self.hold_bytes(request, len(chunk))
        return bytes(body)


async def find_service(request: Request) -> Service:
    """Return the service, for routes."""
    # it waits for nothing, but FastAPI calls functions that are not async in a thread of their own
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(find_service)]
"""The type of a route's parameter that is the service."""


def _list_query_parameters(request: Request) -> frozenset[str]:
    """Return the names of the parameters that the request's route takes in its address."""
    return frozenset(parameter.alias for parameter in request.scope["route"].dependant.query_params)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
