"""What many hosts say of themselves (formats/report.md)."""
