//! Times and names, as JSON has them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use images::ImageSource;

use crate::problem::Problem;

/// `ns` since 1970 as RFC 3339.
pub fn rfc3339(ns: u64) -> String {
    humantime::format_rfc3339_nanos(UNIX_EPOCH + Duration::from_nanos(ns)).to_string()
}

/// The time in ns since 1970 that the parameter `name` says: RFC 3339, or seconds since 1970.
pub fn moment(name: &str, text: &str) -> Result<u64, Problem> {
    if let Some(seconds) = text.parse::<f64>().ok().filter(|seconds| *seconds >= 0.0) {
        return Ok((seconds * 1e9) as u64);
    }
    let time: SystemTime = humantime::parse_rfc3339_weak(text).map_err(|_| {
        Problem::invalid(format!(
            "{name}={text:?} is no time: write 2026-11-21T10:00:00Z, or seconds since 1970"
        ))
    })?;
    Ok(u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX))
}

/// An image's name as people type it.
pub fn familiar(name: &str) -> String {
    match name.parse::<ImageSource>() {
        Ok(ImageSource::Registry(reference)) => reference.familiar(),
        _ => name.to_owned(),
    }
}
