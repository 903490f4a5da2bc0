"""Where model, dictionaries and text meet: one question a file, each returns a record."""
