"""Linux mm as far as device-private migration touches it. Files and functions carry the kernel's names."""
