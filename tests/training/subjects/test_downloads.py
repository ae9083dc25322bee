from __future__ import annotations

from pathlib import Path

import pytest

from training.errors import SourceError
from training.subjects.downloads import describe_files, require_download

WHAT = "a table"


def test_a_whole_file_passes_and_its_description_follows_its_content(tmp_path: Path) -> None:
    file = tmp_path / "a.h5"
    file.write_bytes(b"\x89HDF")
    assert require_download(file, WHAT) == file
    before = describe_files([file])
    file.write_bytes(b"\x89HDF5")
    assert describe_files([file]) != before


def test_what_is_no_whole_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.h5"
    with pytest.raises(SourceError, match=r"a\.h5 is missing, expected a table\. Download it"):
        require_download(file, WHAT)
    (tmp_path / "a.h5.part").write_bytes(b"12")
    for name in ("a.h5", "a.h5.part"):
        with pytest.raises(SourceError, match=rf"{name} is not there yet: its download is unfini"):
            require_download(tmp_path / name, WHAT)
    file.write_bytes(b"")
    with pytest.raises(SourceError, match=r"is empty \(0 bytes\), expected a table\. Download"):
        require_download(file, WHAT)
    file.write_text("\n<!DOCTYPE HTML><title>Sign in</title>")
    with pytest.raises(SourceError, match=r"is a web page saved under the name of a data file"):
        require_download(file, WHAT)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(SourceError, match=r"a\.h5 is a pointer of Git LFS.*git lfs pull"):
        require_download(file, WHAT)
    link = tmp_path / "b.nii.gz"
    link.symlink_to(tmp_path / "annex" / "object")
    with pytest.raises(SourceError, match=r"is a link to nothing.*datalad get b\.nii\.gz"):
        require_download(link, WHAT)
