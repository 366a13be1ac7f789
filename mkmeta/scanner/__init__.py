"""From a tree on disk to a manifest: selecting, walking, hashing."""
