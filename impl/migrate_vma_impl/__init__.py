"""A simulated kernel: the device-private migration path of Linux mm, in files and functions that carry the kernel's names."""
