"""Root filesystems: images in, layers on disk."""
