"""An image that is in no store: it is mounted all the same, as if it were the one generation of one.

What a generation says of itself is asked of the image then. Nobody keeps it: switching back is activating the other
file, and removing it is its owner's matter, as what has it mounted keeps it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn

from mkmeta.digest import ObjectId, VerityDigest
from mkmeta.errors import MountError, RefusedError, UsageError, reason
from mkmeta.linux.asking import NoAnswerError, ask
from mkmeta.mounts.image import opened, seconds_for
from mkmeta.mounts.overlay import closing
from mkmeta.overlay_xattrs import USER
from mkmeta.sinks.directory.staging import layer_id
from mkmeta.sinks.erofs.inspection import image_digest, is_image
from mkmeta.sinks.protocol import LayerKind
from mkmeta.store.generation import SHORT_ID_DIGITS, About
from mkmeta.store.store import Note, Store

_SECONDS: Final = 30.0  # an image may be on a volume, whose server answers within that


@dataclass(frozen=True)
class LooseImage:
    """The image, as a generation."""

    layer: bytes  # its path, without links
    id: ObjectId
    userxattr: bool

    number = 0
    written = False
    is_image = True

    @property
    def path(self) -> bytes:
        """What it is called."""
        return self.layer

    @property
    def short_id(self) -> str:
        """The first digits of the manifest's ID."""
        return self.id.hex()[:SHORT_ID_DIGITS]

    @property
    def work(self) -> bytes:
        """Of a writable mount."""
        raise UsageError("an image cannot be written into", path=self.layer)

    def about(self) -> About:
        """What can be known of it: not where its volume was, so every directory is taken for that."""
        return About(
            id=self.id,
            kind=LayerKind.EROFS,
            root=b"/",
            redirect_prefix=b"",
            userxattr=self.userxattr,
            verity=True,  # perhaps; what it has none for is not compared
            entries=0,
            built_ns=0,
        )

    def mark_written(self) -> None:
        """It never is."""


@dataclass(frozen=True)
class LooseStore:
    """The image, as a store."""

    image: LooseImage

    @property
    def path(self) -> bytes:
        """What it is called."""
        return self.image.layer

    def current(self) -> LooseImage:
        """The only one."""
        return self.image

    def generation(self, number: int) -> NoReturn:
        """There are no others."""
        raise UsageError(f"is an image, and no store that has a generation {number}", path=self.path)

    def lock(self, _purpose: str, *, wait: float, note: Note) -> AbstractContextManager[int]:
        """Nobody removes it; and what is mounted stays, even so."""
        return _unlocked()


def source_of(path: bytes, digest: VerityDigest | None) -> Store | LooseStore:
    """The store at a path, or the image, which must have `digest` where one is given. Raises StoreError, MountError."""
    try:
        found = ask(partial(_look, path, digest), _SECONDS if digest is None else seconds_for(path))
    except NoAnswerError:
        raise MountError("does not answer", path=path, hint="see whether its server is up, and `dmesg`") from None
    except OSError as error:
        raise MountError(f"cannot be looked at: {reason(error)}", path=path) from None
    if found is None:
        if digest is not None:
            raise UsageError("--image-digest goes with an image; a store knows those of its images", path=path)
        return Store.open(path)
    real, identifier, userxattr = found
    if identifier is None:
        raise RefusedError(
            "is an image that mkmeta did not build as a layer",
            path=path,
            hint="mkmeta build --format erofs MANIFEST IMAGE makes one",
        )
    return LooseStore(LooseImage(real, identifier, userxattr))


def _look(path: bytes, digest: VerityDigest | None) -> tuple[bytes, ObjectId | None, bool] | None:
    """In a child: of an image its path, its manifest's ID, and whether its attributes are user.*; None: it is none."""
    if not is_image(path):
        return None
    if digest is not None:
        check_digest(path, digest)
    with opened(path) as tree, closing(os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        identifier = layer_id(fd)
        userxattr = False
        if identifier is not None:
            with contextlib.suppress(OSError):
                userxattr = os.getxattr(fd, USER.manifest_id) == identifier
        return os.path.realpath(path), identifier, userxattr


@contextlib.contextmanager
def _unlocked() -> Iterator[int]:
    yield 0


def check_digest(path: bytes, expected: VerityDigest) -> None:
    """Raises RefusedError unless an image is the one with that fs-verity digest, and OSError."""
    digest, _by_kernel = image_digest(path)
    if digest != expected:
        raise RefusedError(
            f"the image is damaged, or another: its digest is {digest.hex()}, and should be {expected.hex()}",
            path=path,
            hint="build the manifest again",
        )
