"""Its import starts a thread."""

import logging
import threading
import time

logging.getLogger("tests").warning("this process imports the module")
threading.Thread(target=time.sleep, args=(3600,), name="of-the-module", daemon=True).start()
