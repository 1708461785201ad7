"""JPEG files: found, checked, divided, remembered, replaced when they are bad, and unpacked from archives."""
