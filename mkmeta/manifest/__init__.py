"""Manifest files: reading lazily, writing in one pass. The bytes are the codec's, the files are ours."""
