"""The manuals and completions that wheels carry: complete, and nothing that their readers find wrong."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.cli.parser import VERBS, make_parser
from mkmeta.config_keys import KEYS
from tools import completion, manuals, roff

PAGES = manuals.manuals()


def test_there_is_a_page_for_each_verb_and_format() -> None:
    expected = {f"mkmeta-{verb}.1" for verb in VERBS} | {"mkmeta.1", "mkmeta-manifest.5", "layer.toml.5"}
    assert set(PAGES) == expected
    for verb in VERBS:
        verb_parser = next(parser for name, parser in completion._verbs(make_parser([])) if name == verb)
        page = PAGES[f"mkmeta-{verb}.1"].replace("\\-", "-").replace("\\fB", "").replace("\\fR", "")
        for action in verb_parser._actions:
            for option in action.option_strings:
                assert re.search(rf"{option}\b", page), (verb, option)
        assert ".SH EXAMPLES" in page
        assert '.SH "EXIT STATUS"' in page
    assert all(key.name.replace("-", "\\-") in PAGES["layer.toml.5"] for key in KEYS)


@pytest.mark.needs("mandoc")
def test_mandoc_finds_nothing_wrong(tmp_path: Path) -> None:
    paths = manuals.write(tmp_path)
    done = subprocess.run(["mandoc", "-T", "lint", *map(str, paths)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    wrong = tmp_path / "wrong.1"
    wrong.write_text(".TH X\n.SH\n.XX\n")
    assert subprocess.run(["mandoc", "-T", "lint", str(wrong)], capture_output=True, check=False).returncode != 0


@pytest.mark.needs("mandoc")
def test_what_they_say_is_what_help_says(tmp_path: Path) -> None:
    manuals.write(tmp_path)
    shown = subprocess.run(
        ["mandoc", "-T", "utf8", str(tmp_path / "man1" / "mkmeta-scan.1")], capture_output=True, text=True, check=True
    ).stdout
    text = " ".join(re.sub(r".\x08", "", shown).split())
    assert "mkmeta scan /mnt/sw --select 'grp/*/v*/lib' --select 'tools/**/python' -o sw.mkm" in text


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=40))
def test_any_text_is_text(text: str) -> None:
    """No word of it becomes a request of roff's, which a page from outside could use to include files."""
    for line in (*roff.flowing(text), *list(roff.literal([text]))[3:-2]):
        assert not line.startswith((".", "'"))
        assert re.fullmatch(r"(?:[^\\]|\\(?:e|-|&|fB|fR|\[u[0-9A-F]{4,6}\]))*", line)


SHELLS = (
    "bash",
    pytest.param("zsh", marks=pytest.mark.needs("zsh")),
    pytest.param("fish", marks=pytest.mark.needs("fish")),
)


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_take_the_completions(shell: str, tmp_path: Path) -> None:
    texts = completion.completions()
    for verb in VERBS:
        assert verb in texts[shell]
    completion.write(tmp_path)
    path = tmp_path / completion.PLACES[shell]
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_bash_completes(tmp_path: Path) -> None:
    completion.write(tmp_path)
    script = f"""
    . {tmp_path / completion.PLACES["bash"]}
    complete_line() {{
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
        _shtab_mkmeta
        echo "${{COMPREPLY[*]}}"
    }}
    complete_line mkmeta act
    complete_line mkmeta activate --prof
    complete_line mkmeta build --format e
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:3] == ["activate", "--profile", "erofs"], done.stderr
