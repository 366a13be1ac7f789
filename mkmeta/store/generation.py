"""One built layer of a store, under its number (formats/store.md section 1). Opened lazily: the name says the most."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import Final, Self

from mkmeta.codec.metacopy import encode_redirect
from mkmeta.digest import ObjectId, VerityDigest
from mkmeta.errors import StoreError, path_fields, reason
from mkmeta.sinks.protocol import LayerKind
from mkmeta.store.record import NUMBER_MAX, Record, encode, utc_now

GENERATIONS: Final = b"generations"  # the directory of them, in the store
MANIFEST: Final = b"manifest.mkm"
LAYER: Final = b"layer"
PRIVATE: Final = b"private"  # closed to all but the owner and root; the layer is in it
ABOUT: Final = b"generation.json"
SHORT_ID_DIGITS: Final = 12  # FORMAT
_KIND = "mkmeta-generation"
_KINDS: Final = tuple(LayerKind)  # of layers that a store keeps
_WRITTEN = b"written"
_WORK = b"work"
_NAME = re.compile(rb"([0-9]{6,16})-([0-9a-f]{12})")
_HINT = "build its manifest again: mkmeta build MANIFEST --store STORE"


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """How a generation was built."""

    id: ObjectId
    kind: LayerKind
    root: bytes  # the directory that was scanned
    redirect_prefix: bytes  # where that lies below the lower layer; empty: it is the lower layer
    userxattr: bool  # the layer's overlayfs xattrs are user.overlay.*
    verity: bool  # it has fs-verity digests
    entries: int  # in the tree, without the root
    built_ns: int  # since the epoch, in whole seconds: when it was complete
    vouched: bool = False  # it was built with an ID that somebody on this host named: `build --expect-id`
    image: VerityDigest | None = None  # of a layer that is an image
    contents: bytes | None = None  # which files are whole (mkmeta.manifest.contents); None: none

    def is_alike(self, other: About) -> bool:
        """Whether the layers are the same."""
        return self._how() == other._how()

    def _how(self) -> tuple[object, ...]:
        return self.id, self.kind, self.redirect_prefix, self.userxattr, self.verity, self.contents

    def encode(self, number: int) -> bytes:
        """The generation.json of generation `number`, complete now."""
        fields: dict[str, object] = {
            "number": number,
            "id": self.id.hex(),
            "kind": str(self.kind),
            **({"image": self.image.hex()} if self.image is not None else {}),
            **path_fields(self.root, "root"),
            **path_fields(self.redirect_prefix, "redirect_prefix"),
            "userxattr": self.userxattr,
            "verity": self.verity,
            **({"contents": self.contents.hex()} if self.contents is not None else {}),
            "entries": self.entries,
            "vouched": self.vouched,
            "built": utc_now(),
        }
        return encode(_KIND, fields)


def _kind(record: Record) -> LayerKind:
    """What the layer is. Raises StoreError for what only a newer mkmeta knows."""
    kind = record.word("kind", default=LayerKind.DIRECTORY)
    if kind not in _KINDS:
        raise StoreError(
            f"its layer is of the kind {kind!r}, this mkmeta knows: {', '.join(_KINDS)}",
            path=record.path,
            hint="use a newer mkmeta",
        )
    return LayerKind(kind)


def generation_of(layer: bytes) -> Generation | None:
    """The generation that a directory is the layer of, by its path alone."""
    directory, name = os.path.split(layer)
    directory = os.path.dirname(directory) if os.path.basename(directory) == PRIVATE else directory
    generations, own = os.path.split(directory)
    store, middle = os.path.split(generations)
    return Generation.named(store, own) if name == LAYER and middle == GENERATIONS else None


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation; that it is one, its name says."""

    store: bytes  # path
    number: int
    short_id: str  # the first twelve digits of the manifest ID

    @classmethod
    def named(cls, store: bytes, name: bytes) -> Self | None:
        """The generation that a name in the store stands for; None when that is not the form of one's name."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        generation = cls(store, int(match[1]), match[2].decode())
        return generation if generation.name == name and 1 <= generation.number <= NUMBER_MAX else None

    @property
    def name(self) -> bytes:
        """Of its directory."""
        return b"%06d-%b" % (self.number, self.short_id.encode())

    @property
    def path(self) -> bytes:
        """Its directory."""
        return os.path.join(self.store, GENERATIONS, self.name)

    @property
    def layer(self) -> bytes:
        """What is mounted. Generations of the first mkmeta have it where others now have a link to it."""
        private = os.path.join(self.path, PRIVATE)
        return os.path.join(private if os.path.isdir(private) else self.path, LAYER)

    @property
    def is_image(self) -> bool:
        """Whether that is a file, whatever its record says."""
        return os.path.isfile(self.layer)

    @property
    def manifest(self) -> bytes:
        """What it was built from."""
        return os.path.join(self.path, MANIFEST)

    @property
    def work(self) -> bytes:
        """The workdir of a writable mount; exists once `mark_written` was called."""
        return os.path.join(self.path, _WORK)

    @property
    def written(self) -> bool:
        """Whether the layer was mounted as a writable upper: it may differ from the manifest since."""
        return os.path.lexists(os.path.join(self.path, _WRITTEN))

    def about(self) -> About:
        """How it was built. Raises StoreError."""
        try:
            return self._about(Record.read(self._record, _KIND, hint=_HINT))
        except FileNotFoundError:
            raise StoreError("is missing", path=self._record, hint=_HINT) from None

    def check(self, record: bytes) -> None:
        """Raises StoreError when `about` would not take these bytes for its generation.json."""
        try:
            self._about(Record.decode(record, _KIND, path=self._record, hint=_HINT))
        except StoreError as error:
            raise StoreError(
                f"cannot take this manifest: its {ABOUT.decode()} would be {error.message}", path=self.store
            ) from None

    @property
    def _record(self) -> bytes:
        return os.path.join(self.path, ABOUT)

    def _about(self, record: Record) -> About:
        kind = _kind(record)
        about = About(
            id=record.object_id("id"),
            kind=kind,
            image=record.verity_digest("image") if kind is LayerKind.EROFS else None,
            contents=record.object_id("contents") if "contents" in record.fields else None,
            root=record.path_of("root"),
            redirect_prefix=record.path_of("redirect_prefix"),
            userxattr=record.flag("userxattr"),
            verity=record.flag("verity"),
            entries=record.integer("entries", low=0),
            built_ns=record.time("built")[1],
            vouched="vouched" in record.fields and record.flag("vouched"),  # before there was such a key: no
        )
        if record.integer("number") != self.number or about.id.hex()[:SHORT_ID_DIGITS] != self.short_id:
            record.damaged("is about another generation")
        if not about.root.startswith(b"/"):
            record.damaged("'root' is not an absolute path")
        if about.redirect_prefix:
            try:
                encode_redirect(about.redirect_prefix)
            except ValueError as error:
                record.damaged(f"'redirect_prefix': {error}")
        return about

    def mark_written(self) -> None:
        """Says, durably, that the layer may be written to from now on, and makes `work`. Raises StoreError."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(_WRITTEN, flags, 0o644, dir_fd=fd))
                with contextlib.suppress(FileExistsError):
                    os.mkdir(_WORK, 0o700, dir_fd=fd)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise StoreError(f"cannot be made writable: {reason(error)}", path=self.path) from None
