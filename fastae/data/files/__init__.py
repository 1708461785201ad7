"""Image files: searching, checking and dividing them, replacing bad ones, and unpacking archives."""
