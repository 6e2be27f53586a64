"""Tar shards: what is in one, and whether one is whole."""

from __future__ import annotations

import tarfile
from pathlib import Path

SHARD_SUFFIXES = (".tar", ".parquet")
CHUNK_BYTES = 1 << 20


def tar_members(path: str | Path) -> tuple[list[str], bool]:
    """Names of the files in a tar up to where it breaks off, and whether it does not.

    An empty file is whole: it holds nothing.
    """
    names: list[str] = []
    if Path(path).stat().st_size == 0:
        return names, True
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    names.append(member.name)
            return names, is_whole(archive)
    except Exception:  # tarfile and the decompressors raise many kinds
        return names, False


def is_whole(archive: tarfile.TarFile) -> bool:
    """Whether an open tar, whose members have all been gone through, ends there.

    `tarfile` ends in silence at a header that is damaged or cut, as if the archive ended there. One that is whole ends
    with blocks of zeros and nothing else.
    """
    file = archive.fileobj
    assert file is not None
    file.seek(archive.offset)  # behind the last member that was understood
    chunk = file.read(CHUNK_BYTES)
    is_zero = len(chunk) >= tarfile.BLOCKSIZE
    while chunk and is_zero:
        is_zero = not chunk.strip(b"\0")
        chunk = file.read(CHUNK_BYTES)
    return is_zero
