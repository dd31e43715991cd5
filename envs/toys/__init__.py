"""Small problems with generated data on which the claims of skill composition can be checked within minutes."""
