"""``apply`` by several processes: rank 0 leads, verifies and commits; the others help to write. Only :mod:`cli` comes here."""
