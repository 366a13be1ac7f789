"""A release becomes what hosts mount: check, scan, verify, build, publish (docs/release.md).

One publisher at a time, by a lock beside the manifest: what it begins with is what the one before has published, or was
about to. The manifest is replaced when the layer is built, the pointer last: a call that fails or is killed leaves the
pointer as it was, and what it had recorded by then is announced by the next one that succeeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Final, NamedTuple

from mkmeta.digest import ObjectId
from mkmeta.errors import ExitCode, MkmetaError, NothingSelectedError, ScanError, UsageError, printable, reason
from mkmeta.host.following import check_outside_layers
from mkmeta.linux.temporary import TemporaryFile
from mkmeta.manifest.output import atomic_output
from mkmeta.manifest.reader import ManifestReader
from mkmeta.pattern import Patterns
from mkmeta.publisher.arrival import (
    Clock,
    Coverage,
    UnfinishedError,
    clock_of,
    coverage,
    literal,
    relative,
    release_of,
    topmost,
    why_unfinished,
)
from mkmeta.publisher.gate import Gate
from mkmeta.publisher.second_look import second_look
from mkmeta.publisher.site import Site
from mkmeta.scanner.base import other_setting
from mkmeta.scanner.options import OnError, ScanOptions
from mkmeta.scanner.scan import scan
from mkmeta.store.adding import add
from mkmeta.store.generation import Generation
from mkmeta.store.lock import held
from mkmeta.store.pointer import Published, publish, publish_manifest, read_pointer
from mkmeta.store.store import Store
from mkmeta.trees.prune import leave_out
from mkmeta.trees.recorded import Source
from mkmeta.verifier.findings import Finding, Findings
from mkmeta.verifier.looking import Looker

RETIRED: Final = "retired: to be deleted"  # why a path is left out of a manifest
_SHOWN: Final = 3  # of what has changed


class ChangedError(MkmetaError):
    """A release changed while it was published."""

    exit_code = ExitCode.DIFFERENT


class Step(NamedTuple):
    """Something that was done."""

    name: str  # check, scan, retire, verify, predict, build, publish
    seconds: float
    text: str  # what came of it, for people


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be published. Without paths: everything that is selected is looked at."""

    paths: tuple[bytes, ...] = ()  # as users name them
    retire: tuple[bytes, ...] = ()
    on_error: OnError = OnError.FAIL
    dry_run: bool = False
    gate: Gate | None = None  # what the new layer must save


@dataclass(frozen=True, kw_only=True)
class Released:
    """What was done."""

    id: ObjectId
    entries: int  # in the manifest
    published: Published | None  # None: a dry run
    through: tuple[bytes, ...] = ()  # paths that hosts see straight from the volume
    hidden: tuple[bytes, ...] = ()
    gone: tuple[bytes, ...] = ()  # that were recorded, and are no longer on the volume
    left_out: tuple[tuple[bytes, str], ...] = ()  # by this call, with the reason
    steps: tuple[Step, ...] = ()


def release(site: Site, request: Request, tell: Callable[[Step], None] = lambda _step: None) -> Released:
    """Publishes what is on the volume at the paths of a request; `tell` hears of each step when it is done.

    Raises UnfinishedError, ChangedError, TooLittleGainError, NothingSelectedError for what is to be retired and is not
    recorded, LockedError, and as scan, build and publish do. The pointer is then as it was.
    """
    with _locked(site), contextlib.ExitStack() as stack:
        return _Run(site, request, tell, stack).run()


def check_as_published(base: ManifestReader, options: ScanOptions) -> None:
    """Raises MkmetaError when the layer file says other things than what is published was made with.

    Then no part can be added, as what is taken from before would be another selection's.
    """
    key = "select" if base.info.select != options.select else _other_setting(base, options)
    if key is not None:
        raise MkmetaError(
            f"the layer file has another '{key}' than what is published was made with",
            path=options.root,
            hint="mkmeta release without PATH, once, when nobody is copying: it looks at everything",
        )


def _other_setting(base: ManifestReader, options: ScanOptions) -> str | None:
    """A key of the layer file beside 'select'."""
    name = other_setting(
        base,
        hide=options.hide,
        drop_xattrs=options.drop_xattrs,
        digests=options.digests,
        hard_links=options.hard_links,
    )
    return "digests" if name == "digest" else name


