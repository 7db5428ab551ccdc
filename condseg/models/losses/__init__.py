"""Assignment and losses."""
