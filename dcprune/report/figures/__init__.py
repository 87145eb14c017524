"""Turns what was collected into charts with captions, text alternatives and tables: one family of figures a file."""
