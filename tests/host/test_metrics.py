"""`status --metrics` and `verify --metrics`: what they say, that Prometheus takes it, and that its alerts fire."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from mkmeta.__main__ import main
from mkmeta.host.metrics import layer_metrics, verify_metrics
from mkmeta.host.prometheus import Family, write_metrics
from mkmeta.linux.mountstats import Operation, parse_mountstats
from tests.host.hosts import Host

TOP = Path(__file__).parents[2]
PAGE = TOP / "docs" / "monitoring.md"
RULES = TOP / "examples" / "prometheus" / "mkmeta.rules.yml"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

# As Linux 6.12 prints it (net/sunrpc/stats.c); the path has a space, the last operation no errors column (before 5.3)
MOUNTSTATS = b"""\
device proc mounted on /proc with fstype proc
device nas:/sw mounted on /mnt/a\\040b with fstype nfs4 statvers=1.1
\topts:\tro,vers=4.2
\tage:\t9
\tevents:\t1 2 3
\tbytes:\t1 2 3 4 5 6 7 8
\tRPC iostats version: 1.1  p/v: 100003/4 (nfs)
\txprt:\ttcp 0 0 1 0 0 1 1 0 1 0 2 0 0
\tper-op statistics
\t        NULL: 0 0 0 0 0 0 0 0 0
\t      LOOKUP: 12 12 0 2000 1500 0 9 10 11
\t        OPEN: 3 3 0 600 500 0 2 3 1
\tOPEN_NOATTR: 4 4 0 1 1 0 2 3
device tmpfs mounted on /mnt/x with fstype tmpfs
\t      LOOKUP: 99 0 0 0 0 0 0 0 0
"""


def samples(path: Path) -> Samples:
    families = text_string_to_metric_families(path.read_text())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    """The one sample with these labels, whatever others it has."""
    matching = [number for (key, have), number in found.items() if key == name and labels.items() <= dict(have).items()]
    assert len(matching) == 1, (name, labels, found)
    return matching[0]


def lint(path: Path) -> str:
    """What promtool says of a file of metrics."""
    with path.open("rb") as stream:
        return subprocess.run(
            ["promtool", "check", "metrics"], stdin=stream, capture_output=True, text=True, check=False
        ).stderr


def test_what_the_kernel_counts() -> None:
    assert parse_mountstats(MOUNTSTATS) == {
        b"/mnt/a b": {"LOOKUP": Operation(12, 11), "OPEN": Operation(3, 1), "OPEN_NOATTR": Operation(4, None)}
    }


@given(st.lists(st.sampled_from([*MOUNTSTATS.split(b"\n"), b"\t  X: 1", b"device ", b"\xff"]) | st.binary(max_size=20)))
def test_any_mountstats(lines: list[bytes]) -> None:
    for operations in parse_mountstats(b"\n".join(lines)).values():
        assert all(operation.requests > 0 for operation in operations.values())


@given(st.lists(st.tuples(st.text(max_size=9) | st.binary(max_size=9), st.integers(-(2**60), 2**60)), max_size=4))
def test_any_label_comes_through(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[str | bytes, int]]
) -> None:
    path = tmp_path_factory.mktemp("metrics") / "x.prom"
    family = Family("mkmeta_x", "gauge", "X.")
    for index, (label, number) in enumerate(values):
        family.add(number, label=label if isinstance(label, bytes) else label.encode(), index=str(index))
    write_metrics(os.fsencode(path), [family])
    assert len(samples(path)) == len(values)
    assert sorted(map(float, samples(path).values())) == sorted(float(number) for _, number in values)


def status(host: Host, file: Path) -> int:
    """Writes the metrics of a host. Returns the exit code."""
    config = host.top / "sw.toml"
    config.write_text(f'mount-point = "{host.point}"\nrun-dir = "{host.run}"\npointer = "{host.top}/sw.json"\n')
    return main(["status", "-q", "--config", str(config), "--metrics", str(file)])


def status_of_a_used_host(host: Host, file: Path) -> None:
    """One layer, one program that still has the generation before, and what is published."""
    host.activate()
    with (host.point / "grp/paint/v1/lib/one").open():
        program = subprocess.Popen(["sleep", "600"], cwd=host.point)
        try:
            (host.volume / "grp/paint/v1/lib/new").touch()
            host.publish()
            host.call("publish", host.store, "--pointer", host.top / "sw.json", "-q")
            host.activate()
            assert status(host, file) == 0
        finally:
            program.kill()
            program.wait()


@pytest.mark.needs("root", "overlay", "trusted xattrs")
def test_a_host(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "mkmeta.prom"
    assert status(host, file) == 20
    found = samples(file)
    assert value(found, "mkmeta_layers") == 0
    assert value(found, "mkmeta_pointer_readable") == 0
    status_of_a_used_host(host, file)
    found = samples(file)
    at = str(host.point)
    assert value(found, "mkmeta_layers") == 1
    assert value(found, "mkmeta_layer_generation", mountpoint=at) == 2
    assert value(found, "mkmeta_layer_current_generation", mountpoint=at) == 2
    assert value(found, "mkmeta_published_generation", pointer=f"{host.top}/sw.json") == 2
    assert value(found, "mkmeta_layer_state", mountpoint=at, state="current") == 1
    assert value(found, "mkmeta_layer_state", mountpoint=at, state="degraded") == 0
    assert value(found, "mkmeta_layer_holders", mountpoint=at, generation="1") >= 1
    assert value(found, "mkmeta_layer_entries", mountpoint=at) > 5
    assert value(found, "mkmeta_layer_info", mountpoint=at, lower=str(host.volume)) == 1
    assert abs(value(found, "mkmeta_layer_built_timestamp_seconds") - file.stat().st_mtime) < 600
    assert file.stat().st_mode & 0o777 == 0o644
    host.call("deactivate", host.point)


def everything(path: Path) -> None:
    """A file with a sample of each verify metric, and of those that need no mount."""
    write_metrics(
        os.fsencode(path),
        [
            *layer_metrics([], [], [], b"/no/pointer"),
            *verify_metrics(Counter(layer=2), path=b'/st"ore\xff\n', entries=5, seconds=1.5, now=1e9),
        ],
    )


@pytest.mark.needs("root", "overlay", "trusted xattrs", "promtool")
def test_promtool_finds_nothing_wrong_with_a_host(host: Host, tmp_path: Path) -> None:
    status_of_a_used_host(host, tmp_path / "x.prom")
    assert lint(tmp_path / "x.prom") == ""


@pytest.mark.needs("promtool")
def test_promtool_finds_nothing_wrong(tmp_path: Path) -> None:
    everything(tmp_path / "x.prom")
    assert lint(tmp_path / "x.prom") == ""
    (tmp_path / "y.prom").write_text("mkmeta_x_total 1\n# TYPE mkmeta_x_total gauge\n")
    assert lint(tmp_path / "y.prom") != ""
    checked = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.needs("promtool")
def test_the_alerts_fire() -> None:
    file = RULES.with_name("mkmeta.test.yml")
    done = subprocess.run(
        ["promtool", "test", "rules", file.name], cwd=file.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_and_the_rules_have_the_names(tmp_path: Path) -> None:
    source = (TOP / "mkmeta/host/metrics.py").read_text()
    names = set(re.findall(r'"(mkmeta_[a-z_]+)"', source))
    assert set(re.findall(r"(?m)^\| `(mkmeta_[a-z_]+)` \|", PAGE.read_text())) == names
    assert set(re.findall(r"\b(mkmeta_[a-z_]+)", RULES.read_text())) <= names
