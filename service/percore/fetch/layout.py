"""Find the models in what was fetched, and put them into the layout that is served: ``NAME/VERSION/...``."""

from __future__ import annotations

from pathlib import Path

from percore import model_store
from percore.errors import LoadError
from percore.handlers import files


def arrange(tree: Path, into: Path, name: str, version: int) -> None:
    """Move what is in ``tree`` to ``into``, which does not exist yet, as a repository.

    ``tree`` holds a repository, the versions of one model, or one version. The latter two get ``name``, and the last also gets
    ``version``. A folder around all of it, as archives often have, is looked into. Raises LoadError.
    """
    while True:
        if files.platform(tree) is not None:
            (into / name).mkdir(parents=True)
            tree.rename(into / name / str(version))
            break
        folders = [each for each in tree.iterdir() if each.is_dir()]
        if _are_versions(folders):
            into.mkdir()
            tree.rename(into / name)
            break
        if any(_are_versions([below for below in each.iterdir() if below.is_dir()]) for each in folders):
            tree.rename(into)
            break
        if len(folders) != 1:
            raise LoadError(f"what was fetched holds no models; expected {model_store.LAYOUT}, or one model's folder")
        tree = folders[0]
    model_store.scan(into, {})


def _are_versions(folders: list[Path]) -> bool:
    return any(each.name.isascii() and each.name.isdigit() and files.platform(each) is not None for each in folders)
