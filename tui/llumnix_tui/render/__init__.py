"""Pure functions from data to styled text; nothing here knows a terminal."""
