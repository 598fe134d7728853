"""Makes leases and timeouts of gateways shorter: ``SHRINK`` has new values for constants of ``stored_calls`` and ``database``.

Python imports this module by itself when its folder is in PYTHONPATH.
"""

import os
import sys

if "gateway" in sys.orig_argv and "SHRINK" in os.environ:
    from percore.gateway.store import database, stored_calls

    for each in os.environ["SHRINK"].split():
        name, _, value = each.partition("=")
        [module] = [module for module in (database, stored_calls) if name in vars(module)]
        setattr(module, name, float(value))
