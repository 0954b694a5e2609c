//! Frames: `u32` little-endian body length, one version byte, then the message as postcard.
