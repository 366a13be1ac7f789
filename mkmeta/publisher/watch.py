"""The safety net for publishers that call no hook: looks at the volume, and takes what `mkmeta release` would.

Nothing is remembered from pass to pass: the manifest says what is published, the pointer when. Two watchers look at the
same, and the lock of `release` has the second find nothing new.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from mkmeta.errors import LockedError, MkmetaError, UsageError, printable
from mkmeta.linux.private_mount import open_private
from mkmeta.manifest.reader import ManifestReader
from mkmeta.pattern import Patterns
from mkmeta.publisher.arrival import Clock, Coverage, clock_of, coverage, release_of, topmost, why_unfinished
from mkmeta.publisher.levels import Barren, Looked, Part, look_at_levels
from mkmeta.publisher.release import Released, Request, announce_again, check_as_published, release
from mkmeta.publisher.site import Site
from mkmeta.scanner.options import OnError


@dataclass
class Pass:
    """What one pass saw and did."""

    looked: Looked = field(default_factory=Looked)
    private: bool = False  # through a mount of its own
    waiting: list[tuple[bytes, str]] = field(default_factory=list)  # not complete yet, and why
    failed: list[tuple[bytes, str]] = field(default_factory=list)  # could not be published, and why
    taken: list[bytes] = field(default_factory=list)  # new or gone, and published
    published: int = 0  # how often the pointer was written
    again: dict[bytes, float] = field(default_factory=dict)  # levels to be looked at again, after so many seconds
    select: Patterns = field(default_factory=lambda: Patterns(()))  # by which it looked


def watch_once(
    site: Site,
    *,
    part: Part | None = None,
    barren: Barren | None = None,
    max_rate: float | None = None,
    dry_run: bool = False,
    say: Callable[[str], None] = lambda _text: None,
) -> Pass:
    """One pass: at all levels, or at a part; `barren` is what passes before remember.

    Raises MkmetaError when nothing is published yet, or with other rules than the layer file has now, when the volume
    or the manifest cannot be read, or most of it seems to be gone; UsageError when the pointer is among releases.
    """
    done = Pass()
    if not os.path.lexists(site.manifest):  # what is half copied just now would be taken for all there is
        hint = "mkmeta release, once, when nobody is copying"
        raise MkmetaError("nothing is published yet", path=site.manifest, hint=hint)
    try:
        volume, done.private = open_private(site.root)
    except OSError as error:
        raise MkmetaError(f"the volume cannot be opened: {error.strerror}", path=site.root) from None
    try:
        with ManifestReader.open(site.manifest) as reader:
            options = site.scan_options(reader, (), OnError.FAIL)
            check_as_published(reader, options)
            select, hide = Patterns(options.select or (b"*",)), Patterns(options.hide)
            done.select = select
            own = _pointer_directory(site, reader, select, hide)
            done.looked = look_at_levels(volume, reader, part=part, skip=own, max_rate=max_rate, barren=barren)
        _check_there(site, done.looked)
        complete = _complete(site, volume, select, done)
    finally:
        os.close(volume)
    paths = topmost([*complete, *done.looked.gone])
    if not dry_run:
        _take(site, paths, done, say)
        if not done.published and done.looked.last_change_ns:
            with contextlib.suppress(LockedError):  # who publishes just now tells the hosts as well
                done.published += announce_again(site, done.looked.last_change_ns)
    return done


def carry_over(before: Pass, done: Pass) -> None:
    """Adds to a pass what the one before has found where this one, which looked at a part, did not look."""
    levels = done.looked.levels
    names_of = [level.split(b"/") for level in levels]
    above = {b"/".join(names[:depth]) for names in names_of for depth in range(1, len(names) + 1)}

    def kept(rows: list[tuple[bytes, str]]) -> list[tuple[bytes, str]]:
        return [row for row in rows if os.path.dirname(row[0]) not in levels and row[0] not in above]

    done.looked.changed += kept(before.looked.changed)
    done.looked.unreadable += kept(before.looked.unreadable)
    done.failed += kept(before.failed)
    done.waiting += kept(before.waiting)


def _pointer_directory(site: Site, reader: ManifestReader, select: Patterns, hide: Patterns) -> bytes | None:
    """The path on the volume of the directory that we write to ourselves; None: it is elsewhere.

    Raises UsageError when it is one that is looked at, or recorded: then each pass would see what the one before wrote.
    """
    top = os.path.realpath(site.root).rstrip(b"/") + b"/"
    directory = os.path.realpath(os.path.dirname(os.path.abspath(site.pointer))).rstrip(b"/") + b"/"
    if not directory.startswith(top):
        return None
    path = directory[len(top) :].rstrip(b"/")
    pointer = os.path.join(path, os.path.basename(site.pointer))
    if (
        not path
        or coverage(path, select, hide) is Coverage.WHOLE
        or coverage(pointer, select, hide, is_directory=False) is Coverage.WHOLE
        or reader.find(path) is not None
    ):
        raise UsageError(
            "the pointer needs a directory of its own, which nothing selects",
            path=site.pointer,
            hint="move it into one, as .mkmeta/NAME.json on the volume, or hide that: 'hide' in the layer file",
        )
    return path


def _complete(site: Site, volume: int, select: Patterns, done: Pass) -> list[bytes]:
    """What is new and complete; what is not goes to those that wait."""
    found = []
    clock = Clock(0, 0.0)
    if done.looked.new and site.rules.quiet > 0:
        clock = clock_of(os.stat(site.root).st_dev, site.pointer)
    waiting: dict[bytes, str] = {}
    for path in done.looked.new:
        release_path = release_of(path, select)
        unfinished = why_unfinished(volume, path, release_path, site.rules, clock)
        if unfinished is None:
            found.append(path)
            continue
        waiting.setdefault(release_path, unfinished.why)
        if unfinished.seconds is not None:
            level = os.path.dirname(path)
            done.again[level] = min(unfinished.seconds, done.again.get(level, unfinished.seconds))
    done.waiting += waiting.items()
    return found


def _check_there(site: Site, looked: Looked) -> None:
    """Raises MkmetaError when so much is gone that it is rather the volume that is not there."""
    at_top = sum(b"/" not in path for path in looked.gone)
    if at_top and 2 * at_top > looked.recorded_at_top and looked.recorded_at_top > 1:
        raise MkmetaError(
            f"{at_top} of {looked.recorded_at_top} names at the top are gone: nothing is taken out of the layer",
            path=site.root,
            hint="see whether the volume is mounted; if that is right: mkmeta release",
        )


def _take(site: Site, paths: tuple[bytes, ...], done: Pass, say: Callable[[str], None]) -> None:
    """Publishes all at once; if that fails, each by itself: one that is broken does not keep back the others."""
    if not paths:
        return
    try:
        _count(done, release(site, Request(paths=paths), lambda step: say(f"{step.name}: {step.text}")), paths)
        return
    except LockedError:
        raise
    except MkmetaError as error:
        if len(paths) == 1:
            done.failed.append((paths[0], str(error)))
            return
    for path in paths:
        try:
            _count(done, release(site, Request(paths=(path,))), (path,))
        except MkmetaError as error:
            done.failed.append((path, str(error)))
            say(f"not published: {printable(path)}: {error}")


def _count(done: Pass, released: Released, paths: tuple[bytes, ...] = ()) -> None:
    done.taken += paths
    done.published += released.published is not None and released.published.written
