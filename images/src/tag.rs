//! Another name for an image.

use crate::reference::{Reference, Version};
use crate::store::{Store, StoreError};

impl Store {
    /// Gives the image called `name` (as [`Store::image`] finds it) the name `target` too, which another image may
    /// lose by that.
    pub fn tag(&self, name: &str, target: &Reference) -> Result<(), StoreError> {
        check(target)?;
        self.refs.update(|names| {
            let (_, record) = self.find_any(names, name)?;
            names.images.insert(target.to_string(), record);
            Ok(())
        })
    }
}

/// Refuses a name that cannot be given to an image.
pub(crate) fn check(name: &Reference) -> Result<(), StoreError> {
    match name.version() {
        Version::Tag(_) => Ok(()),
        Version::Digest(_) => Err(StoreError::NotATag { name: name.to_string() }),
    }
}
