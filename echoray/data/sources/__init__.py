"""Where raw studies are read from."""
