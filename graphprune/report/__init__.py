"""What is told to people and to scripts: records (plain JSON) and tables made from them."""
