"""Features of images: extraction through a frozen backbone, banks, and their files."""
