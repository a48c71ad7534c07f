"""Fetching archives: what is there is used, what was begun is continued, what is not the expected file is refused."""

import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from cisskit import __version__
from cisskit.errors import KitError

TIMEOUT = 60.0
"""Seconds without a byte."""
CHUNK = 2**18


class Archive(NamedTuple):
    """A file with a public address."""

    name: str
    url: str
    size: int
    digest: str
    """Algorithm and digest, ``"md5:6cd6.."``; of the algorithm that its publisher, or a library that ships it, gives."""


def fetch(archive: Archive, folder: Path) -> Path:
    """The archive in ``folder``: the file that lies there, whatever it is, or else the published one.

    A download is written to ``<name>.part``; a later call continues it. Raises `KitError` when the server cannot be reached,
    sends another file, or stops in the middle; nothing is called ``<name>`` before its digest was right.
    """
    target, part = folder / archive.name, folder / f"{archive.name}.part"
    if target.is_file():
        return target
    try:
        _download(archive, part)
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        raise KitError(
            f"cannot fetch {archive.url}: {error}. Run the same command again, it continues after {_size(part)} bytes; or fetch "
            f"it in another way and put it to {target}."
        ) from error
    _verify(archive, part)
    part.rename(target)
    return target


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _download(archive: Archive, part: Path) -> None:
    if _size(part) > archive.size:  # of another version; it can only be fetched anew
        part.unlink()
    start = _size(part)
    if start == archive.size:
        return
    free = shutil.disk_usage(part.parent).free
    if free < archive.size - start:
        raise KitError(f"{archive.name} needs {archive.size - start} bytes, {part.parent} has {free} left. Make room, run again.")
    headers = {"User-Agent": f"cisskit/{__version__}"} | ({"Range": f"bytes={start}-"} if start else {})
    print(f"fetching {archive.url}" + (f", from byte {start} on" if start else ""), flush=True)
    with urllib.request.urlopen(urllib.request.Request(archive.url, headers=headers), timeout=TIMEOUT) as response:
        if response.status != http.client.PARTIAL_CONTENT:  # a server that cannot continue sends everything
            start = 0
        offered = _offered(response, start)
        if offered is not None and offered != archive.size:
            raise KitError(
                f"{archive.url} offers {offered} bytes, {archive.size} are expected: the file there is another one. Nothing was "
                f"fetched. Get {archive.name} elsewhere and put it to {part.parent}."
            )
        with (
            part.open("ab" if start else "wb", buffering=0) as out,  # unbuffered: what has arrived survives a kill
            tqdm(total=archive.size, initial=start, unit="B", unit_scale=True, desc=archive.name, disable=None) as bar,
        ):
            while start < archive.size and (chunk := response.read(min(CHUNK, archive.size - start))):
                out.write(chunk)
                start += len(chunk)
                bar.update(len(chunk))
    if start < archive.size:
        raise OSError(f"the connection ended after {start} of {archive.size} bytes")


def _offered(response: http.client.HTTPResponse, start: int) -> int | None:
    """Size of the whole file by the server's word, None if it does not say. Raises `KitError` for another part than asked for."""
    if not start:
        length = response.headers.get("Content-Length")
        return int(length) if length else None
    told = response.headers.get("Content-Range", "")  # "bytes 100-999/1000"
    if not told.startswith(f"bytes {start}-"):
        raise OSError(f"byte {start} was asked for, the server sent {told or 'an unknown part'}")
    total = told.rpartition("/")[2]
    return int(total) if total.isdigit() else None


def _verify(archive: Archive, part: Path) -> None:
    algorithm, _, expected = archive.digest.partition(":")
    with part.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        wrong = part.with_name(f"{archive.name}.wrong")
        part.replace(wrong)
        raise KitError(
            f"{archive.url} is not the published file: {algorithm} {found}, expected {expected}. It was kept as {wrong} and is "
            "not used. Run the same command again to fetch it anew."
        )
