"""Prints curl lines for the demo models: ``python -m demo.try_it CALLS_URL STATUS_URL``."""

from __future__ import annotations

import json
import sys

# A handwritten seven, as scikit-learn's digits have them: 8 rows of 8 pixels from 0 (paper) to 16 (ink).
SEVEN = [
    *(0, 0, 7, 8, 13, 16, 15, 1),
    *(0, 0, 7, 7, 4, 11, 12, 0),
    *(0, 0, 0, 0, 8, 13, 1, 0),
    *(0, 4, 8, 8, 15, 15, 6, 0),
    *(0, 2, 11, 15, 15, 4, 0, 0),
    *(0, 0, 0, 16, 5, 0, 0, 0),
    *(0, 0, 9, 15, 1, 0, 0, 0),
    *(0, 0, 13, 5, 0, 0, 0, 0),
]


def lines(calls: str, status: str) -> list[str]:
    """Return the commands to type, with a comment on each."""
    image = json.dumps({"instances": [SEVEN]}, separators=(",", ":"))
    return [
        "Serving digits and burn. A call made now waits until the models are loaded, some seconds.",
        "",
        "# which digit is this? (TensorFlow Serving's protocol)",
        f"curl {calls}/v1/models/digits:predict -d '{image}'",
        "",
        "# one core busy for about three seconds; start eleven at once and none of them gets slower",
        f"curl {calls}/v1/models/burn:predict -d '{{\"inputs\": [30000]}}'",
        "",
        "# health, metadata and metrics answer while every core computes",
        f"curl {status}/v1/models/digits/metadata",
        f"curl {status}/metrics",
        "",
        "Ctrl-C stops it when running calls have finished. A second Ctrl-C stops it at once. Here follows the log, as JSON.",
        "",
    ]


if __name__ == "__main__":
    print("\n".join(lines(*sys.argv[1:3])), flush=True)
