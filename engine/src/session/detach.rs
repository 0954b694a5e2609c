//! Keys that leave a container without ending it.

/// What Docker's users know.
pub const DEFAULT: &str = "ctrl-p,ctrl-q";

/// A sequence of keys, and how much of it was typed.
#[derive(Clone, Debug)]
pub struct DetachKeys {
    keys: Vec<u8>,
    typed: usize,
}

/// `--detach-keys` is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--detach-keys {0:?} is no sequence of keys: write for example ctrl-p,ctrl-q or x,y; \"\" is none")]
pub struct DetachKeysError(String);

impl std::str::FromStr for DetachKeys {
    type Err = DetachKeysError;

    fn from_str(text: &str) -> Result<Self, DetachKeysError> {
        let key = |name: &str| match name.as_bytes() {
            [key] => Some(*key),
            [b'c', b't', b'r', b'l', b'-', key] => match key.to_ascii_uppercase() {
                control @ b'@'..=b'_' => Some(control - b'@'),
                _ => None,
            },
            _ => None,
        };
        let keys = text.split(',').filter(|_| !text.is_empty()).map(key).collect::<Option<_>>();
        keys.map(|keys| Self { keys, typed: 0 }).ok_or_else(|| DetachKeysError(text.to_owned()))
    }
}

impl DetachKeys {
    /// What of `bytes`, and of what was held back before, goes to the process; `None` once the sequence is whole.
    pub fn filter(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut passed = Vec::with_capacity(bytes.len() + self.typed);
        for byte in bytes {
            if self.keys.get(self.typed) == Some(byte) {
                self.typed += 1;
                if self.typed == self.keys.len() {
                    return None;
                }
                continue;
            }
            passed.extend(self.keys.iter().take(self.typed));
            self.typed = usize::from(self.keys.first() == Some(byte));
            if self.typed == 0 {
                passed.push(*byte);
            } else if self.keys.len() == 1 {
                return None;
            }
        }
        Some(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_sequence_detaches_and_nothing_else_is_lost() {
        let mut keys: DetachKeys = DEFAULT.parse().unwrap();
        assert_eq!(keys.filter(b"ab").unwrap(), b"ab");
        assert_eq!(keys.filter(b"a\x10").unwrap(), b"a");
        assert_eq!(keys.filter(b"b").unwrap(), b"\x10b");
        assert_eq!(keys.filter(b"\x10\x10").unwrap(), b"\x10");
        assert_eq!(keys.filter(b"\x11"), None);
        let mut none: DetachKeys = "".parse().unwrap();
        assert_eq!(none.filter(b"\x10\x11").unwrap(), b"\x10\x11");
    }

    #[test]
    fn sequences_parse_or_are_named() {
        assert_eq!("x,ctrl-]".parse::<DetachKeys>().unwrap().keys, [b'x', 0x1d]);
        for bad in ["ctrl-", "ctrl-é", "xy", "x,,y"] {
            assert!(bad.parse::<DetachKeys>().is_err(), "{bad}");
        }
    }
}
