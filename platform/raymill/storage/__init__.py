"""Object stores: a bucket behind a URI, and folders that are mirrored in one."""
