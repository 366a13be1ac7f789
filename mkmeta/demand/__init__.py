"""Which directories of a volume are asked, what to select for it, and what that will gain.

A *profile* is what was observed (formats/profile.md). `importers` make one from what other programs wrote, `live` from
this host; `cover` chooses directories, `patterns` writes them as selection lines, `prediction` says what is gained.
"""
