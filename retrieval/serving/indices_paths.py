"""clip-retrieval's ``indices_paths.json``: which indexes there are, and which columns they return.

Two shapes, also mixed: ``{"name": "folder"}`` and ``{"name": {"indice_folder": ..., ...}}``. Each
entry stands for itself. (clip-retrieval lets the options of one apply to those after it.)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .problems import ServingError
from .served import KNN_COLUMNS

# Of ClipOptions in clip-retrieval 2.45.0: how it loads its own kind of index. Ours need none.
_WITHOUT_EFFECT = frozenset(
    {
        "clip_model",
        "enable_faiss_memory_mapping",
        "enable_hdf5",
        "enable_mclip_option",
        "provide_aesthetic_embeddings",
        "provide_safety_model",
        "provide_violence_detector",
        "reorder_metadata_by_ivf_index",
        "use_arrow",
        "use_jit",
    }
)


@dataclass(frozen=True)
class IndexEntry:
    """An entry of the file.

    Parameters
    ----------
    name : str
    folder : Path
        An index of voxseek; relative ones are relative to the file.
    columns : tuple of str
        That ``/knn-service`` returns.
    """

    name: str
    folder: Path
    columns: tuple[str, ...] = KNN_COLUMNS


def read_indices_paths(path: Path) -> list[IndexEntry]:
    """Return the entries of a file, in its order.

    Raises
    ------
    ServingError
        If it can't be read, is of another shape, or has an unknown option.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ServingError(f"{path} can't be read as JSON: {error}.") from error
    if not isinstance(content, dict) or not content:
        raise ServingError(f'{path} is no object with entries; expected {{"name": "folder"}}.')
    return [_entry(path, name, value) for name, value in content.items()]


def _entry(path: Path, name: str, value: object) -> IndexEntry:
    if isinstance(value, str):
        return IndexEntry(name, path.parent / value)
    folder = value.get("indice_folder") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(folder, str):
        raise ServingError(
            f"{path}: entry {name!r} is {value!r}, expected a folder, or an object with "
            f"indice_folder."
        )
    unknown = sorted(set(value) - _WITHOUT_EFFECT - {"indice_folder", "columns_to_return"})
    if unknown:
        raise ServingError(f"{path}: entry {name!r} has the unknown option {unknown[0]!r}.")
    columns = value.get("columns_to_return") or KNN_COLUMNS
    if not all(isinstance(column, str) for column in columns):
        raise ServingError(f"{path}: entry {name!r}: columns_to_return is {columns!r}.")
    return IndexEntry(name, path.parent / folder, tuple(columns))
