"""--config: what a layer file may say, how it reaches the verbs, and who may write it (formats/layer.toml.md)."""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mkmeta.__main__ import main
from mkmeta.cli.parser import make_parser
from mkmeta.config import CONFIG_SIZE_MAX, ConfigError, LayerConfig, parse_config, read_config
from mkmeta.config_keys import KEYS, LIST_MAX
from mkmeta.model import DigestName

PAGE = Path(__file__).parents[2] / "formats" / "layer.toml.md"
FILE = b"/etc/mkmeta/sw.toml"


def parsed(text: str) -> LayerConfig:
    return parse_config(text.encode(), FILE)


def test_every_key_is_read_into_its_field() -> None:
    config = parsed("\n".join(f"{key.name} = {key.example}" for key in KEYS))
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    assert fields.keys() - {"path"} == {key.field for key in KEYS}
    assert [name for name, value in fields.items() if value is None or value == ()] == []
    assert config.volume == b"/mnt/sw"
    assert config.select == (b"grp/*/v*/lib", b"tools/**/python")
    assert config.digests == (DigestName.BLAKE3, DigestName.VERITY)
    assert config.min_age == 2 * 86400


def test_the_page_has_every_key() -> None:
    rows = re.findall(r"(?m)^\| `([a-z.-]+)` \| (.*) \| (.*) \|$", PAGE.read_text())
    assert rows == [(key.name, key.kind.words, key.means) for key in KEYS]


def test_the_page_s_example_is_one() -> None:
    example = "\n".join(re.findall(r"(?m)^    (\S+ +=.*)$", PAGE.read_text()))
    assert parsed(example).mount_point == b"/sw"


WRONG = [
    ('volume = "/a"\nstroe = "/b"', "line 2: there is no key 'stroe': did you mean 'store'?"),
    ('lower = "/a"', "line 1: there is no key 'lower': did you mean 'volume'?"),
    ('mount_point = "/a"', "line 1: there is no key 'mount_point': did you mean 'mount-point'?"),
    ("qqqq = 1", "line 1: there is no key 'qqqq'"),
    ('volume = "sw"', "line 1: 'volume' is not an absolute path"),
    ("\nvolume = 5", "line 2: 'volume' is not a string"),
    ('volume = ""', "line 1: 'volume' is empty"),
    ('volume = "/a\\u0000b"', "line 1: 'volume' holds a NUL"),
    (f'volume = "/{"a" * 4095}"', "'volume' is a path of more than 4095 bytes"),
    ("select = [1]", "line 1: 'select' is not a string"),
    ('select = [["a"]]', "line 1: 'select' is not a string"),
    ("select = [" + '"a",' * (LIST_MAX + 1) + "]", f"'select' has more than {LIST_MAX} values"),
    ('over = "true"', "line 1: 'over' is neither true nor false"),
    ("over = 1", "line 1: 'over' is neither true nor false"),
    ("keep = 0", "line 1: 'keep' is not a number from 1 to"),
    ("keep = true", "line 1: 'keep' is not a number from 1 to"),
    ("min-age = 1.5", "line 1: 'min-age' is not a time span"),
    ('min-age = "2 days"', "line 1: 'min-age' '2 days' is not a time span"),
    ('profile = "nest"', "line 1: 'profile' is not one of auto, nested"),
    ('digests = "verity"', "line 1: 'digests' is not a list"),
    ('digests = ["sha1"]', "line 1: 'digests' is not one of blake3, verity"),
    ('inline = "64 K"', "line 1: 'inline' is not a size"),
    ('redirect-prefix = "../x"', "line 1: 'redirect-prefix' is not a path below"),
    ("[volume]\na = 1", "line 1: 'volume' is not a string"),
    ('[x]\nvolume = "/a"', "line 1: there is no key 'x'"),
    ('volume = "/a"\nvolume = "/b"', "is not TOML: cannot overwrite a value"),
    ("volume", "is not TOML: expected '='"),
    ("select = " + "[" * 20000, "is not TOML: it is nested too deeply"),
    ("keep = " + "1" * 5000, "is not TOML: a number has too many digits"),
    ("#" * (CONFIG_SIZE_MAX + 1), "has more than 64 KiB"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[text[:30] for text, _ in WRONG])
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
@example(b"\xff = 1")
@example(b"volume = '/\xff'")
def test_any_bytes_are_a_layer_file_or_no_layer_file(data: bytes) -> None:
    try:
        parse_config(data, FILE)
    except ConfigError as error:
        assert str(error).isprintable()


scalars: st.SearchStrategy[Any] = st.none() | st.booleans() | st.integers() | st.text(max_size=20)


@given(st.sampled_from(KEYS), st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=8))
def test_any_value_is_taken_or_refused_with_its_key(key: Any, value: Any) -> None:
    def toml(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, list):
            return f"[{', '.join(map(toml, value))}]"
        if isinstance(value, str):
            return '"' + "".join(f"\\U{ord(char):08x}" for char in value) + '"'
        return "1979-05-27" if value is None else str(value)

    text = f"{key.name} = {toml(value)}"
    try:
        tomllib.loads(text)
    except ValueError:  # an integer of more digits than Python takes
        return
    try:
        found = getattr(parsed(text), key.field)
    except ConfigError as error:
        assert f"line 1: '{key.name}' " in str(error)
    else:
        assert found is not None


