//! Containers: their state on disk, their network, and the run of one from image to exit status.
