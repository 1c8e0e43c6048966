"""Sources: files of many formats, read as records, one class a format."""
