//! Whole archives: what real layers contain, what hostile ones try, what layers do to each other.

mod archive;
mod format;
mod hostile;
mod layers;
