"""The systemd units, as package data: templates whose instance is the name of a layer file in /etc/mkmeta."""