def announce_again(site: Site, changed_ns: int) -> bool:
    """Has hosts forget the names they did not find, when some came or went after the pointer was written.

    `changed_ns`: when, by the clock of the volume, which has the pointer too; elsewhere nothing is known, and done.
    Returns whether the pointer was written. Raises LockedError, and as publishing does.
    """
    with _locked(site), contextlib.ExitStack() as stack:
        try:
            pointer = os.stat(site.pointer)
            if pointer.st_dev != os.stat(site.root).st_dev or changed_ns < pointer.st_mtime_ns:
                return False
        except FileNotFoundError:
            pass  # not published yet
        run = _Run(site, Request(), lambda _step: None, stack)
        base = run._base()
        return base is not None and run._publish(run._build(base), again=True).written


def _locked(site: Site) -> contextlib.AbstractContextManager[int]:
    """The lock of those who publish."""
    directory, name = os.path.split(os.path.realpath(site.manifest))
    if not os.path.isdir(directory):
        raise MkmetaError("the directory it goes into does not exist", path=site.manifest, hint="make it first")
    return held(os.path.join(directory, b".%b.lock" % name), "release", wait=site.wait, note=site.note)


@dataclass(frozen=True, kw_only=True)
class _News:
    """What the paths of a request are."""

    recorded: tuple[bytes, ...] = ()  # selected, or with selected parts
    through: tuple[bytes, ...] = ()
    hidden: tuple[bytes, ...] = ()
    gone: tuple[bytes, ...] = ()
    retire: tuple[bytes, ...] = ()
    forget: tuple[bytes, ...] = ()  # retired before, and gone now

    @property
    def looked_at(self) -> tuple[bytes, ...]:
        """All that came, went or changed: whatever it is, the recorded directories above it are others now."""
        return (*self.recorded, *self.through, *self.hidden, *self.forget)


