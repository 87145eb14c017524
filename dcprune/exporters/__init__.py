"""A coreset in the forms that other programs read: one file per form, each a plain function that writes to a path."""
