"""The mask branch and the dynamic mask head."""
