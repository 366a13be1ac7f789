"""Overlay mounts of layers: how they are made, recognised, exchanged and refreshed (formats/mounts.md)."""
