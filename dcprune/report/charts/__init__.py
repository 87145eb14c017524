"""Charts as SVG strings: pure functions of numbers and words."""
