"""Find the models in the fetched files, and put them into the layout of a repository: ``NAME/VERSION/...``."""

from __future__ import annotations

from pathlib import Path

from percore import model_store
from percore.errors import LoadError
from percore.handlers import files


def arrange(tree: Path, into: Path, name: str, version: int) -> None:
    """Move the content of ``tree`` to ``into`` as a repository. ``into`` must not exist yet.

    ``tree`` holds a repository, the versions of one model, or one version. If it is not a repository, it gets ``name``. If it
    is one version, it also gets ``version``. If there is a single folder around all files, as in many archives, its content is
    used. Raises LoadError.
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
            raise LoadError(f"the fetched files have no models; expected {model_store.LAYOUT}, or one model's folder")
        tree = folders[0]
    model_store.scan(into, {})


def _are_versions(folders: list[Path]) -> bool:
    return any(each.name.isascii() and each.name.isdigit() and files.platform(each) is not None for each in folders)
