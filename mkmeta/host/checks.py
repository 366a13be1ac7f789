"""What a layer must be to be mounted: each check refuses what the kernel would take, and would then show wrong data."""

from __future__ import annotations

import os
from functools import partial
from typing import Final, NamedTuple

from mkmeta.digest import ObjectId, VerityDigest
from mkmeta.errors import MountError, RefusedError, StoreError, printable, reason
from mkmeta.host.loose import LooseImage, check_digest
from mkmeta.linux.asking import NoAnswerError, ask
from mkmeta.linux.mountinfo import Mount
from mkmeta.mounts.image import opened, seconds_for
from mkmeta.mounts.live import layers_of
from mkmeta.mounts.overlay import closing
from mkmeta.mounts.profile import Verity
from mkmeta.mounts.users import mount_tables
from mkmeta.mounts.verity_check import unverified_file
from mkmeta.sinks.directory.sharing import is_shared
from mkmeta.sinks.directory.staging import layer_id
from mkmeta.store.as_built import difference
from mkmeta.store.generation import About
from mkmeta.store.store import Generation

_SECONDS: Final = (
    10.0  # for what may be on anybody's filesystem: the `root` of a manifest, an image that is in no store
)
_SEE_SERVER: Final = "see whether its server or disk is well"


class ImageProof(NamedTuple):
    """An image file that was compared with its digest: as long as nothing of this changes, it is that."""

    path: bytes
    device: int
    inode: int
    size: int
    ctime_ns: int


def check_layer(
    generation: Generation | LooseImage,
    about: About,
    lower: bytes,
    *,
    other_root: bool,
    verity: Verity,
    proof: ImageProof | None,
) -> None:
    """Raises RefusedError and StoreError; `lower` is the real path of a volume that answers.

    `proof`: of an image that was looked at before.
    """
    if about.image is not None and (proof is None or proof != _identity(generation.layer)):
        check_image(generation.layer, about.image)
    look = partial(_look_into, generation, about, lower, verity)
    if isinstance(generation, LooseImage):  # perhaps on a volume, whose server may die: who holds a lock does not wait
        try:
            ask(look, _SECONDS)
        except NoAnswerError:
            raise MountError("the image does not answer", path=generation.layer, hint=_SEE_SERVER) from None
    else:
        look()
    expected = b"/".join(part for part in (lower.rstrip(b"/"), about.redirect_prefix) if part) or b"/"
    if not other_root and not _is_same(about.root, expected):
        raise RefusedError(
            f"the layer was made from {printable(about.root)}, not from {printable(expected)}",
            path=generation.path,
            hint="if it is the same volume under another name, say so with --other-root",
        )


def check_as_built(generation: Generation, about: About) -> None:
    """Raises RefusedError where a directory layer is not as it was built, as far as a few files of it tell."""
    found = difference(generation, about)
    if found is not None:
        raise RefusedError(
            f"the layer is not as it was built: {found}",
            path=generation.layer,
            hint="copy stores with owners, modes and attributes (cp -a, rsync -aHAX), or `mkmeta build --store` again",
        )


def check_image(path: bytes, recorded: VerityDigest) -> ImageProof:
    """Raises RefusedError unless an image is the one with that fs-verity digest: all of it is read, or the kernel says.

    Raises MountError where it cannot be read.
    """
    try:
        before = _identity(path)
        ask(partial(check_digest, path, recorded), seconds_for(path))
    except NoAnswerError:
        raise MountError("the image does not answer", path=path, hint=_SEE_SERVER) from None
    except OSError as error:
        raise MountError(f"the image cannot be read: {reason(error)}", path=path, hint="build it again") from None
    return before


def _identity(path: bytes) -> ImageProof:
    status = os.stat(path)
    return ImageProof(path, status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)


def _look_into(generation: Generation | LooseImage, about: About, lower: bytes, verity: Verity) -> None:
    with opened(generation.layer) as root:
        _check_tree(root, generation, about, lower, verity)


def _check_tree(root: bytes, generation: Generation | LooseImage, about: About, lower: bytes, verity: Verity) -> None:
    """What only a look into the layer shows, the tree of which is at `root`."""
    found = id_of(root)
    if found is None:
        raise RefusedError(
            "the layer's attributes cannot be read here: its files would read as zeros",
            path=generation.layer,
            hint="a copy without them (cp -r) is worth nothing: `mkmeta build --store` builds it again; they take root "
            "outside of user namespaces: for these, build with --userxattr",
        )
    if found != about.id:
        raise StoreError("the layer is not the one its generation names", path=generation.layer, hint="build it again")
    if verity is Verity.REQUIRE and not about.verity:
        raise RefusedError(
            "--verity require: the layer has no fs-verity digests, every open would fail",
            path=generation.layer,
            hint="scan with verity digests and build without --no-verity, or leave --verity away",
        )
    if verity is not Verity.OFF:
        plain = unverified_file(root, lower, userxattr=about.userxattr)
        if plain is not None:
            raise RefusedError(
                f"--verity {verity}: this file has no fs-verity, every open of it would fail",
                path=plain,
                hint="NFS has none; enable it on the volume's files, or leave --verity away",
            )


def check_writable(generation: Generation | LooseImage) -> None:
    """Raises RefusedError for a layer that must not be written into: others have it, or files of it."""
    _check_unused(generation)
    with closing(os.open(generation.layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        if is_shared(fd):
            raise RefusedError(
                "files of this layer are shared with another one (build --base): writing here would change that too",
                path=generation.layer,
                hint="build it into a store of its own, without --base",
            )


def id_of(layer: bytes) -> ObjectId | None:
    """The manifest ID a layer was built from; None where it cannot be read."""
    try:
        with closing(os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            return layer_id(fd)
    except OSError:
        return None


def _is_same(root: bytes, expected: bytes) -> bool:
    """Whether two names are those of one directory. One that nobody answers for is not."""
    if root == expected:
        return True
    try:
        return ask(partial(_lead_to_one, root, expected), _SECONDS)
    except NoAnswerError:
        return False


def _lead_to_one(root: bytes, expected: bytes) -> bool:
    return os.path.realpath(root) == os.path.realpath(expected)


def _check_unused(generation: Generation | LooseImage) -> None:
    """Raises RefusedError when a mount has the layer already: two writers, or a writer under readers, destroy it."""

    def has_it(mount: Mount) -> bool:
        layers = layers_of(mount)
        return generation.layer in (*layers.lowers, *layers.data, layers.upper)

    for table in mount_tables().tables:
        for mount in table.mounts:
            if has_it(mount):
                raise RefusedError(
                    f"generation {generation.number} is mounted already, at {printable(mount.point)} "
                    f"(as {table.who} sees it): a layer can be written through one mount only",
                    path=generation.layer,
                    hint="deactivate that, or build another generation to write into",
                )
