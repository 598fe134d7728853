"""Names of modules in the package are unique, so a name is enough to find a module."""

from collections import Counter
from pathlib import Path

import percore

ROOT = Path(percore.__file__).parent


def test_no_two_modules_have_the_same_name() -> None:
    names = Counter(path.name for path in ROOT.rglob("*.py") if not path.name.startswith("__"))
    assert [name for name, count in names.items() if count > 1] == []
