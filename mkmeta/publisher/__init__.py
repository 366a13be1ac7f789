"""Publishing: what was released on the volume becomes what hosts mount (docs/release.md)."""
