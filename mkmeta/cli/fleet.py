"""`mkmeta fleet`: what the reports of all hosts come to."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import Final

from mkmeta.cli.arguments import filled
from mkmeta.cli.config_option import add_config
from mkmeta.cli.host_arguments import seconds
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, legible, printable
from mkmeta.fleet.spool import Fleet, Spool, Standing, judge, read_spool
from mkmeta.host.prometheus import Family, write_metrics
from mkmeta.store.pointer import read_pointer

_LOST: Final = 3600.0  # seconds: six reports that did not come
_NAMED: Final = 20  # hosts of a kind, without --verbose

_DESCRIPTION = """\
Reads what hosts report of a layer (mkmeta status --report, formats/report.md), and says who is behind, who was not
heard of for too long, what is wrong where, and which old generations some still have. Compared with what the pointer
names, or without one with the newest generation that a host has.
"""

_EPILOG = """\
examples:
  mkmeta fleet /mnt/sw/.mkmeta/reports --pointer /mnt/sw/.mkmeta/sw.json
  mkmeta fleet --config /etc/mkmeta/sw.toml --json
  mkmeta fleet -q --config /etc/mkmeta/sw.toml --metrics /var/lib/prometheus/node-exporter/mkmeta_fleet.prom

exit codes: (the highest that applies)
  0    all hosts have what is published
  1    the reports cannot be listed, or the pointer not be read
  2    the command line is wrong
  21   hosts are behind, or were not heard of, or reports cannot be read, or are too many
  22   something is wrong on a host
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(verbs, "fleet", summary="say which hosts have what", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("spool", metavar="SPOOL", type=filled, help="the directory that hosts report to")
    parser.add_argument("--pointer", metavar="FILE", type=filled, help="what is published (default: see above)")
    parser.add_argument(
        "--lost",
        metavar="TIME",
        type=seconds,
        default=_LOST,
        help="a host that has not reported for so long was not heard of (default: 1h)",
    )
    parser.add_argument(
        "--metrics", metavar="FILE", type=filled, help="also write FILE for node_exporter's textfile collector"
    )
    add_config(parser, {"spool": "reports", "pointer": "pointer"})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Adds up and says what."""
    spool = read_spool(args.spool)
    published = read_pointer(args.pointer).generation if args.pointer is not None else None
    now = time.time()
    fleet = judge(spool.heard, published=published, now=now, lost=args.lost)
    if args.metrics is not None:
        write_metrics(args.metrics, _metrics(fleet, spool))
    if args.json:
        _emit(fleet, spool, now)
    else:
        _print(fleet, spool, now, args)
    if fleet.counts[Standing.DEGRADED]:
        return int(ExitCode.DEGRADED)
    if fleet.counts[Standing.BEHIND] or fleet.counts[Standing.LOST] or spool.unreadable or spool.ignored:
        return int(ExitCode.BEHIND)
    return int(ExitCode.DONE)


def _emit(fleet: Fleet, spool: Spool, now: float) -> None:
    for host, (standing, heard) in sorted(fleet.hosts.items()):
        report = heard.report
        emit(
            "host",
            host=host,
            standing=str(standing),
            generation=report.generation,
            short_id=report.short_id,
            profile=report.profile,
            held=list(report.held),
            problems=list(report.problems),
            seconds=round(max(0.0, now - heard.when)),
        )
    for name, why in spool.unreadable:
        emit("unreadable", **path_fields(name), reason=why)
    emit(
        "summary",
        published=fleet.published,
        hosts=len(fleet.hosts),
        **{str(standing): fleet.counts[standing] for standing in Standing},
        unreadable=len(spool.unreadable),
        holders=[{"generation": number, "hosts": len(hosts)} for number, hosts in sorted(fleet.holders().items())],
        ignored=len(spool.ignored),
    )


def _print(fleet: Fleet, spool: Spool, now: float, args: argparse.Namespace) -> None:
    most = len(fleet.hosts) if args.verbose else _NAMED
    for standing in (Standing.DEGRADED, Standing.BEHIND, Standing.LOST):
        those = [(host, heard) for host, (its, heard) in sorted(fleet.hosts.items()) if its is standing]
        for host, heard in those[:most]:
            report = heard.report
            has = f"generation {report.generation or '-'}, reported {max(0, int(now - heard.when))} s ago"
            print(f"{standing}: {host}: {has}" + "".join(f"; {legible(text)}" for text in report.problems))
        if len(those) > most:
            print(f"{standing}: and {len(those) - most} more; --verbose names them")
    for number, hosts in sorted(fleet.holders().items()):
        more = f" and {len(hosts) - most} more" if len(hosts) > most else ""
        print(f"generation {number} is still had by {len(hosts)}: {', '.join(hosts[:most])}{more}")
    for name, why in spool.unreadable[:most]:
        note(f"mkmeta: {printable(name)}: cannot be read: {why}")
    if spool.ignored:
        note(f"mkmeta: {len(spool.ignored)} more files are not looked at")
    if not args.quiet:
        parts = ", ".join(f"{fleet.counts[standing]} {standing}" for standing in Standing if fleet.counts[standing])
        unreadable = f", {len(spool.unreadable)} reports cannot be read" if spool.unreadable else ""
        print(f"generation {fleet.published}: {len(fleet.hosts)} hosts{': ' if parts else ''}{parts}{unreadable}")


def _metrics(fleet: Fleet, spool: Spool) -> list[Family]:
    hosts = Family("mkmeta_fleet_hosts", "gauge", "Hosts by how they stand to what is published.")
    for standing in Standing:
        hosts.add(fleet.counts[standing], standing=str(standing))
    published = Family("mkmeta_fleet_published_generation", "gauge", "The generation that hosts should have.")
    published.add(fleet.published)
    have = Family("mkmeta_fleet_generation_hosts", "gauge", "Hosts that have a generation mounted.")
    for number, count in sorted(Counter(heard.report.generation for _, heard in fleet.hosts.values()).items()):
        have.add(count, generation=str(number))
    holders = Family("mkmeta_fleet_holders", "gauge", "Hosts that have another generation than the published one.")
    for number, those in sorted(fleet.holders().items()):
        holders.add(len(those), generation=str(number))
    unreadable = Family("mkmeta_fleet_unreadable_reports", "gauge", "Reports that cannot be read.")
    unreadable.add(len(spool.unreadable))
    return [hosts, published, have, holders, unreadable]
