"""The acquisition: protocol, camera, and the headers of its files."""
