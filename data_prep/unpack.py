"""Unpacking archives of strangers: into a folder of their own, which appears under its name when it is complete."""

import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from cisskit.errors import KitError

PREFIX = ".data_prep-"
"""Start of the names of our temporary folders."""
FOUND = "found in place"
"""Origin of a folder that was there before us."""
LARGEST = 100 * 2**30
"""Bytes that an archive may unpack to: more than any data set here has, less than what fills a disk on purpose."""


@contextmanager
def workplace(place: Path, what: str) -> Iterator[Path]:
    """A new folder inside ``place``; gone afterwards, whatever happens. What killed runs left there goes first.

    Only the holder of the lock of DATA comes here, so such folders belong to nobody. Raises `KitError` when the disk is full.
    """
    try:
        for left in place.glob(f"{PREFIX}*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=place, prefix=PREFIX) as folder:
            yield Path(folder)
    except OSError as error:
        raise KitError(f"cannot make {what} in {place}: {error}. Nothing was changed; mend that and run again.") from error


def move(made: Path, target: Path) -> None:
    """Give a complete file or folder its name. Raises `KitError` when the name is taken."""
    if target.exists():
        raise KitError(f"{target} has appeared in the meantime; it is kept. Run again.")
    target.parent.mkdir(parents=True, exist_ok=True)
    made.rename(target)


@contextmanager
def _read(archive: Path) -> Iterator[None]:
    try:
        yield
    except tarfile.FilterError as error:
        raise _refused(archive, str(error)) from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise KitError(f"cannot unpack {archive}: {error}. It is damaged or incomplete; fetch it again.") from error
    except (RuntimeError, NotImplementedError) as error:  # of zipfile: a password, or a rare compression
        raise KitError(f"cannot unpack {archive}: {error}. Unpack it by hand and pack it again as a plain zip.") from error


def _refused(archive: Path, why: str) -> KitError:
    return KitError(f"{archive} was not unpacked: {why}. Do not trust this archive; get it from its publisher.")


def _check_total(archive: Path, total: int) -> None:
    if total > LARGEST:
        raise _refused(archive, f"it would become {total} bytes, {LARGEST} are the limit")


def untar(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Unpack the files of a tar whose path is ``wanted`` into ``folder``.

    Raises `KitError` for a damaged archive, and for one that reaches outside with any member, also an unwanted one.
    """
    with _read(archive), tarfile.open(archive) as tar:
        members = tar.getmembers()
        _check_total(archive, sum(member.size for member in members))
        for member in members:
            tarfile.data_filter(member, str(folder))
        chosen = [m for m in members if m.isfile() and wanted(m.name.removeprefix("./"))]
        tar.extractall(folder, members=chosen, filter="data")


def unzip(archive: Path, folder: Path, wanted: Callable[[PurePosixPath], PurePosixPath | None]) -> int:
    """Unpack a zip into ``folder`` and count the files. wanted: path in the archive -> path in ``folder``, or None.

    Raises `KitError` for a damaged archive, for two files of one path, and for an archive that holds a link or reaches outside
    with any member, also an unwanted one.
    """
    with _read(archive), zipfile.ZipFile(archive) as packed:
        chosen: dict[PurePosixPath, zipfile.ZipInfo] = {}
        # zipfile reads no more of a member than its header says, so the sum of the headers bounds what is written
        _check_total(archive, sum(member.file_size for member in packed.infolist()))
        for member in packed.infolist():
            path = PureWindowsPath(member.filename)  # knows both kinds of slashes, and drives
            if path.drive or path.root or ".." in path.parts:
                raise _refused(archive, f"{member.filename!r} reaches outside its folder")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise _refused(archive, f"{member.filename!r} is a link")
            target = None if member.is_dir() or "__MACOSX" in path.parts else wanted(PurePosixPath(*path.parts))
            if target is None:
                continue
            if target in chosen:
                raise _refused(archive, f"{chosen[target].filename!r} and {member.filename!r} would be one file")
            chosen[target] = member
        for target, member in chosen.items():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            with packed.open(member) as data, open(folder / target, "xb") as out:
                shutil.copyfileobj(data, out, 2**20)
    return len(chosen)
