"""Tar shards: what is in one, and whether one is whole."""

from __future__ import annotations

import tarfile
from pathlib import Path

CHUNK_BYTES = 1 << 20


def tar_members(path: str | Path) -> tuple[list[str], bool]:
    """Names of the files in a tar up to where it breaks off, and whether it does not.

    `tarfile` ends in silence at a header that is damaged or cut, as if the archive ended there. One that is whole ends
    with blocks of zeros and nothing else. An empty file is whole: it holds nothing.
    """
    names: list[str] = []
    if Path(path).stat().st_size == 0:
        return names, True
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    names.append(member.name)
            file = archive.fileobj
            assert file is not None
            file.seek(archive.offset)  # behind the last member that was understood
            chunk = file.read(CHUNK_BYTES)
            is_whole = len(chunk) >= tarfile.BLOCKSIZE
            while chunk and is_whole:
                is_whole = not chunk.strip(b"\0")
                chunk = file.read(CHUNK_BYTES)
    except Exception:  # tarfile and the decompressors raise many kinds
        return names, False
    return names, is_whole


def tar_is_whole(path: str | Path) -> bool:
    """Whether a tar can be read to its end; reads its headers and what is behind the last member."""
    return tar_members(path)[1]
