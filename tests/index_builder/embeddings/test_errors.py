from __future__ import annotations

import pytest

from index_builder.embeddings import errors


def test_every_error_is_a_voxseek_error_and_in_the_picture() -> None:
    kinds = {name: kind for name, kind in vars(errors).items() if name.endswith("Error")}
    assert all(issubclass(kind, errors.VoxseekError) for kind in kinds.values())
    assert all(name in (errors.__doc__ or "") for name in kinds)


def test_rows_out_of_range_are_index_errors_too() -> None:
    assert issubclass(errors.RowRangeError, IndexError)


def test_a_missing_extra_names_the_command() -> None:
    message = (
        r"torch is not installed, and training needs it\. "
        r"Install it with: pip install 'voxseek\[train\]'"
    )
    with pytest.raises(errors.MissingExtraError, match=message):
        raise errors.MissingExtraError("torch", "train", "training")
