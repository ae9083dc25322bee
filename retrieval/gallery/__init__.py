"""Results for people: one self-contained HTML page."""