def test_names_are_bytes(tmp_path: Path) -> None:
    file = tmp_path / "sw.toml"
    file.write_bytes(b"volume = '/mnt/\xff'\nselect = ['gr\xfcp/*']\n")
    config = read_config(os.fsencode(file))
    assert (config.volume, config.select) == (b"/mnt/\xff", (b"gr\xfcp/*",))


# --- into the verbs ---


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "sw.toml"
    path.write_text("\n".join(f"{key.name} = {key.example}" for key in KEYS))
    return str(path)


def test_the_file_stands_in_for_the_command_line(file: str) -> None:
    scan = make_parser(["scan"]).parse_args(["scan", "--config", file])
    assert (scan.root, scan.output, scan.select) == (
        b"/mnt/sw",
        b"/var/lib/mkmeta/sw.mkm",
        [b"grp/*/v*/lib", b"tools/**/python"],
    )
    activate = make_parser(["activate"]).parse_args(["activate", "--config", file])
    assert (activate.store, activate.point) == (b"/var/lib/mkmeta/sw", b"/sw")
    assert (activate.lower, activate.follow) == (b"/mnt/sw", b"/mnt/sw/.mkmeta/sw.json")
    collect = make_parser(["gc"]).parse_args(["gc", f"--config={file}"])
    assert (collect.store, collect.keep, collect.min_age) == (b"/var/lib/mkmeta/sw", 3, 2 * 86400)


def test_no_digests_are_said_by_an_empty_list(tmp_path: Path) -> None:
    (tmp_path / "sw.toml").write_text('volume = "/v"\nmanifest = "/m"\ndigests = []')
    assert make_parser(["scan"]).parse_args(["scan", "--config", str(tmp_path / "sw.toml")]).digest == ()


def test_the_command_line_wins(file: str) -> None:
    scan = make_parser(["scan"]).parse_args(["scan", "--config", file, "/other", "--select", "a", "--select", "b"])
    assert (scan.root, scan.select) == (b"/other", [b"a", b"b"])
    scan = make_parser(["scan"]).parse_args(["scan", "--select", "a", "--config", file])
    assert scan.select == [b"a"]
    collect = make_parser(["gc"]).parse_args(["gc", "--keep", "3", "--config", file, "/other"])
    assert (collect.store, collect.keep) == (b"/other", 3)
    activate = make_parser(["activate"]).parse_args(["activate", "--config", file, "--over", "a", "b"])
    assert (activate.store, activate.point, activate.over) == (b"a", b"b", True)


