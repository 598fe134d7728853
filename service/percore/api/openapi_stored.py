"""The parts of the OpenAPI document about stored calls.

Read by ``openapi`` alone. If calls are not stored, the headers have no effect. Standard library only.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

_STRING: Json = {"type": "string"}
_SIZE: Json = {"type": "integer", "minimum": 0}
_TIME: Json = {"type": ["string", "null"], "description": "RFC 3339, UTC."}

CALL_ID: Json = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
PREFER_WAIT = ("`wait=60`: answer when the call has ended, or after so many seconds, at most 600.", _STRING)
OPTIONS: dict[str, tuple[str, str, Json]] = {
    "prefer": (
        "Prefer",
        "`respond-async`: store the call and answer 202. `respond-async, wait=20`: the answer itself if it is there in time.",
        {"anyOf": [{"enum": ["respond-async", "respond-async, wait=1"]}, _STRING]},
    ),
    "idempotencyKey": (
        "Idempotency-Key",
        "Stored calls only: the same key and the same request give the same receipt.",
        {"type": "string", "pattern": "^[!-~][ -~]{0,254}$"},
    ),
    "startWithin": (
        "Percore-Start-Within",
        "Stored calls only: seconds in which the call must begin; otherwise it expires.",
        {"type": "integer", "minimum": 1, "maximum": 2592000},
    ),
    "maxRuns": (
        "Percore-Max-Runs",
        "Stored calls only: the call fails when so many pods were lost while they computed it.",
        {"type": "integer", "minimum": 1, "maximum": 10},
    ),
    "webhook": ("Percore-Webhook", "Stored calls only: a URL that gets a signed POST when the call has ended.", _STRING),
}
"""Parameters of a call: name, description, schema."""
RECEIPT_HEADERS: Json = {
    "Location": {"description": "The path of the stored call.", "schema": _STRING},
    "Preference-Applied": {"description": "Which preferences were followed.", "schema": _STRING},
}


def _object(properties: Json, required: list[str] | None = None) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties) if required is None else required}


_RUN = _object({"number": _SIZE, "pod": _STRING, "began": _TIME, "ended": _TIME, "end": {"type": ["string", "null"]}})
_STATUS: Json = {
    "id": CALL_ID,
    "state": {"enum": ["queued", "running", "cancelling", "succeeded", "failed", "cancelled", "expired"]},
    "method": _STRING,
    "path": _STRING,
    "request_id": _STRING,
    "priority": {"type": "integer", "minimum": 0, "maximum": 9},
    "position": {"type": ["integer", "null"], "description": "Queued calls that run before this one."},
    "created": _TIME,
    "started": _TIME,
    "finished": _TIME,
    "start_by": _TIME,
    "kept_until": _TIME,
    "request_bytes": _SIZE,
    "max_runs": _SIZE,
    "runs": {"type": "array", "items": _RUN},
    "links": _object({"self": _STRING, "result": _STRING}),
    "result": _object({"status": _SIZE, "bytes": _SIZE}),
}
STORED_SCHEMAS: Json = {"StoredCall": _object(_STATUS, [name for name in _STATUS if name != "result"])}
