"""Changes of a graph beside its widths: branches that are bypassed, and nodes that do nothing any more."""
