"""Makes a gateway die at one of its writes. The file ``DIE_AT`` has the number of the write, and whether to die before or after
it.

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
