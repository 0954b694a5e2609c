//! Identity of a container: a random ID and, where the user gives none, a name that one can say aloud.

use std::fmt;

use serde::{Deserialize, Serialize};

/// 48 random bits as 12 hexadecimal digits, the short form that Docker shows.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Hash, Serialize)]
pub struct ContainerId(String);

impl ContainerId {
    /// A new random ID.
    pub fn random() -> Self {
        let [a, b, c, d, e, f, ..] = random();
        Self(format!("{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}"))
    }

    /// The ID that [`ContainerId::as_str`] gave.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (text.len() == 12 && digits).then(|| Self(text.to_owned()))
    }

    /// As written in paths and tables.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// 32 random bytes of the host's generator.
pub fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("invariant: getrandom works on every supported kernel: {error}"),
        }
    }
    bytes
}

const ADJECTIVES: [&str; 32] = [
    "able", "amber", "brave", "brisk", "calm", "clever", "cosy", "crisp", "eager", "early", "fair", "fleet",
    "gentle", "glad", "golden", "handy", "humble", "jolly", "keen", "kind", "lively", "lucky", "mellow",
    "merry", "neat", "nimble", "quiet", "rapid", "steady", "sunny", "tidy", "witty",
];

const NOUNS: [&str; 32] = [
    "anchor", "barge", "beacon", "bollard", "buoy", "canal", "captain", "cargo", "compass", "crane",
    "current", "deck", "dock", "ferry", "fender", "galley", "harbour", "helm", "hull", "jetty", "keel",
    "lantern", "lighter", "lock", "mast", "oar", "pilot", "quay", "rudder", "sail", "tide", "wharf",
];

/// A random name such as `brisk_lantern`.
pub fn random_name() -> String {
    let [a, b, ..] = random();
    let pick = |words: &[&'static str; 32], byte: u8| words.get(usize::from(byte) % 32).copied();
    let adjective = pick(&ADJECTIVES, a).unwrap_or_default();
    let noun = pick(&NOUNS, b).unwrap_or_default();
    format!("{adjective}_{noun}")
}

/// Whether `name` may name a container: as Docker, `[a-zA-Z0-9][a-zA-Z0-9_.-]+`, at most 128 characters.
pub fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    (2..=128).contains(&name.len())
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_twelve_hexadecimal_digits_and_differ() {
        let (a, b) = (ContainerId::random(), ContainerId::random());
        assert_ne!(a, b);
        assert!(a.as_str().len() == 12 && a.as_str().bytes().all(|b| b.is_ascii_hexdigit()));
    }

    #[test]
    fn random_names_are_names_and_hostile_ones_are_not() {
        assert!(is_name(&random_name()));
        let long = "x".repeat(129);
        for bad in ["", "a", "-ab", "../x", "a/b", "a b", "a\n", &long] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
