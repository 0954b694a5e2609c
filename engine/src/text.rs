//! Text from a guest, made fit for a terminal: bounded, without control characters.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// The last `limit` bytes of the file `path` as printable text; empty where there is none.
pub fn tail(path: &Path, limit: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    printable(&read().unwrap_or_default())
}

/// The last `count` lines of the file `path`, of its last `limit` bytes, indented to stand in a message.
pub fn last_lines(path: &Path, count: usize, limit: u64) -> String {
    let text = tail(path, limit);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let first = lines.len().saturating_sub(count);
    lines.iter().skip(first).map(|line| format!("    {line}\n")).collect()
}

/// `bytes` as text in which a control character other than line feed and tab is shown as `?`.
pub fn printable(bytes: &[u8]) -> String {
    let clean = |c: char| match c {
        '\n' | '\t' => Some(c),
        '\r' => None,
        c if c.is_control() => Some('?'),
        c => Some(c),
    };
    String::from_utf8_lossy(bytes).chars().filter_map(clean).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(printable(b" a\x1b[31mb\r\n\tc\xff\x07 "), "a?[31mb\n\tc\u{fffd}?");
    }

    #[test]
    fn only_the_end_of_a_file_is_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "one\ntwo\n\nthree\n").unwrap();
        assert_eq!(tail(file.path(), 6), "three");
        assert_eq!(last_lines(file.path(), 2, 100), "    two\n    three\n");
        assert_eq!(tail(Path::new("/no/such/file"), 6), "");
    }
}
