//! Trees of files as tar streams, on both sides of the border around a guest: packed, read, and put where `docker cp`
//! would put them.
//!
//! ```text
//! Tree::find ─► Tree::pack ─► Packer ─► tar ─► Stream ─► extract ◄─ Target::find
//! ```
//!
//! ustar with PAX records; owners, modes, times in seconds, extended attributes, hard links and devices are kept. Who
//! extracts says how far the stream is trusted: [`Trust`].

mod attributes;
mod error;
mod extract;
mod pack;
mod stream;
mod target;
mod tree;

#[cfg(test)]
mod tests;

pub use attributes::{read as attributes_of, value as attribute};
pub use error::{ArchiveError, On};
pub use extract::{Options, Owners, Trust, extract};
pub use pack::{Outlet, Packer};
pub use stream::{Entry, Inlet, Stream};
pub use target::{Incoming, Target};
pub use tree::{Tree, names};
