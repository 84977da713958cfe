"""Checks of adapters: fresh, trained, combined, extracted, resized, renamed and merged."""
