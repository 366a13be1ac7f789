"""`mkmeta init`: a layer file that can be read, says what doctor found, and destroys nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.__main__ import main
from mkmeta.config import parse_config, read_config
from mkmeta.config_keys import KEYS
from mkmeta.config_text import config_text, toml
from mkmeta.host import finding

RAW = st.binary(min_size=1, max_size=40).filter(lambda raw: b"\0" not in raw)


@given(RAW, st.lists(RAW, max_size=4))
def test_what_is_written_is_read(path: bytes, patterns: list[bytes]) -> None:
    data = config_text(
        ["a\nb"], {"volume": b"/" + path, "select": patterns, "over": True, "keep": 7}, {"keep": ["x\ny"]}
    )
    config = parse_config(data, b"f")
    assert (config.volume, config.select) == (b"/" + path, tuple(patterns))
    assert (config.over, config.keep) == (True, 7)


def test_every_key_is_in_it_and_its_example_is_one() -> None:
    text = config_text([], {}, {}).decode()
    assert re.findall(r"(?m)^#([a-z.-]+) = ", text) == [key.name for key in KEYS]
    config = parse_config(re.sub(r"(?m)^#", "", re.sub(r"(?m)^# .*", "", text)).encode(), b"f")
    assert config.mount_point == b"/sw"
    assert toml([b"a", b'"']) == '["a", "\\""]'


def test_a_first_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume, file = tmp_path / "volume", tmp_path / "etc" / "sw.toml"
    volume.mkdir()
    argv = ["init", str(volume), "-o", str(file), "--select", "grp/*", "--mount-point", "/site/sw"]
    assert main(argv) == 0
    config = read_config(os.fsencode(file))
    assert (config.volume, config.select, config.mount_point) == (os.fsencode(volume), (b"grp/*",), b"/site/sw")
    assert config.pointer == os.fsencode(volume) + b"/.mkmeta/volume.json"
    config.need("store", "manifest")
    capsys.readouterr()
    before = file.read_bytes()
    assert main([*argv, "--name", "other"]) == 2
    assert "exists" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert main([*argv, "--name", "other", "--force"]) == 0
    assert read_config(os.fsencode(file)).pointer == os.fsencode(volume) + b"/.mkmeta/other.json"


def test_what_doctor_finds_is_beside_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found = [
        finding.warning("selinux", "about the host", "h1"),
        finding.note("profile-nested", "about the profile", "h2"),
        finding.failure("store-room", "about the store\x1b", "h3", b"/var"),
        finding.note("nfs-options", "about the volume", "h4", b"/mnt"),
        finding.ok("kernel", "all is well"),
    ]
    monkeypatch.setattr("mkmeta.cli.init.diagnose", lambda _patient: iter(found))
    assert main(["init", str(tmp_path), "--name", "x", "-o", "-"]) == 0
    text = capfd.readouterr().out
    assert "`mkmeta doctor`:\n# - warning: about the host. -> h1\n" in text
    assert "# - note: about the profile. -> h2\n#profile" in text
    assert "# - failure: about the store?. -> h3\nstore" in text
    assert "# - note: about the volume. -> h4\nvolume" in text
    assert "all is well" not in text


def test_an_ordinary_user_has_places_of_his_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, name in (("XDG_CONFIG_HOME", "config"), ("XDG_DATA_HOME", "data"), ("HOME", "home")):
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setattr("os.geteuid", lambda: tmp_path.stat().st_uid or 12345)
    (tmp_path / "volume").mkdir()
    (tmp_path / "config").mkdir()
    assert main(["init", str(tmp_path / "volume")]) == 0
    config = read_config(os.fsencode(tmp_path / "config/mkmeta/volume.toml"))
    assert config.store == os.fsencode(tmp_path / "data/mkmeta/volume")
    assert config.mount_point == os.fsencode(tmp_path / "home/volume")
    assert config.userxattr is True


def test_to_stdout(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["init", str(tmp_path), "--name", "x", "-o", "-"]) == 0
    assert parse_config(capfdbinary.readouterr().out, b"-").volume == os.fsencode(tmp_path)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["absent"], "mount it first"),
        (["file"], "mount it first"),
        (["sp ace"], "give another with --name"),
        (["volume", "-o", "-", "--json"], "cannot both go to stdout"),
    ],
)
def test_what_cannot_be(
    argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("volume", "sp ace"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    assert main(["init", *argv]) == 2
    assert words in capsys.readouterr().err
