"""The image file in a form (multipart/form-data)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Set

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ehm.errors import RequestError

__all__ = ["read_form_image"]

_MOST_FIELDS = 100
"""Fields of a form at most: each takes memory of its own."""


def read_form_image(headers: Headers, body: bytes, parameters: Set[str]) -> tuple[bytes, str | None]:
    """Return the file in the field ``image`` of a form, and its name; other fields are ignored.

    ``parameters`` are the names that the route takes in its address: a field of such a name is refused, since ignoring
    it would give another answer than the client meant. Raises RequestError (400).

    A large form takes a while, and Starlette's parser is a coroutine although it waits for nothing here: call this in a
    thread.
    """
    return asyncio.run(_read_form_image(headers, body, parameters))


class _InMemoryParser(MultiPartParser):
    spool_max_size = 2**62  # the body is in memory already, and a container may have no folder to write to


async def _read_form_image(headers: Headers, body: bytes, parameters: Set[str]) -> tuple[bytes, str | None]:
    """Return the file and its name; see `read_form_image`."""

    async def yield_body() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await _InMemoryParser(headers, yield_body(), max_files=_MOST_FIELDS, max_fields=_MOST_FIELDS).parse()
    except MultiPartException as error:
        raise RequestError(400, f"the form cannot be read: {error.message}") from None
    try:
        misplaced = sorted(parameters & set(form))
        if misplaced:
            raise RequestError(
                400, f"the form field {misplaced[0]}: parameters go into the address, as ?{misplaced[0]}=VALUE"
            )
        images = form.getlist("image")
        if len(images) > 1:
            raise RequestError(400, f"the form has {len(images)} fields named image; send one image a request")
        if not images or not isinstance(images[0], UploadFile):
            raise RequestError(400, "the form has no file in the field image")
        return await images[0].read(), images[0].filename
    finally:
        await form.close()