def test_a_flag_of_the_file_can_be_taken_back(tmp_path: Path) -> None:
    (tmp_path / "sw.toml").write_text('store = "/s"\nmount-point = "/p"\nover = true\nuserxattr = true')
    argv = ["activate", "--config", str(tmp_path / "sw.toml")]
    assert make_parser(argv).parse_args(argv).over is True
    assert make_parser(argv).parse_args([*argv, "--no-over"]).over is False


def test_one_of_two_arguments_in_a_row(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["activate", "--config", file, "/elsewhere"]) == 2
    assert "STORE and MOUNTPOINT" in capsys.readouterr().err


def test_what_neither_says_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sw.toml").write_text('volume = "/mnt/sw"\n')
    with pytest.raises(SystemExit) as caught:
        main(["scan", "--config", str(tmp_path / "sw.toml")])
    assert caught.value.code == 2
    assert "-o/--output" in capsys.readouterr().err


@pytest.mark.needs("user xattrs")
def test_a_layer_by_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scan, build and publish say nothing twice; a DEST on the command line is built instead of a generation."""
    (tmp_path / "volume/good").mkdir(parents=True)
    (tmp_path / "volume/good/file").write_text("x")
    file = tmp_path / "sw.toml"
    file.write_text(
        f'volume = "{tmp_path}/volume"\nselect = "good"\nmanifest = "{tmp_path}/sw.mkm"\nstore = "{tmp_path}/store"\n'
        f'pointer = "{tmp_path}/sw.json"\nuserxattr = true\nkeep = 1\nmin-age = 0\n'
    )
    for verb in ("scan", "build", "publish", "gc"):
        assert main([verb, "--config", str(file)]) == 0, capsys.readouterr().err
    assert (tmp_path / "store/current/layer/good/file").exists()
    assert (tmp_path / "sw.json").exists()
    assert main(["build", "--config", str(file), str(tmp_path / "sw.mkm"), str(tmp_path / "layer")]) == 0
    assert (tmp_path / "layer/good").is_dir()
    assert len(os.listdir(tmp_path / "store/generations")) == 1


def test_errors_in_the_file_are_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sw.toml"
    assert main(["scan", "--config", str(file)]) == 2
    assert "sw.toml: there is no such file" in capsys.readouterr().err
    file.write_text("sotre = 1")
    assert main(["gc", "--config", str(file), "--json"]) == 2
    assert '"message_type": "exit_error"' in capsys.readouterr().out
    file.unlink()
    os.mkfifo(file)
    assert main(["gc", "--config", str(file)]) == 2
    assert "is not a regular file" in capsys.readouterr().err


# --- who may write it ---


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "etc" / "sw.toml"
    file.parent.mkdir(mode=0o755)
    file.write_text('volume = "/mnt/sw"\n')
    file.chmod(0o644)
    assert read_config(os.fsencode(file)).volume == b"/mnt/sw"
    for path, mode in ((file, 0o646), (file.parent, 0o757)):
        before = path.stat().st_mode
        path.chmod(mode)
        with pytest.raises(ConfigError, match="can be written by others"):
            read_config(os.fsencode(file))
        path.chmod(before)
    file.parent.chmod(0o1777)
    assert read_config(os.fsencode(file)).volume == b"/mnt/sw"


@pytest.mark.needs("root")
def test_for_root_a_group_and_other_users_are_others(tmp_path: Path) -> None:
    file = tmp_path / "sw.toml"
    file.write_text('volume = "/mnt/sw"\n')
    file.chmod(0o664)
    with pytest.raises(ConfigError, match="can be written by its group"):
        read_config(os.fsencode(file))
    file.chmod(0o644)
    os.chown(file, 12345, 0)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        read_config(os.fsencode(file))
    os.chown(file, 0, 0)
    link = tmp_path / "mine" / "link.toml"
    link.parent.mkdir()
    os.chown(link.parent, 12345, 0)
    (link.parent / "sw.toml").write_text("")
    link.symlink_to(link.parent / "sw.toml")
    with pytest.raises(ConfigError, match="mine belongs to user 12345"):
        read_config(os.fsencode(link))
