"""Files: an image is decoded whole or refused by name, and a file is written whole or not at all."""
