"""Dialogs: each names target and consequence, begins on Cancel, and returns what was chosen or None."""
