"""Built layers kept as numbered generations (formats/store.md)."""
