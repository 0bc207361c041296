"""The fields and the image of a request, from the forms of body that clients send: JSON and HTML forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from ..errors import InputError
from ..system.json_reader import parse_json
from .files import decoded_data_url
from .video_request import FieldError

_MOST_FIELDS = 200


async def read_fields(request: Request) -> tuple[dict[str, Any], bytes | None]:
    """Return the fields of a JSON body or a form, names in brackets as mappings, and the image sent with them."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        body = parse_json(await request.body(), "body", remedy="send a JSON object")
        if not isinstance(body, dict):
            raise InputError(f"expected a JSON object, got {type(body).__name__}")
        return _without_image(body, None)
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise HTTPException(415, f"expected multipart/form-data or application/json, got {kind[:80] or 'nothing'}")
    fields: dict[str, Any] = {}
    upload: bytes | None = None
    async with request.form(max_files=1, max_fields=_MOST_FIELDS) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != "input_reference":
                    raise FieldError(name, f"{name[:80]}: expected no file; input_reference takes an image")
                upload = await value.read()
            else:
                _put(fields, name, value)
    return _without_image(fields, upload)


def _put(fields: dict[str, Any], name: str, value: str) -> None:
    """Set a field of a form; "guidance[s2_scale]" is a setting of the mapping `guidance`. The last of a name counts."""
    outer, bracket, inner = name.partition("[")
    if not bracket:
        fields[name] = value
        return
    section = fields.setdefault(outer, {})
    if not (inner.endswith("]") and isinstance(section, dict)):
        raise FieldError(name, f"{name[:80]}: expected a name such as guidance[s2_scale]")
    section[inner.removesuffix("]")] = value


def _without_image(fields: dict[str, Any], upload: bytes | None) -> tuple[dict[str, Any], bytes | None]:
    reference = fields.pop("input_reference", None)
    if isinstance(reference, Mapping):
        reference = reference.get("image_url")
    if not reference:
        return fields, upload
    if upload is not None or not isinstance(reference, str):
        raise FieldError("input_reference", "input_reference: expected one image, as a file or as a data URL")
    return fields, decoded_data_url(reference)
