"""Files, folders and hub data sets as rows with their places: bytes in, rows out."""
