"""Pages that people use: comparing answers and writing them."""
