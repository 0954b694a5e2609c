//! Names of signals, as an image's `StopSignal` writes them.

/// Signals of x86-64 Linux by name, number first.
const NAMES: [(i32, &str); 31] = [
    (1, "HUP"),
    (2, "INT"),
    (3, "QUIT"),
    (4, "ILL"),
    (5, "TRAP"),
    (6, "ABRT"),
    (7, "BUS"),
    (8, "FPE"),
    (9, "KILL"),
    (10, "USR1"),
    (11, "SEGV"),
    (12, "USR2"),
    (13, "PIPE"),
    (14, "ALRM"),
    (15, "TERM"),
    (16, "STKFLT"),
    (17, "CHLD"),
    (18, "CONT"),
    (19, "STOP"),
    (20, "TSTP"),
    (21, "TTIN"),
    (22, "TTOU"),
    (23, "URG"),
    (24, "XCPU"),
    (25, "XFSZ"),
    (26, "VTALRM"),
    (27, "PROF"),
    (28, "WINCH"),
    (29, "IO"),
    (30, "PWR"),
    (31, "SYS"),
];

/// First and last realtime signal that glibc leaves to programs.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of `SIGTERM`, `TERM`, `15`, `RTMIN+3` or `RTMAX-1`; `None` for anything else.
pub fn parse(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime = |number: i32| (RTMIN..=RTMAX).contains(&number).then_some(number);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return realtime(RTMIN.checked_add(if offset.is_empty() { 0 } else { offset.parse().ok()? })?);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return realtime(RTMAX.checked_add(if offset.is_empty() { 0 } else { offset.parse().ok()? })?);
    }
    match name.parse::<i32>() {
        Ok(number) => (1..=RTMAX).contains(&number).then_some(number),
        Err(_) => NAMES.into_iter().find(|(_, known)| *known == name).map(|(number, _)| number),
    }
}

/// `SIGTERM` for 15, or the number.
pub fn name(number: i32) -> String {
    let known = NAMES.into_iter().find(|(known, _)| *known == number);
    known.map_or_else(|| number.to_string(), |(_, name)| format!("SIG{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_realtime_signals_parse() {
        let cases =
            [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("RTMIN", 34)];
        for (text, number) in cases {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in ["", "SIG", "0", "-1", "65", "SIGNOPE", "RTMIN+99", "RTMAX+1", "RTMIN+99999999999"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!((name(15).as_str(), name(40).as_str()), ("SIGTERM", "40"));
    }
}
