"""An app whose import waits for a file."""

import os
import time
from pathlib import Path

from flask import Flask

while not Path(os.environ["APP_WAITS_FOR"]).exists():
    time.sleep(0.05)
app = Flask(__name__)