@dataclass
class _Run:
    """One call, while it has the lock."""

    site: Site
    request: Request
    tell: Callable[[Step], None]
    stack: contextlib.ExitStack
    steps: list[Step] = field(default_factory=list)
    left_out: tuple[tuple[bytes, str], ...] = ()
    nothing: tuple[bytes, ...] = ()  # paths at which nothing is selected after all

    def run(self) -> Released:
        """All of it."""
        site, request = self.site, self.request
        with self._step("check") as say:
            base = self._base()
            options = site.scan_options(base, (), request.on_error)
            if base is not None and request.paths:
                check_as_published(base, options)
            elif base is not None and _other_setting(base, options):  # then nothing that is recorded can be trusted
                options = dataclasses.replace(options, base=None)
            news = self._check(options, base)
            say(_summary(news))
        everything = base is None or not (request.paths or request.retire)
        manifest_id, entries, generation = self._make(base, options, news, everything=everything)
        through = (*news.through, *self.nothing)
        published = None if request.dry_run else self._publish(generation, again=bool(through or news.forget))
        return Released(
            id=manifest_id,
            entries=entries,
            published=published,
            through=through,
            hidden=news.hidden,
            gone=news.gone,
            left_out=self.left_out,
            steps=tuple(self.steps),
        )

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[Callable[[str], None]]:
        """A step; within it, what is given is what it came to."""
        started = time.monotonic()
        said = [""]
        yield lambda text: said.__setitem__(0, text)
        step = Step(name, time.monotonic() - started, said[0])
        self.steps.append(step)
        self.tell(step)

    def _base(self) -> ManifestReader | None:
        """What was published last; None: nothing yet."""
        if not os.path.lexists(self.site.manifest):
            return None
        return self.stack.enter_context(ManifestReader.open(self.site.manifest))

    # --- check ---

    def _check(self, options: ScanOptions, base: ManifestReader | None) -> _News:
        """Sees what the paths are. Raises UsageError, UnfinishedError, NothingSelectedError."""
        site, request = self.site, self.request
        with contextlib.suppress(OSError):  # no such directory: publishing says so
            check_outside_layers(site.pointer)
        select, hide = Patterns(options.select or (b"*",)), Patterns(options.hide)
        paths = topmost([relative(path, site.root) for path in request.paths])
        retire = topmost([relative(path, site.root) for path in request.retire])
        if len(topmost([*paths, *retire])) < len(paths) + len(retire):
            raise UsageError("a path cannot be both released and retired", path=retire[0])
        try:
            volume = os.open(site.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            hint = "nothing was published; see whether it is mounted"
            raise ScanError(f"the volume cannot be opened: {reason(error)}", path=site.root, hint=hint) from None
        self.stack.callback(os.close, volume)
        found: dict[Coverage, list[bytes]] = {kind: [] for kind in Coverage}
        gone: list[bytes] = []
        forget: list[bytes] = []
        asked = paths and site.rules.quiet > 0
        clock = clock_of(os.fstat(volume).st_dev, site.pointer) if asked else Clock(0, 0.0)
        with Looker(volume) as looker:
            for path in paths:
                status = looker.look(path)
                if status is None:
                    gone.append(path)
                    if not self._was_there(base, path):
                        forget.append(path)
                        continue
                else:
                    its = release_of(path, select)
                    if (unfinished := why_unfinished(volume, path, its, site.rules, clock)) is not None:
                        hint = "nothing was published; try again when it is complete"
                        raise UnfinishedError(unfinished.why, path=its, hint=hint)
                is_directory = status is None or stat.S_ISDIR(status.st_mode)
                found[coverage(path, select, hide, is_directory=is_directory)].append(path)
            kept = self._retired_before(base, looker) if not (paths or retire) else ()
        for path in retire:
            if base is None or base.find(path) is None:
                hint = "mkmeta ls shows what is"
                raise NothingSelectedError("is not recorded, and so cannot be retired", path=path, hint=hint)
        return _News(
            recorded=tuple(found[Coverage.WHOLE] + found[Coverage.PARTS]),
            through=tuple(found[Coverage.THROUGH]),
            hidden=tuple(found[Coverage.HIDDEN]),
            gone=tuple(gone),
            retire=retire or kept,
            forget=tuple(forget),
        )

    @staticmethod
    def _was_there(base: ManifestReader | None, path: bytes) -> bool:
        """Whether what is not on the volume is recorded, or else retired. Raises UsageError when nobody knows it."""
        if base is not None and base.find(path) is not None:
            return True
        if base is None or path not in dict(base.info.left_out):
            hint = "paths are relative to the volume, or absolute below it; links are not followed"
            raise UsageError("is neither on the volume nor in the manifest", path=path, hint=hint)
        return False

    @staticmethod
    def _retired_before(base: ManifestReader | None, looker: Looker) -> tuple[bytes, ...]:
        """What was retired and is still there: looking at everything does not bring it back."""
        rows = base.info.left_out if base is not None else ()
        return tuple(path for path, why in rows if why == RETIRED and looker.look(path) is not None)

    # --- scan, verify, build ---

    def _make(
        self, base: ManifestReader | None, options: ScanOptions, news: _News, *, everything: bool
    ) -> tuple[ObjectId, int, Generation | None]:
        """Makes the next manifest and its layer. Raises NothingSelectedError when nothing at all is selected."""
        output = TemporaryFile() if self.request.dry_run else atomic_output(self.site.manifest)
        with output as stream, contextlib.ExitStack() as stack:
            scanned = base
            if everything or news.looked_at:
                only = () if everything else tuple(map(literal, news.looked_at))
                part = stack.enter_context(TemporaryFile()) if news.retire else stream
                scanned = self._scan(dataclasses.replace(options, only=only, only_nothing=True), base, part, stack)
            assert scanned is not None
            reader = scanned
            if news.retire:
                reader = self._retire(scanned, news, stream, stack)
            if not everything:
                there = [path for path in news.recorded if path not in news.gone]
                self.nothing = tuple(path for path in there if reader.find(path) is None)
                self._verify(reader, news.recorded)
            if self.request.gate is not None:
                with self._step("predict") as say:
                    say(self.request.gate.check(reader))
            return reader.id, reader.root.directory.entries, self._build(reader)

    def _scan(
        self, options: ScanOptions, base: ManifestReader | None, stream: BinaryIO, stack: contextlib.ExitStack
    ) -> ManifestReader:
        with self._step("scan") as say:
            report = scan(options, stream)
            before = dict(base.info.left_out) if base is not None else {}
            self.left_out = tuple(row for row in report.left_out if row[0] not in before)
            stream.flush()
            say(f"{report.entries:,} entries recorded" + (f", {len(self.left_out)} left out" if self.left_out else ""))
            return stack.enter_context(ManifestReader(os.dup(stream.fileno())))

    def _retire(
        self, reader: ManifestReader, news: _News, stream: BinaryIO, stack: contextlib.ExitStack
    ) -> ManifestReader:
        with self._step("retire") as say:
            before = reader.root.directory.entries
            source, reasons = Source(reader, self.site.manifest), dict.fromkeys(news.retire, RETIRED)
            _, entries = leave_out(source, reasons, stream)
            if not entries:
                hint = "to retire all of it, deactivate the layer instead"
                raise MkmetaError("nothing would be left", path=self.site.manifest, hint=hint)
            stream.flush()
            say(f"{before - entries:,} entries dropped, {entries:,} stay")
            return stack.enter_context(ManifestReader(os.dup(stream.fileno())))

    def _verify(self, reader: ManifestReader, paths: Sequence[bytes]) -> None:
        """Raises ChangedError when what was scanned is no longer what is on the volume."""
        if not paths:
            return
        with self._step("verify") as say, Findings() as findings:
            compared, touched = second_look(reader, self.site.root, paths, findings)
            if findings.count:
                raise _changed(list(findings))
            if touched:
                raise ChangedError(
                    f"{touched:,} entries were written to, or linked, after they were scanned",
                    path=paths[0],
                    hint="nothing was published; try again when nobody changes the release any more",
                )
            say(f"{compared:,} entries as recorded")

    def _build(self, reader: ManifestReader) -> Generation | None:
        """Builds the layer, where there is a store for it."""
        site = self.site
        if site.store is None or self.request.dry_run:
            return None
        with self._step("build") as say:
            store = Store.open_or_create(site.store)
            number = self._number(store, reader.id)
            added = add(store, reader, site.build, number=number, make_current=True, wait=site.wait, note=site.note)
            say(f"generation {added.generation.number}" + ("" if added.result else " is that manifest already"))
            return added.generation

    def _number(self, store: Store, manifest_id: ObjectId) -> int | None:
        """Which generation a layer becomes where the pointer is ahead of the store; None: the store's next.

        So it is when manifests alone were published before there was a store, or it is a new one: hosts take no number
        that is lower. Raises StoreError for a pointer that cannot be read.
        """
        if not os.path.lexists(self.site.pointer):
            return None
        named = read_pointer(self.site.pointer)
        if named.generation <= store.last_number():
            return None
        return named.generation if named.id == manifest_id else named.generation + 1

    # --- publish ---

    def _publish(self, generation: Generation | None, *, again: bool) -> Published:
        site = self.site
        with self._step("publish") as say:
            if generation is None:
                done = publish_manifest(site.manifest, site.pointer, wait=site.wait, note=site.note, again=again)
            else:
                store = Store(generation.store)
                with store.publish_lock("release", wait=site.wait, note=site.note):
                    done = publish(
                        store, site.pointer, generation, rollback=False, wait=site.wait, note=site.note, again=again
                    )
            named = f"generation {done.pointer.generation} (serial {done.pointer.serial})"
            say(f"{printable(site.pointer)} names {named}" + ("" if done.written else " already"))
            return done


def _changed(findings: list[Finding]) -> ChangedError:
    first = findings[0]
    more = "".join(f"; {printable(one.path)} {one.message}" for one in findings[1:_SHOWN])
    rest = f"; and {len(findings) - _SHOWN:,} more" if len(findings) > _SHOWN else ""
    return ChangedError(
        f"changed while it was published: {first.message}{more}{rest}",
        path=first.path,
        hint="nothing was published; try again when nobody changes the release any more",
    )


def _summary(news: _News) -> str:
    parts = (
        (len(news.recorded) + len(news.forget) - len(news.gone), "to record"),
        (len(news.gone), "gone"),
        (len(news.through), "not selected"),
        (len(news.hidden), "hidden"),
        (len(news.retire), "to retire"),
    )
    return ", ".join(f"{count} {text}" for count, text in parts if count > 0) or "everything that is selected"
