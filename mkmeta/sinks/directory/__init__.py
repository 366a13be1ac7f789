"""The upper directory: a tree of metadata only on an ordinary filesystem (formats/upper.md)."""
