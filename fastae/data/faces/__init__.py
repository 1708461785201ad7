"""The built-in data set: synthetic faces, so that nothing needs downloading."""
