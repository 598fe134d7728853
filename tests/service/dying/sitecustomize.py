"""Has a gateway die at one of its writes: the file ``DIE_AT`` says at which, and whether before it or after it.

``LEASE_SECONDS`` shortens the lease of a gateway.

Python imports this module by itself when its folder is in PYTHONPATH.
"""

import itertools
import os
import sys
from pathlib import Path

if "gateway" in sys.orig_argv and "DIE_AT" in os.environ:
    from percore.gateway.store.database import Database

    together, count, path = Database._together, itertools.count(1), Path(os.environ["DIE_AT"])

    def dying(self, batch):  # type: ignore[no-untyped-def]
        wanted = path.read_text().split() if path.exists() else ["", ""]
        now = bool(wanted[0]) and str(next(count)) == wanted[0]
        if now and wanted[1] == "before":
            path.unlink()
            os._exit(9)
        outcomes = together(self, batch)
        if now:
            path.unlink()
            os._exit(9)
        return outcomes

    Database._together = dying  # type: ignore[method-assign]

if "gateway" in sys.orig_argv and "LEASE_SECONDS" in os.environ:
    from percore.gateway.store import stored_calls

    stored_calls.LEASE_SECONDS = float(os.environ["LEASE_SECONDS"])
    stored_calls.OWN_LEASE_SECONDS = stored_calls.LEASE_SECONDS / 2
    stored_calls.RENEW_SECONDS = stored_calls.LEASE_SECONDS / 6
