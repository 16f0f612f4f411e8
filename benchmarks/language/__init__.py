"""A language model that learns one kind of text after another."""
