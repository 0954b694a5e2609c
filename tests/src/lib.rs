//! Helpers that the guest tests share.
