"""What is made of results: tables, figures, and the pages that hold them."""
