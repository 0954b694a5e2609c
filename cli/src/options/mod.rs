//! Options that several commands share, each with its translation for the engine.

pub mod isolation;
pub mod network;
pub mod process;
pub mod resources;
pub mod signature;
pub mod volumes;
