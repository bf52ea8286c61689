"""What the app shows, as text."""

from textual.app import App


def shown(app: App[None]) -> str:
    """Return the lines on the screen, without trailing spaces."""
    lines = app.screen._compositor.render_strips()
    return "\n".join(strip.text.rstrip() for strip in lines) + "\n"
