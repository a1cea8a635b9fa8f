"""A page on one's own data: search an index, see heat over scenes and photos beside them. Needs the extra `explore`."""
