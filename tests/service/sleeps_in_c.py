"""Its import sleeps inside of C for an hour."""

import ctypes
import logging
import os

logging.getLogger("tests").warning("inside of C")
library = ctypes.PyDLL(None) if "KEEPS_THE_LOCK" in os.environ else ctypes.CDLL(None)
library.sleep(3600)
