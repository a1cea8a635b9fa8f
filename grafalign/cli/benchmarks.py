"""Commands that evaluate models and make tables of results."""
