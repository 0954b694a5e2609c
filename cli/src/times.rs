//! Durations and points in time, as people and Docker's users write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

/// A duration: `90`, `1m30s`, `3h`.
pub fn duration(text: &str) -> anyhow::Result<Duration> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text)
        .with_context(|| format!("{text:?} is no duration: write for example 90s, 1m30s or 3h"))
}

/// A point in time in ns since 1970: RFC 3339, seconds since 1970, or a duration before now.
pub fn moment(text: &str) -> anyhow::Result<u64> {
    if let Some(seconds) = text.parse::<f64>().ok().filter(|seconds| *seconds >= 0.0) {
        return Ok((seconds * 1e9) as u64);
    }
    let time = match humantime::parse_rfc3339_weak(text) {
        Ok(time) => time,
        Err(_) => {
            let ago = humantime::parse_duration(text).with_context(|| {
                format!("{text:?} is no time: write 2026-11-21T10:00:00Z, seconds since 1970, or a duration such as 10m")
            })?;
            SystemTime::now().checked_sub(ago).unwrap_or(UNIX_EPOCH)
        }
    };
    Ok(u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX))
}

/// `ns` since 1970 as RFC 3339.
pub fn rfc3339(ns: u64) -> String {
    humantime::format_rfc3339_nanos(UNIX_EPOCH + Duration::from_nanos(ns)).to_string()
}

/// How long ago `ns` since 1970 was, with one unit: `5 minutes`.
pub fn age(ns: u64) -> String {
    let then = UNIX_EPOCH + Duration::from_nanos(ns);
    human(SystemTime::now().duration_since(then).unwrap_or_default())
}

/// A duration with one unit.
pub fn human(age: Duration) -> String {
    let seconds = age.as_secs();
    let (number, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_parse_or_are_named() {
        assert_eq!(duration("90").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("1m30s").unwrap(), Duration::from_secs(90));
        assert!(duration("soon").unwrap_err().to_string().contains("soon"));
        assert_eq!(moment("1.5").unwrap(), 1_500_000_000);
        assert_eq!(moment("1970-01-01T00:00:02Z").unwrap(), 2_000_000_000);
        assert!(moment("10m").unwrap() < moment("1m").unwrap());
        assert!(moment("yesterday").is_err());
        assert_eq!(rfc3339(1_000_000_001), "1970-01-01T00:00:01.000000001Z");
    }

    #[test]
    fn ages_have_one_unit() {
        let cases = [(1, "1 second"), (119, "1 minute"), (7200, "2 hours"), (200_000, "2 days")];
        for (seconds, text) in cases {
            assert_eq!(human(Duration::from_secs(seconds)), text);
        }
    }
}
