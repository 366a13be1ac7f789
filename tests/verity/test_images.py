"""Images in a store whose filesystem has fs-verity: the kernel checks them, and nothing is read for it beforehand."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from mkmeta.sinks.erofs import inspection
from tests.host.hosts import Host

pytestmark = [pytest.mark.verity, pytest.mark.needs("fs-verity")]


def test_the_kernel_checks_an_image(host: Host) -> None:
    host.kind = "erofs"
    host.publish("grp/*")
    (image,) = host.store.glob("generations/000002-*/private/layer")
    record = json.loads((image.parents[1] / "generation.json").read_text())
    digest, by_kernel = inspection.image_digest(os.fsencode(image))
    assert (digest.hex(), by_kernel) == (record["image"], True)
    with pytest.raises(OSError) as caught:
        os.open(image, os.O_WRONLY)
    assert caught.value.errno == errno.EPERM
    other = Path(image.parent / "other")
    other.write_bytes(image.read_bytes())
    other.rename(image)  # as good as the one that was built, but for the kernel's word
    assert inspection.image_digest(os.fsencode(image))[1] is False
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    assert inspection.image_digest(os.fsencode(image))[0] != digest
    host.publish("grp/*")  # what is damaged is built again
    assert len(list(host.store.glob("generations/*"))) == 3
