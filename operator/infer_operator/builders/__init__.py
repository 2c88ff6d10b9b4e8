"""Pure: a resource and its tenants' records in, the objects that should exist out. One file a kind."""
