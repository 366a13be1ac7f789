"""What is published from where: the settings of one layer, as a publisher needs them."""

from __future__ import annotations

from dataclasses import dataclass, field

from mkmeta.build import BuildOptions
from mkmeta.config import LayerConfig
from mkmeta.config_keys import inline_rule
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import DigestName, HardLinks
from mkmeta.pattern import Patterns
from mkmeta.plan import Plan
from mkmeta.publisher.arrival import Rules
from mkmeta.scanner.options import OnError, ScanOptions
from mkmeta.sinks.protocol import LayerKind
from mkmeta.store.store import Note
from mkmeta.workers import available_processors

_BUILD_JOBS = 2  # more rarely help: the filesystem is the limit


@dataclass(frozen=True, kw_only=True)
class Site:
    """One layer and where it is published. Paths are absolute."""

    config: LayerConfig
    root: bytes  # the volume
    manifest: bytes  # what was published last, and the base of what comes next
    pointer: bytes
    store: bytes | None = None  # None: only the manifest is announced, hosts build
    build: BuildOptions = field(default_factory=BuildOptions)
    rules: Rules = field(default_factory=Rules)
    workers: int = field(default_factory=available_processors)
    wait: float = 600.0  # seconds for others who publish
    note: Note = print

    @classmethod
    def of(cls, config: LayerConfig, *, manifest_only: bool, quiet: float, wait: float, note: Note) -> Site:
        """From a layer file. Raises ConfigError when that does not say enough, UsageError for a bad pattern."""
        config.need("volume", "manifest", "pointer")
        assert config.volume is not None and config.manifest is not None and config.pointer is not None
        plan = Plan(
            prefix=(config.redirect_prefix or b"").strip(b"/"),
            userxattr=bool(config.userxattr),
            verity=not config.no_verity,
        )
        return cls(
            config=config,
            root=config.volume,
            manifest=config.manifest,
            pointer=config.pointer,
            store=None if manifest_only else config.store,
            build=BuildOptions(plan=plan, kind=LayerKind(config.format or LayerKind.DIRECTORY), jobs=_BUILD_JOBS),
            rules=Rules(staging=Patterns(config.staging), marker=config.marker, quiet=quiet),
            wait=wait,
            note=note,
        )

    def scan_options(self, base: ManifestReader | None, only: tuple[bytes, ...], on_error: OnError) -> ScanOptions:
        """A scan of all, or of what patterns name. With a base, what the layer file does not say is as there."""
        config = self.config
        hide, drop_xattrs, digests = config.hide, config.drop_xattr, config.digests
        links = None if config.hard_links is None else HardLinks(config.hard_links)
        select, inline, inline_all = config.select, tuple(map(inline_rule, config.inline)), False
        if base is not None:
            info = base.info
            select, hide, drop_xattrs = select or info.select, hide or info.hide, drop_xattrs or info.drop_xattrs
            digests = tuple(base.root.digests) if digests is None else digests
            links = info.hard_links if links is None else links
            inline, inline_all = inline or info.inline, info.inline_all
        return ScanOptions(
            root=self.root,
            select=select,
            hide=hide,
            drop_xattrs=drop_xattrs,
            digests=tuple(DigestName) if digests is None else digests,
            hard_links=links or HardLinks.SUBTREE,
            inline=inline,
            inline_all=inline_all,
            workers=self.workers,
            on_error=on_error,
            base=base,
            only=only,
        )
