"""What mkmeta does on a host: activating, switching, going back, cleaning up, saying how things stand."""
