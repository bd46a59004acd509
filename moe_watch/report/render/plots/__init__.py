"""Plots as hand-written SVG: colours come from the page's style sheet, so that they follow light, dark and print."""
