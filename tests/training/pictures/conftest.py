from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 30
BROKEN = b"\x89PNG but not really"


def picture_bytes(rng: np.random.Generator, form: str = "PNG", side: int = 12) -> bytes:
    buffer = BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, form)
    return buffer.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    return path


def sample_files(key: str, picture: bytes, **facts: Any) -> dict[str, bytes]:
    """Return the three files of a sample, as img2dataset writes them."""
    content = {"key": key, "caption": f"of {key}", "status": "success", **facts}
    return {
        f"{key}.jpg": picture,
        f"{key}.txt": f"of {key}".encode(),
        f"{key}.json": json.dumps(content).encode(),
    }


def checksums(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
