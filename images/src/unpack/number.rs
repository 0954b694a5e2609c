//! Numbers as tar headers write them, for the fields where archives are sloppier than `tar::Header` allows.

/// A header field: octal digits among blanks and NULs (nothing at all is 0), or GNU's base-256 with its sign.
pub(super) fn header_number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let digits = &digits[..digits.iter().position(is_blank).unwrap_or(digits.len())];
    digits.iter().try_fold(0i64, |value, digit| {
        let digit = matches!(digit, b'0'..=b'7').then(|| i64::from(digit - b'0'))?;
        value.checked_mul(8)?.checked_add(digit)
    })
}

fn base256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    // Bit 7 marks the encoding, bit 6 is the sign.
    let start = i64::from(first & 0x3f) - i64::from(first & 0x40);
    rest.iter().try_fold(start, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
}

/// A decimal number without sign.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A PAX time: seconds with an optional sign and fraction; digits past the ninth are cut off.
pub(super) fn pax_time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = match dot {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanos = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_fields_may_be_padded_in_every_way() {
        for field in [&b"0000644\0"[..], b"   644 \0", b"644", b"644\0junk"] {
            assert_eq!(header_number(field), Some(0o644));
        }
        assert_eq!(header_number(b"\0\0\0\0"), Some(0));
        assert_eq!(header_number(b"12x"), None);
        assert_eq!(header_number(b"8"), None);
        assert_eq!(header_number(&[b'7'; 30]), None);
    }

    #[test]
    fn base256_fields_carry_large_and_negative_numbers() {
        assert_eq!(header_number(&[0x80, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 1]), Some(0x200_0001));
        assert_eq!(header_number(&[0xff; 12]), Some(-1));
        assert_eq!(header_number(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn pax_times_have_nanoseconds_and_may_lie_before_1970() {
        assert_eq!(pax_time(b"12"), Some((12, 0)));
        assert_eq!(pax_time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(pax_time(b"1.0000000019"), Some((1, 1)));
        assert_eq!(pax_time(b"-1.25"), Some((-2, 750_000_000)));
        for bad in [&b""[..], b"x", b"1.x", b"--1", b"99999999999999999999"] {
            assert_eq!(pax_time(bad), None);
        }
    }
}
