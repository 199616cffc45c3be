"""What a split's files are like: found out once, and kept until one of them changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.data.decoding import OnBroken, read_header, read_image
from lightning_cnnopt.data.folder.cache import only_one, read_json, write_json
from lightning_cnnopt.data.folder.listing import Files
from lightning_cnnopt.data.folder.packed import beside
from lightning_cnnopt.data.folder.workers import Problem, attempt, check_problem, in_workers, parts_of

FORMAT = 1
T = TypeVar("T")
Content = dict[str, Any]
_PART = 256


@dataclass(frozen=True)
class Survey:
    """What there is.

    Args:
        sizes: How many images there are of each height and width, the commonest first.
        grey: Whether all of them are.
    """

    sizes: dict[tuple[int, int], int]
    grey: bool

    @property
    def words(self) -> str:
        """The sizes, for a message."""
        told = [f"{count:,} of {height}x{width}" for (height, width), count in list(self.sizes.items())[:3]]
        more = f" and {len(self.sizes) - len(told):,} more" if len(self.sizes) > len(told) else ""
        return f"{len(self.sizes):,} size{'s' if len(self.sizes) > 1 else ''} (height x width): {', '.join(told)}{more}"


def survey(files: Files, name: Path, split: str, on_broken: OnBroken, workers: int) -> Survey:
    """Read the head of every file.

    Args:
        files: Those of a split.
        name: Of the file in which it is kept, without its ending. Where it can't be written, every run looks again.
        split: The split's name, for messages.
        on_broken: ``"raise"``, or ``"skip"`` to leave broken files out of it.
        workers: How many processes share the work.

    Raises:
        DataError: If a file is broken or can't be read, naming it.
    """

    def look() -> Content:
        sizes: Counter[tuple[int, int]] = Counter()
        grey, broken = True, {}
        for heads in in_workers(_Heads(files), parts_of(len(files), _PART), workers, f"Looking at {split}"):
            for head in heads:
                if isinstance(head, Problem):
                    check_problem(head, on_broken)
                    broken[str(head.place)] = head.reason
                else:
                    sizes[head[:2]] += 1
                    grey = grey and head[2]
        return {"sizes": [[*size, count] for size, count in sizes.most_common()], "grey": grey, "broken": broken}

    def read(content: Content) -> Survey:
        for place, reason in content["broken"].items():
            check_problem(Problem(int(place), reason, True), on_broken)
        if not content["sizes"]:
            raise DataError(f"ImageFolder: all {len(files):,} images of {split} are broken.")
        return Survey({(height, width): count for height, width, count in content["sizes"]}, content["grey"])

    return _kept(beside(name, ".survey.json"), files, f"looking at the images of {split}", look, read)


def find_broken(files: Files, name: Path, split: str, workers: int) -> dict[int, str]:
    """Decode every file to find those that are broken, for a run that decodes while training and skips them.

    Args:
        files: Those of a split.
        name: Of the file in which it is kept, without its ending. Where it can't be written, every run looks again.
        split: The split's name, for messages.
        workers: How many processes share the work.

    Returns:
        Reasons by the files' places.

    Raises:
        DataError: If a file can't be read, naming it.
    """

    def look() -> Content:
        broken = {}
        for problems in in_workers(_Check(files), parts_of(len(files), _PART // 8), workers, f"Checking {split}"):
            for problem in problems:
                check_problem(problem, "skip")
                broken[str(problem.place)] = problem.reason
        return {"broken": broken}

    def read(content: Content) -> dict[int, str]:
        return {int(place): reason for place, reason in content["broken"].items()}

    return _kept(beside(name, ".broken.json"), files, f"checking the images of {split}", look, read)


def tell_broken(split: str, broken: dict[int, str], count: int) -> None:
    """Say which images are left out.

    Args:
        split: The split's name.
        broken: Reasons by the files' places.
        count: How many files there are.

    Raises:
        DataError: If all of them are.
    """
    reasons = list(broken.values())
    if len(reasons) == count:
        raise DataError(f"ImageFolder: all {count:,} images of {split} are broken: {reasons[0]}")
    more = f" And {len(reasons) - 3:,} more." if len(reasons) > 3 else ""
    first = " ".join(reasons[:3])
    rank_zero_warn(f"ImageFolder: {len(reasons):,} of {count:,} images of {split} are broken and left out: {first}{more}")


@dataclass(frozen=True)
class _Heads:
    files: Files

    def __call__(self, index: list[int]) -> list[tuple[int, int, bool] | Problem]:
        return [attempt(read_header, self.files.root / self.files.names[i], i) for i in index]


@dataclass(frozen=True)
class _Check:
    files: Files

    def __call__(self, index: list[int]) -> list[Problem]:
        found = [attempt(read_image, self.files.root / self.files.names[i], i) for i in index]
        return [result for result in found if isinstance(result, Problem)]


def _kept(path: Path, files: Files, doing: str, look: Callable[[], Content], read: Callable[[Content], T]) -> T:
    known = _read(path, files, read)
    if known is not None:
        return known
    try:
        with only_one(beside(path, ".lock"), doing):
            known = _read(path, files, read)
            if known is None:
                content = look()
                write_json(path, {"format": FORMAT, "fingerprint": files.fingerprint, **content})
                known = read(content)
            return known
    except OSError as error:
        rank_zero_info(f"{path.parent} can't be written ({error.strerror or error}), so each run is {doing} anew.")
        return read(look())


def _read(path: Path, files: Files, read: Callable[[Content], T]) -> T | None:
    content = read_json(path)
    if content is None or content["format"] != FORMAT or content["fingerprint"] != files.fingerprint:
        return None
    return read(content)
